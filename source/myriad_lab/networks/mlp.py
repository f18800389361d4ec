"""Plain multilayer perceptrons, the shared part of every network here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import nn

from myriad_lab.errors import ConfigurationError, nearest

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
"""Activations by the name used in configurations."""


def make_activation(name: str) -> nn.Module:
    """Return a new activation module.

    Raises:
        ConfigurationError: If no activation has this name.
    """
    if name not in ACTIVATIONS:
        raise ConfigurationError(f"activation={name!r} is unknown. {nearest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def xavier_linear(num_inputs: int, num_outputs: int, generator: torch.Generator | None = None) -> nn.Linear:
    """Return a linear layer with Xavier-uniform weights and zero bias."""
    layer = nn.Linear(num_inputs, num_outputs)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Sequential):
    """Linear layers, each followed by the activation; the last one too unless ``num_outputs`` is given.

    Maps ``(..., num_inputs)`` to ``(..., num_outputs)``, or to ``(..., hidden[-1])`` where ``num_outputs`` is ``None``.
    """

    def __init__(
        self,
        num_inputs: int,
        hidden: Sequence[int],
        num_outputs: int | None = None,
        activation: str = "relu",
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = [num_inputs, *hidden]
        if any(size < 1 for size in sizes):
            raise ConfigurationError(f"layer sizes {sizes} must all be at least 1")
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [xavier_linear(fan_in, fan_out, generator), make_activation(activation)]
        if num_outputs is not None:
            layers.append(xavier_linear(sizes[-1], num_outputs, generator))
        super().__init__(*layers)
        self.num_inputs = num_inputs
        self.num_outputs = sizes[-1] if num_outputs is None else num_outputs
