"""The contract of an exported policy: all that a robot must know to run it, at full precision."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from myriad_lab.portfolio.atomic import plain_json, write_json
from myriad_lab.portfolio.bundle import Bundle

CONTRACT_VERSION = 2
"""2: terms have ``parameters``, and a discrete action has a meaning of its own."""
METADATA_KEY = "myriad_lab.contract"
"""Key of the contract's text in the metadata of the ONNX file."""
FILE_NAME = "contract.json"
MEANINGS = {"discrete": "do names[argmax(action)], the first of equal ones"}
"""Kind of action -> what it means, where that is not a target."""
INPUT, HEAD_INPUT, OUTPUT = "obs", "head", "actions"
"""Names of the graph's inputs and output."""


def build_contract(bundle: Bundle, head: int | None) -> dict[str, Any]:
    """Describe a policy of a bundle.

    Args:
        bundle: Where the policy comes from.
        head: The exported head, ``None`` for all heads with an index input.

    Returns:
        JSON containers; floats are the exact doubles of the specification.
    """
    manifest, spec = bundle.manifest, bundle.manifest.spec
    groups = manifest.obs_groups["actor"]
    normalizer = bundle.actor.normalizer
    return plain_json(
        {
            "contract_version": CONTRACT_VERSION,
            "package": {"name": "myriad-lab", "version": manifest.package_version},
            "task": manifest.task,
            "policy": {
                "head": head,
                "num_heads": manifest.num_policies,
                "inputs": _inputs(bundle.actor.num_obs, head),
                "outputs": [{"name": OUTPUT, "shape": ["batch", bundle.actor.num_actions], "dtype": "float32"}],
                "deterministic": True,
            },
            "observation": {
                "size": bundle.actor.num_obs,
                "order": "terms concatenated in this order, newest values only, no history",
                "row": "clip(scale * (quantity - offset))",
                "terms": _terms([term for group in groups for term in spec["observations"][group]]),
                "normalizer": {"in_graph": hasattr(normalizer, "clip"), "clip": getattr(normalizer, "clip", None)},
            },
            "action": {
                "range": [-1.0, 1.0],
                "meaning": MEANINGS.get(spec["action"]["kind"], "target = offset + scale * action"),
                **{key: spec["action"][key] for key in ("names", "kind", "unit", "scale", "offset", "delay_steps")},
            },
            "control_period": {"value": spec["control_period"], "unit": "s"},
            "max_episode_length": spec["max_episode_length"],
            "quat_order": spec["quat_order"],
            "robot": _robot(spec.get("robot", {})),
            "source": {
                "bundle": bundle.path.name,
                "algorithm": manifest.algorithm,
                "iteration": manifest.iteration,
                "env_steps": manifest.env_steps,
                "git_commit": manifest.git_commit,
            },
            "parity": None,
        }
    )


def contract_text(contract: Mapping[str, Any]) -> str:
    """Return the contract as JSON; Python writes the shortest text that gives each double back exactly."""
    return json.dumps(plain_json(dict(contract)), allow_nan=False)


def write_contract(folder: Path, contract: Mapping[str, Any]) -> Path:
    """Write ``contract.json`` into ``folder`` in one step."""
    write_json(folder / FILE_NAME, dict(contract))
    return folder / FILE_NAME


def _inputs(num_obs: int, head: int | None) -> list[dict[str, Any]]:
    inputs: list[dict[str, Any]] = [{"name": INPUT, "shape": ["batch", num_obs], "dtype": "float32"}]
    if head is None:
        inputs.append({"name": HEAD_INPUT, "shape": ["batch"], "dtype": "int64"})
    return inputs


def _terms(terms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows, start = [], 0
    for term in terms:
        size = math.prod(term["shape"])
        rows.append(
            {
                "name": term["name"],
                "shape": term["shape"],
                "unit": term["unit"],
                "slice": [start, start + size],
                "scale": list(term.get("scale") or [1.0] * size),
                "offset": list(term.get("offset") or [0.0] * size),
                "clip": term.get("clip"),
                "description": term.get("description", ""),
                "parameters": term.get("parameters", {}),
            }
        )
        start += size
    return rows


def _robot(robot: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": robot.get("name"),
        "joint_names": robot.get("joint_names", []),
        "default_joint_pos": {"value": robot.get("default_joint_pos", []), "unit": "rad"},
        "stiffness": {"value": robot.get("stiffness", []), "unit": "N m/rad"},
        "damping": {"value": robot.get("damping", []), "unit": "N m s/rad"},
    }
