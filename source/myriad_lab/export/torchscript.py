"""Export a policy to TorchScript, which robots still load although PyTorch recommends ``torch.export``."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from myriad_lab.portfolio.atomic import write_file


def example_inputs(num_obs: int, indexed: bool, rows: int = 2) -> tuple[torch.Tensor, ...]:
    """Return inputs to trace a policy with; more than one row, so that no exporter takes the batch for a constant."""
    obs = torch.zeros(rows, num_obs)
    return (obs, torch.zeros(rows, dtype=torch.long)) if indexed else (obs,)


def export_torchscript(policy: nn.Module, path: str | Path, num_obs: int, indexed: bool) -> Path:
    """Write ``policy`` as a TorchScript file.

    Args:
        policy: Observation (b, num_obs), and head ids (b,) if ``indexed``, to actions (b, num_actions).
        path: File to write.
        num_obs: Width of the observation.
        indexed: Whether the policy takes head ids.
    """
    path = Path(path)
    with warnings.catch_warnings():
        # PyTorch has deprecated TorchScript as a whole since 2.9; the robots that load it have not.
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is (deprecated|not supported)")
        traced = torch.jit.trace(policy.cpu().eval(), example_inputs(num_obs, indexed))
        # torch writes to a file name, not through an arbitrary suffix-less stream, hence the callback.
        write_file(path, lambda temporary: torch.jit.save(traced, str(temporary)))
    return path


def load_torchscript(path: str | Path) -> torch.jit.ScriptModule:
    """Load an exported policy on the CPU."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is (deprecated|not supported)")
        return torch.jit.load(str(path), map_location="cpu")
