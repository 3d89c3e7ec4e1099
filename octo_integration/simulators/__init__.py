"""Worlds to act in. Nothing here imports a simulator before it is used."""
