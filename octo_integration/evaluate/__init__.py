"""Measuring policies: action error on held-out demonstrations, success in the simulator."""
