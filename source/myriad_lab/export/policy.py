"""Export one policy of a bundle, or all of them, and verify what was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from myriad_lab.errors import ConfigurationError
from myriad_lab.export.contract import build_contract, contract_text, write_contract
from myriad_lab.export.onnx import export_onnx, require_onnx, write_metadata
from myriad_lab.export.torchscript import export_torchscript
from myriad_lab.export.verify import TOLERANCE, Parity, verify_export
from myriad_lab.portfolio.atomic import check_writable, staged_files
from myriad_lab.portfolio.bundle import Bundle


@dataclass
class Exported:
    """What ``export_policy`` wrote."""

    folder: Path
    """Holds ``policy.onnx``, ``policy.pt`` and ``contract.json``."""
    head: int | None
    """Exported head, ``None`` for all."""
    parity: Parity
    """Measured differences to torch."""


def export_policy(
    bundle: Bundle,
    folder: str | Path,
    head: int | None,
    obs: np.ndarray | None = None,
    heads: np.ndarray | None = None,
    *,
    tolerance: float = TOLERANCE,
    scene: str | None = None,
    origin: str = "recorded",
) -> Exported:
    """Write ``policy.onnx``, ``policy.pt`` and ``contract.json``, once they were compared with torch.

    Args:
        bundle: Portfolio to export from.
        folder: Where the files go.
        head: Head to export, ``None`` for all heads with an index input.
        obs: Observations to compare on, shape (rows, num_obs); standard normal ones if there are none.
        heads: Head that saw each of them (rows,), for ``head=None``; each row goes to some head if not given.
        tolerance: Largest absolute difference of an action that passes.
        scene: MJCF to write beside them, as ``scene.xml``.
        origin: Where the observations come from, for the contract: ``recorded`` or ``rollout``.

    Raises:
        ConfigurationError: If there is no such head, the folder is not writable, or packages are missing.
        ExportError: If a file differs from torch by more than ``tolerance``; the folder is as it was then.
    """
    actor, folder = bundle.actor.cpu(), Path(folder)
    require_onnx()
    check_writable(folder)
    if obs is None or len(obs) == 0:
        origin = "normal"
        obs = np.random.default_rng(0).standard_normal((256, actor.num_obs)).astype(np.float32)
    if obs.shape[1] != actor.num_obs:
        raise ConfigurationError(f"observations of width {obs.shape[1]} for policies that take {actor.num_obs}")
    if head is None:
        policy = actor.indexed()
        heads = np.arange(len(obs)) % actor.num_policies if heads is None else heads
    else:
        policy, heads = actor.single(head), None
    indexed = head is None
    contract = build_contract(bundle, head)
    with staged_files(folder) as stage:
        export_torchscript(policy, stage / "policy.pt", actor.num_obs, indexed)
        export_onnx(policy, stage / "policy.onnx", actor.num_obs, indexed)
        parity = verify_export(policy, stage, obs, heads, observations=origin, tolerance=tolerance)
        contract["parity"] = {**parity.to_dict(), "tolerance": tolerance}
        write_metadata(stage / "policy.onnx", contract_text(contract))
        write_contract(stage, contract)
        if scene is not None:
            (stage / "scene.xml").write_text(scene)
    return Exported(folder, head, parity)
