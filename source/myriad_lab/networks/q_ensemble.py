"""Twin critics of a population: two action values per head, all of them in one batched matmul per layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import layer_norm

from myriad_lab.errors import ConfigurationError, nearest
from myriad_lab.functional.collective import ALONE, Collective
from myriad_lab.networks.heads import stacked_xavier
from myriad_lab.networks.mlp import make_activation
from myriad_lab.networks.normalizer import RunningNormalizer

KINDS = ("scalar", "categorical")
"""What a critic returns: one value, or logits over a fixed support (C51, arXiv 1707.06887)."""


@dataclass
class QEnsembleCfg:
    """Shape of the critics."""

    hidden: list[int] = field(default_factory=lambda: [256, 256])
    """Widths of the hidden layers of each critic."""
    activation: str = "relu"
    """Activation: relu, tanh, elu, silu or gelu."""
    layer_norm: bool = True
    """Whether each hidden layer is normalised before its activation; keeps values of unseen actions bounded."""
    weight_norm: bool = False
    """Whether the weights of each unit of the hidden layers are brought back to length 1 after every update; the
    normalisation after them makes the output the same, and the step size stays what it is (arXiv 2407.01800)."""
    kind: str = "categorical"
    """``categorical`` or ``scalar``."""
    num_atoms: int = 101
    """Atoms of the categorical critic."""
    v_min: float = -5.0
    """Lowest value of the support, in scaled reward units."""
    v_max: float = 5.0
    """Highest value of the support, in scaled reward units."""
    obs_normalization: bool = True
    """Whether observations pass a running normaliser, part of the critic."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a value is out of range."""
        if self.kind not in KINDS:
            raise ConfigurationError(f"kind={self.kind!r} of the critic is unknown. {nearest(self.kind, KINDS)}")
        if self.kind == "categorical" and (self.num_atoms < 2 or not self.v_min < self.v_max):
            raise ConfigurationError(
                f"A categorical critic needs num_atoms >= 2 and v_min < v_max, got num_atoms={self.num_atoms}, "
                f"v_min={self.v_min}, v_max={self.v_max}."
            )
        if self.weight_norm and not self.layer_norm:
            raise ConfigurationError(
                "weight_norm=true of the critic needs layer_norm=true: without it the length of the weights matters."
            )
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigurationError(f"hidden={self.hidden} of the critic needs at least one width >= 1.")


class QEnsemble(nn.Module):
    """Two critics for each of ``num_policies`` heads; parameters are stacked ``[2 * num_policies, in, out]``.

    Rows ``2 i`` and ``2 i + 1`` of a parameter belong to head ``i``; heads share nothing but the normaliser.
    """

    support: torch.Tensor
    """Atoms of the categorical critic, (num_atoms,); a single 0 for the scalar one."""

    def __init__(
        self,
        num_obs: int,
        num_actions: int,
        num_policies: int,
        cfg: QEnsembleCfg,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        cfg.validate()
        self.num_obs, self.num_actions, self.num_policies, self.cfg = num_obs, num_actions, num_policies, cfg
        self.normalizer: nn.Module = RunningNormalizer(num_obs) if cfg.obs_normalization else nn.Identity()
        self.activation = make_activation(cfg.activation)
        categorical = cfg.kind == "categorical"
        sizes = [num_obs + num_actions, *cfg.hidden, cfg.num_atoms if categorical else 1]
        self.weights, self.biases, self.scales = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            last = layer == len(sizes) - 2
            # a small last layer: before any reward is seen all actions look alike, and the actor has no slope to follow
            gain = 0.01 if last else 1.0
            self.weights.append(stacked_xavier(2 * num_policies, fan_in, fan_out, gain, generator))
            self.biases.append(torch.zeros(2 * num_policies, 1, fan_out))
            if cfg.layer_norm and not last:
                self.scales.append(torch.ones(2 * num_policies, 1, fan_out))
        support = torch.linspace(cfg.v_min, cfg.v_max, cfg.num_atoms) if categorical else torch.zeros(1)
        self.register_buffer("support", support, persistent=False)
        self.project_weights()

    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Return the raw outputs of both critics of every head.

        Args:
            obs: Critic observations, (num_policies, batch, num_obs).
            actions: Actions in [-1, 1], (num_policies, batch, num_actions).

        Returns:
            Values (num_policies, 2, batch), or logits (num_policies, 2, batch, num_atoms).
        """
        inputs, kind = self.normalizer(obs), obs.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
        # one type throughout: autocast would normalise and add biases in float32, and cast back for every product
        with torch.autocast(kind, enabled=False):
            out = self._layers(inputs.to(dtype), actions.to(dtype))
        out = out.to(inputs.dtype).unflatten(0, (self.num_policies, 2))
        return out if self.cfg.kind == "categorical" else out.squeeze(-1)

    def _layers(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Return the outputs, (2 * num_policies, batch, num_outputs), of inputs whose type is that of the products."""
        dtype, hidden = obs.dtype, obs
        for layer, (weight, bias) in enumerate(zip(list(self.weights)[:-1], list(self.biases)[:-1], strict=True)):
            weight, bias = weight.to(dtype), bias.to(dtype)
            # where a normalisation follows the product, the bias comes after it
            inner = None if self.cfg.layer_norm else bias
            product = _product(hidden, weight, inner) if layer else self._first_product(obs, actions, weight, inner)
            if self.cfg.layer_norm:
                normal = layer_norm(product, product.shape[-1:])
                product = torch.addcmul(bias, normal, self.scales[layer].to(dtype))
            hidden = self.activation(product)
        # a value rounded to 8 bits would be off by as much as many a temporal difference is large
        last = self.weights[-1].dtype if self.cfg.kind == "scalar" else dtype
        return _product(hidden.to(last), self.weights[-1].to(last), self.biases[-1].to(last))

    def _first_product(
        self, obs: torch.Tensor, actions: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return observations and actions times the first weights, (2 * num_policies, batch, hidden)."""
        if not actions.requires_grad:
            return _product(torch.cat([obs, actions], dim=-1).repeat_interleave(2, dim=0), weight, bias)
        # a policy update asks for the slope along the actions alone: most of the first layer has no backward pass
        of_obs = _product(obs.repeat_interleave(2, dim=0), weight[:, : self.num_obs], bias)
        return torch.baddbmm(of_obs, actions.repeat_interleave(2, dim=0), weight[:, self.num_obs :])

    def values(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Return the expected values of both critics of every head, (num_policies, 2, batch)."""
        return self.expectation(self(obs, actions))

    def expectation(self, raw: torch.Tensor) -> torch.Tensor:
        """Turn raw outputs into expected values, (num_policies, 2, batch)."""
        return raw if self.cfg.kind == "scalar" else (raw.softmax(-1) * self.support).sum(-1)

    @torch.no_grad()
    def project_weights(self) -> None:
        """Bring the incoming weights of every hidden unit to length 1, if the configuration says so."""
        if self.cfg.weight_norm:
            for weight in list(self.weights)[:-1]:
                weight.div_(torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def update_normalizer(self, obs: torch.Tensor, ranks: Collective = ALONE) -> None:
        """Merge observations ``(..., num_obs)`` of all ranks into the running statistics, if the critics keep any."""
        if isinstance(self.normalizer, RunningNormalizer):
            self.normalizer.update(obs, ranks)

    @torch.no_grad()
    def take_statistics(self, other: QEnsemble) -> None:
        """Take over the running statistics of critics that saw what these did."""
        for mine, theirs in zip(self.normalizer.buffers(), other.normalizer.buffers(), strict=True):
            mine.copy_(theirs)

    def select(self, head_ids: Sequence[int]) -> QEnsemble:
        """Return a copy whose head ``j`` has the two critics of head ``head_ids[j]``; repeats are allowed."""
        rows, stacked = self.rows(head_ids), self.stacked_names()
        # The initial weights are overwritten; drawing them must not move the global generator.
        copy = QEnsemble(self.num_obs, self.num_actions, len(head_ids), self.cfg, torch.Generator())
        copy.load_state_dict({k: v[rows] if k in stacked else v for k, v in self.state_dict().items()})
        return copy.to(self.support.device)

    def stacked_names(self) -> list[str]:
        """Return the names of the parameters with rows for each head: all of them."""
        return [name for name, _ in self.named_parameters()]

    @staticmethod
    def rows(head_ids: Sequence[int]) -> list[int]:
        """Return the rows of the stacked parameters that belong to the given heads."""
        return [2 * i + c for i in head_ids for c in (0, 1)]


def _product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return a batched product, with a bias or without."""
    return torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias, rows, weight)
