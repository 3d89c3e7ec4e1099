"""MAPS in other code bases: one call for each, which imports nothing of theirs."""
