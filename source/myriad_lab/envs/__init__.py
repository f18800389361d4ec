"""Envs: contract, task and simulator seams, arenas, and the backends."""
