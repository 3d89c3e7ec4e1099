"""Pretraining on labelled frames: what is learned, what came of it, and the loop around it."""
