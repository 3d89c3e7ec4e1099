"""Several processes as one run: their start, their end, and signals."""
