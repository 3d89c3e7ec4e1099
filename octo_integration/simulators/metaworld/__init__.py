"""Meta-World: its tasks, seen and held-out looks of them, coloured goals, the environment."""
