"""Isaac Lab 3.0 as a backend: any of its envs as our ``VecEnv``. Nothing here is imported where it is not asked for."""
