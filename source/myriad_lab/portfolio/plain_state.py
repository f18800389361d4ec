"""Training state as tensors and plain containers, which ``torch.load(weights_only=True)`` takes back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from myriad_lab.errors import CheckpointError


def plain_state(value: Any, where: str = "train_state") -> Any:
    """Return ``value`` with arrays as tensors, mappings as dicts, and views cut out of their storage.

    Raises:
        CheckpointError: If something else is in it; names the place and the type.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach()
        owned = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value if owned else value.clone()
    if isinstance(value, Mapping) or hasattr(value, "batch_size"):
        return {_key(k, where): plain_state(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(plain_state(v, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(value, list):
        return [plain_state(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise CheckpointError(f"{where} holds a {type(value).__name__}; expected tensors, arrays and plain containers")


def capture_rng_state() -> dict[str, Any]:
    """Return the states of the global generators of Python, NumPy, torch and CUDA, in plain form."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "kind": str(kind),
            "keys": [int(word) for word in keys],
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_rng_state(state: Mapping[str, Any]) -> None:
    """Restore what ``capture_rng_state`` returned; CUDA states only where as many devices are there."""
    python, numpy_state = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    keys = np.asarray(numpy_state["keys"], dtype=np.uint32)
    np.random.set_state(
        (numpy_state["kind"], keys, numpy_state["position"], numpy_state["has_gauss"], numpy_state["cached"])
    )
    torch.set_rng_state(state["torch"].cpu())
    cuda = state.get("cuda", [])
    if cuda and torch.cuda.is_available() and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all([s.cpu() for s in cuda])


def _key(key: Any, where: str) -> str | int:
    if isinstance(key, str | int):
        return key
    raise CheckpointError(f"{where} has the key {key!r} of type {type(key).__name__}; expected a string or a number")
