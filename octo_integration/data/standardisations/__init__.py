"""One file for each form that data sets come in; its STANDARDISATION is found by the name of the file."""
