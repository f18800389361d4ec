"""Benchmarks: one file each, with ``cases(device, quick) -> list[Case]``; the other files are what they share."""
