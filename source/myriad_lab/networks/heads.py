"""Heads of a population: stacked parameters applied to all policies by one batched matmul."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from myriad_lab.errors import ConfigurationError, nearest
from myriad_lab.networks.mlp import make_activation

ADAPTERS = ("full", "film", "low_rank", "none")
"""Kinds of per-head adapter, see ``StackedHeads``."""


def stacked_xavier(
    num_heads: int, fan_in: int, fan_out: int, gain: float = 1.0, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Return ``(num_heads, fan_in, fan_out)`` weights, Xavier-uniform for each head on its own."""
    bound = gain * math.sqrt(6.0 / (fan_in + fan_out))
    return (torch.rand(num_heads, fan_in, fan_out, generator=generator) * 2.0 - 1.0) * bound


class StackedHeads(nn.Module):
    """One adapter and one linear output layer per head.

    Adapters, all followed by the activation (``none`` excepted):

    * ``full``: a dense layer per head, ``[num_heads, num_inputs, adapter_dim]`` (K-Myriad);
    * ``low_rank``: one shared dense layer plus a rank-``r`` correction per head;
    * ``film``: one shared dense layer, then a scale and a shift per head (FiLM, arXiv 1709.07871), then one shared
      output layer with a bias per head;
    * ``none``: the output layer reads the trunk.

    ``low_rank`` and ``film`` depart from the paper. They are for populations of thousands, where full adapters and
    their Adam state would take gigabytes; and under ``film`` the heads start almost equal and learn whatever they have
    in common, a gait, from each other's samples.
    """

    def __init__(
        self,
        num_inputs: int,
        outputs: Sequence[tuple[int, float]],
        num_heads: int,
        *,
        adapter: str = "full",
        adapter_dim: int = 256,
        adapter_rank: int = 16,
        activation: str = "relu",
        generator: torch.Generator | None = None,
    ) -> None:
        """Create the heads.

        Args:
            num_inputs: Width of the trunk's output.
            outputs: Width and Xavier gain of each output block; the blocks are concatenated.
            num_heads: Number of policies m.
            adapter: One of ``ADAPTERS``.
            adapter_dim: Width of the adapter.
            adapter_rank: Rank of the ``low_rank`` correction.
            activation: Activation after the adapter.
            generator: Source of the initial weights.

        Raises:
            ConfigurationError: If ``adapter`` is unknown.
        """
        super().__init__()
        if adapter not in ADAPTERS:
            raise ConfigurationError(f"adapter={adapter!r} is unknown. {nearest(adapter, ADAPTERS)}")
        self.num_heads = num_heads
        self.adapter = adapter
        self.activation = make_activation(activation)
        width = num_inputs if adapter == "none" else adapter_dim

        def stacked(fan_in: int, fan_out: int, gain: float = 1.0) -> nn.Parameter:
            return nn.Parameter(stacked_xavier(num_heads, fan_in, fan_out, gain, generator))

        if adapter in ("low_rank", "film"):
            self.shared_weight = nn.Parameter(stacked_xavier(1, num_inputs, adapter_dim, 1.0, generator)[0])
        if adapter == "full":
            self.adapter_weight = stacked(num_inputs, adapter_dim)
        if adapter == "low_rank":
            self.adapter_down = stacked(num_inputs, adapter_rank)
            self.adapter_up = stacked(adapter_rank, adapter_dim)
        if adapter == "film":
            self.adapter_scale = nn.Parameter(1.0 + 0.1 * stacked_xavier(num_heads, 1, adapter_dim, 1.0, generator))
        if adapter != "none":
            self.adapter_bias = nn.Parameter(torch.zeros(num_heads, 1, adapter_dim))
        self._shared = {"shared_weight", "out_weight"} if adapter == "film" else {"shared_weight"}
        num_outputs = 1 if adapter == "film" else num_heads
        blocks = [stacked_xavier(num_outputs, width, size, gain, generator) for size, gain in outputs]
        self.out_weight = nn.Parameter(torch.cat(blocks, dim=-1))
        self.out_bias = nn.Parameter(torch.zeros(num_heads, 1, self.out_weight.shape[-1]))

    def stacked_names(self) -> list[str]:
        """Return the names of the parameters whose first axis is the head."""
        return [name for name, _ in self.named_parameters() if name not in self._shared]

    def keep(self, heads: slice) -> None:
        """Forget all heads but these."""
        for name in self.stacked_names():
            setattr(self, name, nn.Parameter(self.get_parameter(name).detach()[heads].clone()))
        self.num_heads = len(self.out_bias)

    def forward(self, hidden: torch.Tensor, head_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Apply head ``i`` to the rows ``hidden[i]``.

        Args:
            hidden: Output of the trunk, shape (num_heads, rows, num_inputs), or (b, rows, num_inputs) with
                ``head_ids``.
            head_ids: Head of each block of rows, long (b,); ``None`` means heads in order.

        Returns:
            Outputs, shape (num_heads or b, rows, num_outputs), in the type of the parameters even under autocast: the
            mean of a policy with little noise must not be rounded to bfloat16.
        """
        adapted = self._adapt(hidden, head_ids)
        if not torch.is_autocast_enabled(adapted.device.type):
            return self._put_out(adapted, head_ids)
        with torch.autocast(adapted.device.type, enabled=False):
            return self._put_out(adapted.to(self.out_weight.dtype), head_ids)

    def adapter_matrix(self, head: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the adapter of one head as a dense ``(num_inputs, adapter_dim)`` matrix and bias ``(adapter_dim,)``.

        Raises:
            ConfigurationError: If the heads have no adapter.
        """
        if self.adapter == "full":
            weight = self.adapter_weight[head]
        elif self.adapter == "low_rank":
            weight = self.shared_weight + self.adapter_down[head] @ self.adapter_up[head]
        elif self.adapter == "film":
            weight = self.shared_weight * self.adapter_scale[head]
        else:
            raise ConfigurationError("heads with adapter='none' have no adapter matrix")
        return weight, self.adapter_bias[head, 0]

    def _adapt(self, hidden: torch.Tensor, head_ids: torch.Tensor | None) -> torch.Tensor:
        if self.adapter == "none":
            return hidden
        bias = self._pick(self.adapter_bias, head_ids)
        if self.adapter == "full":
            return self.activation(torch.baddbmm(bias, hidden, self._pick(self.adapter_weight, head_ids)))
        shared = hidden @ self.shared_weight
        if self.adapter == "film":
            return self.activation(torch.addcmul(bias, shared, self._pick(self.adapter_scale, head_ids)))
        down = torch.bmm(hidden, self._pick(self.adapter_down, head_ids))
        return self.activation(shared + torch.baddbmm(bias, down, self._pick(self.adapter_up, head_ids)))

    def _put_out(self, adapted: torch.Tensor, head_ids: torch.Tensor | None) -> torch.Tensor:
        bias = self._pick(self.out_bias, head_ids)
        if self.adapter == "film":
            return adapted @ self.out_weight[0] + bias
        return torch.baddbmm(bias, adapted, self._pick(self.out_weight, head_ids))

    @staticmethod
    def _pick(parameter: torch.Tensor, head_ids: torch.Tensor | None) -> torch.Tensor:
        return parameter if head_ids is None else parameter[head_ids]
