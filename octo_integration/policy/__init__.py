"""A run as a policy."""
