"""Let PhysX outside of Isaac Sim (ovphysx) run on a machine without CUDA.

Isaac Lab's ovphysx bridge asks Warp for page-locked ("pinned") host memory, which Warp gives only beside a CUDA device.
Without one, ordinary memory does: nothing is copied to a GPU. This module takes the request out of Warp's array
functions, only where there is no CUDA device, and says so in the log. It is also a launcher::

    python -m myriad_lab.envs.isaaclab.pinned_shim train --rl_library rsl_rl --task ... physics=ovphysx --device cpu
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

_FUNCTIONS = ("zeros", "empty", "ones", "full", "clone", "zeros_like", "empty_like")


def install_pinned_shim() -> bool:
    """Let Warp ignore ``pinned`` where there is no CUDA device; return whether it does so now.

    Calling it again changes nothing.
    """
    import warp as wp

    if wp.is_cuda_available():
        return False
    if hasattr(wp.array.__init__, "__wrapped__"):
        return True
    for name in _FUNCTIONS:
        setattr(wp, name, _without_pinned(getattr(wp, name)))
    wp.array.__init__ = _without_pinned(wp.array.__init__)
    log.warning("no CUDA device: Warp's requests for page-locked memory get ordinary memory, so that ovphysx can run")
    return True


def _without_pinned(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("pinned", None)
        return function(*args, **kwargs)

    return call


if __name__ == "__main__":
    from isaaclab.__main__ import main

    install_pinned_shim()
    sys.exit(main())
