"""Benchmarks: one file each, with ``run(device, quick) -> list[BenchmarkLine]``."""
