"""The one place where MuJoCo is imported, so that a broken installation is explained once."""

from __future__ import annotations

import importlib.util

from myriad_lab.errors import ConfigurationError

try:
    import mujoco

    # A monolithic 3.x overwritten by mujoco-core 4 can import but lack half of its names.
    _ = mujoco.MjSpec, mujoco.mj_step
except (ImportError, AttributeError, OSError) as error:
    raise ConfigurationError(
        f"The installed MuJoCo is broken ({error}); mujoco and mujoco-core of different versions share files. "
        "Mend it with: pip install --force-reinstall --no-deps mujoco mujoco-core mujoco-studio"
        if importlib.util.find_spec("mujoco")
        else "The mujoco backend needs MuJoCo 3.12 or newer. Install it with: pip install mujoco"
    ) from error

HAS_BATCH = importlib.util.find_spec("mujoco.batch") is not None
"""Whether this MuJoCo (3.17 or newer) has the batched, stateful engine."""

__all__ = ["HAS_BATCH", "mujoco"]
