"""Compare exported files with the policy in torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from myriad_lab.export.contract import HEAD_INPUT, INPUT, OUTPUT
from myriad_lab.export.torchscript import load_torchscript

TOLERANCE = 1e-5
"""Largest absolute difference of an action that passes; actions are in [-1, 1], arithmetic is float32."""


class ExportError(RuntimeError):
    """An exported file does not do what the policy does."""


@dataclass
class Parity:
    """How far exported files are from the policy in torch."""

    onnx_max_abs_error: float
    """Largest absolute difference of an action, ONNX through onnxruntime on the CPU."""
    torchscript_max_abs_error: float
    """The same for TorchScript."""
    rows: int
    """Observations compared."""
    observations: str
    """Where they come from: ``recorded``, ``rollout`` or ``normal``."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for the contract."""
        return asdict(self)


def run_onnx(path: str | Path, obs: np.ndarray, heads: np.ndarray | None) -> np.ndarray:
    """Run an exported policy in onnxruntime: obs (b, num_obs) and, if it is indexed, heads (b,) to actions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds: dict[str, np.ndarray] = {INPUT: obs.astype(np.float32)}
    if heads is not None:
        feeds[HEAD_INPUT] = heads.astype(np.int64)
    return np.asarray(session.run([OUTPUT], feeds)[0])


def verify_export(
    policy: nn.Module,
    folder: Path,
    obs: np.ndarray,
    heads: np.ndarray | None = None,
    *,
    observations: str = "recorded",
    tolerance: float = TOLERANCE,
) -> Parity:
    """Compare ``policy.onnx`` and ``policy.pt`` in ``folder`` with ``policy``, all rows at once and one by one.

    Args:
        policy: The exported module.
        folder: Where the files are.
        obs: Observations, shape (rows, num_obs).
        heads: Head ids (rows,) of an indexed policy.
        observations: Where the observations come from, for the record.
        tolerance: Largest absolute difference that passes.

    Raises:
        ExportError: If a difference is larger, or not a number; names file and row.
    """
    if len(obs) == 0:
        raise ExportError("no observations to compare on")
    rows = torch.from_numpy(np.ascontiguousarray(obs, dtype=np.float32))
    ids = None if heads is None else torch.from_numpy(np.ascontiguousarray(heads, dtype=np.int64))
    inputs = (rows,) if ids is None else (rows, ids)
    with torch.inference_mode():
        expected = policy.cpu().eval()(*inputs).numpy()
        script = load_torchscript(folder / "policy.pt")
        scripted = script(*inputs).numpy()
        scripted_one = script(*(value[:1] for value in inputs)).numpy()
    graph = folder / "policy.onnx"
    ran = run_onnx(graph, obs, heads)
    ran_one = run_onnx(graph, obs[:1], None if heads is None else heads[:1])
    return Parity(
        onnx_max_abs_error=_error(graph.name, expected, ran, ran_one, tolerance),
        torchscript_max_abs_error=_error("policy.pt", expected, scripted, scripted_one, tolerance),
        rows=len(obs),
        observations=observations,
    )


def _error(name: str, expected: np.ndarray, batch: np.ndarray, single: np.ndarray, tolerance: float) -> float:
    if batch.shape != expected.shape or single.shape != expected[:1].shape:
        raise ExportError(f"{name} returns the shape {batch.shape}, torch {expected.shape}")
    difference = np.abs(expected.astype(np.float64) - batch)
    difference[0] = np.maximum(difference[0], np.abs(expected[0].astype(np.float64) - single[0]))
    worst = float(difference.max())
    if not worst <= tolerance:
        row = int(np.argmax(np.nan_to_num(difference.max(axis=1), nan=np.inf)))
        raise ExportError(f"{name} differs from torch by {worst:.3g} in row {row}, more than {tolerance:g}")
    return worst
