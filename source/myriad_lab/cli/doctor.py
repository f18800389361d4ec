"""``myriad doctor``: what works on this machine, what is missing, and how to get it."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

from myriad_lab.cli.arguments import refuse_overrides
from myriad_lab.cli.compiler import check_compiler
from myriad_lab.envs.cores import usable_cores
from myriad_lab.errors import ConfigurationError

EXTRAS = {
    "onnx": "export", "onnxscript": "export", "onnxruntime": "export", "matplotlib": "viz",
    "imageio_ffmpeg": "viz", "tensorboard": "viz", "mujoco_warp": "warp",
}  # fmt: skip
GUARDED = {"mujoco": "myriad_lab.envs.mujoco.compat", "mujoco_warp": "myriad_lab.envs.mujoco_warp.compat"}
"""Packages -> the module that imports them and knows how they break."""
CORE = ("torch", "numpy", "tensordict", "rsl_rl", "hydra", "omegaconf", "mujoco", "scipy")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's answer."""

    what: str
    """What was looked at."""
    state: str
    """``ok``, ``missing`` (something optional) or ``broken`` (something needed)."""
    detail: str
    """Version, or what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take no flags."""


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Print what was found; returns 1 where something needed is broken."""
    from myriad_lab.cli.list_tasks import format_table

    refuse_overrides("doctor", overrides)
    findings = [finding for check in CHECKS for finding in check()]
    print(format_table(("what", "state", "detail"), [[f.what, f.state, f.detail] for f in findings]))
    return 1 if any(finding.state == "broken" for finding in findings) else 0


def check_python() -> list[Finding]:
    """Look at the interpreter and the processor."""
    from myriad_lab.cli.machine import cpu_name

    version = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return [
        Finding("python", "ok" if good else "broken", version if good else f"{version}; use 3.11 to 3.13"),
        Finding("processor", "ok", f"{cpu_name()}, {len(usable_cores())} cores"),
    ]


def check_packages() -> list[Finding]:
    """Import every package that something needs."""
    findings = []
    for name in (*CORE, *EXTRAS):
        mend = f"pip install 'myriad-lab[{EXTRAS[name]}]'" if name in EXTRAS else "pip install myriad-lab"
        try:
            importlib.import_module(GUARDED.get(name, name))
            findings.append(Finding(name, "ok", _version_of(name)))
        except ConfigurationError as error:
            findings.append(Finding(name, "missing" if name in EXTRAS else "broken", str(error)))
        except (ImportError, OSError) as error:  # OSError: a shared library that does not load
            findings.append(Finding(name, "missing" if name in EXTRAS else "broken", f"{mend} ({error})"))
    return findings


def check_gpu() -> list[Finding]:
    """Look for a GPU."""
    import torch

    if torch.cuda.is_available():
        found = Finding("gpu", "ok", torch.cuda.get_device_name())
        try:
            check_compiler()
        except ConfigurationError as error:
            return [found, Finding("C compiler", "broken", str(error))]
        return [found]
    return [Finding("gpu", "missing", f"torch {torch.__version__} sees none; everything runs on the CPU")]


def check_isaaclab() -> list[Finding]:
    """Look at Isaac Lab, without starting it."""
    from myriad_lab.cli import doctor_isaaclab

    return doctor_isaaclab.check_isaaclab()


def check_rendering() -> list[Finding]:
    """Look for a library that draws MuJoCo without a display."""
    try:
        from myriad_lab.envs.mujoco.render import find_library

        library = find_library()
    except ConfigurationError:
        return [Finding("rendering", "broken", "needs a mujoco that works")]
    if library is not None:
        return [Finding("rendering", "ok", library)]
    mend = "install libegl1 or libosmesa6 (Debian, Ubuntu); until then videos are drawings seen from above"
    return [Finding("rendering", "missing", mend)]


def check_tasks() -> list[Finding]:
    """Build every task."""
    from myriad_lab.cli.list_tasks import describe
    from myriad_lab.tasks import registry

    entries = registry.list_tasks()
    for entry in entries:
        describe(entry)
    return [Finding("tasks", "ok", f"{len(entries)} registered (`myriad list_tasks`)")]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    check_python,
    check_packages,
    check_gpu,
    check_isaaclab,
    check_rendering,
    check_tasks,
)


def _version_of(module: str) -> str:
    names = metadata.packages_distributions().get(module)
    return metadata.version(names[0]) if names else "installed"
