"""Tasks: the registry and one folder per family."""
