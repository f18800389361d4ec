"""Algorithms: one file each, with no env, no logger and no path."""
