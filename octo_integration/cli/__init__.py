"""The console command: what a user can ask for, and what is printed in answer."""
