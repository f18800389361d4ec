"""Whether kernels of processes that share a GPU run side by side: that takes NVIDIA's Multi-Process Service (MPS)."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

logger = logging.getLogger(__name__)


def mps_runs() -> bool:
    """Return whether the MPS daemon has opened its pipe where CUDA programs look for it."""
    return (Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control").exists()


def tell_of_turns(devices: Iterable[str]) -> None:
    """Warn where processes share a GPU without MPS.

    Args:
        devices: The device of each process.
    """
    places = [torch.device(device) for device in devices]
    counts = Counter(place.index or 0 for place in places if place.type == "cuda")
    shared = sorted(gpu for gpu, count in counts.items() if count > 1)
    if shared and not mps_runs():
        logger.warning(
            "Several processes share GPU %s and take turns there, for NVIDIA's MPS does not run: start it first with "
            "nvidia-cuda-mps-control -d, or give the learners GPUs of their own (agent.runner.value_device, "
            "policy_device).",
            ", ".join(map(str, shared)),
        )
