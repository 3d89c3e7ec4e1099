"""Parameters in files, and back."""
