"""What Triton needs on a machine with a GPU: it brings its compiler for kernels, and none for what launches them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

from myriad_lab.errors import ConfigurationError


def check_compiler() -> None:
    """Find out before a run whether the kernels for a GPU, ours and those of ``torch.compile``, can be launched.

    Raises:
        ConfigurationError: If there is no C compiler, or no headers of Python.
    """
    if importlib.util.find_spec("triton") is None:
        return  # there is no build of it for this system, and nothing of ours needs it then
    if not os.environ.get("CC") and not any(shutil.which(name) for name in ("gcc", "clang")):
        raise ConfigurationError(
            "kernels for a GPU are launched by C code that Triton compiles, and this machine has no C compiler: "
            "install one (Debian, Ubuntu: apt install gcc libc6-dev), or name one by the variable CC, or take "
            "--device cpu"
        )
    header = Path(sysconfig.get_paths(scheme="posix_prefix")["include"]) / "Python.h"
    others = [os.environ.get(name, "").split(os.pathsep) for name in ("CPATH", "C_INCLUDE_PATH")]
    if not header.is_file() and not any(
        (Path(folder) / "Python.h").is_file() for part in others for folder in part if folder
    ):
        raise ConfigurationError(
            f"kernels for a GPU are launched by C code that Triton compiles, and {header} is not there: install the "
            "headers of this Python (Debian, Ubuntu: apt install python3-dev), or take --device cpu"
        )
