"""The one place where Warp and MuJoCo-Warp are imported, so that a missing package is explained once."""

from __future__ import annotations

import importlib.util

import myriad_lab.envs.mujoco.compat  # noqa: F401 - what it says of a broken MuJoCo comes first
from myriad_lab.errors import ConfigurationError

INSTALL = "pip install 'myriad-lab[warp]'"

try:
    import warp as wp

    # Before anything initialises Warp: it would announce itself, each kernel that it compiles and each that it loads.
    wp.config.log_level = wp.LOG_ERROR
    import mujoco_warp as mjw

    _ = mjw.OverflowType, mjw.DeterminismType
except (ImportError, AttributeError, OSError) as error:
    found = all(importlib.util.find_spec(name) for name in ("warp", "mujoco_warp"))
    raise ConfigurationError(
        f"The installed MuJoCo-Warp is broken or older than 4.0 ({error}): mend it with: {INSTALL}. Isaac Lab brings "
        "an older one of its own: backend mujoco_warp wants an environment without it."
        if found
        else f"Backend mujoco_warp needs MuJoCo-Warp. Install it with: {INSTALL}"
    ) from error

__all__ = ["mjw", "wp"]
