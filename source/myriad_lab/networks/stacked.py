"""The state of networks with rows for each head, of which every rank has its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from myriad_lab.functional.collective import Collective


class Stacked(Protocol):
    """A network with rows for each head."""

    def stacked_names(self) -> list[str]:
        """Return the names of the parameters whose first axis is the head; all others are shared."""
        ...

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """Return parameters and buffers."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor]) -> Any:
        """Restore them."""
        ...


def collect_state(network: Stacked, ranks: Collective) -> dict[str, torch.Tensor]:
    """Return the state dict of a network with the heads of all ranks; see ``Collective.collect_rows``."""
    stacked = network.stacked_names()
    return {k: ranks.collect_rows(v) if k in stacked else v for k, v in network.state_dict().items()}


def load_own_state(network: Stacked, state: Mapping[str, torch.Tensor], ranks: Collective) -> None:
    """Load this rank's heads, and all that is shared, from a state dict with the heads of all ranks.

    Raises:
        RuntimeError: If it belongs to another network.
    """
    stacked = network.stacked_names()
    network.load_state_dict({k: ranks.own_rows(v) if k in stacked else v for k, v in state.items()})
