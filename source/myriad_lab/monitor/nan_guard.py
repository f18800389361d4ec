"""Stop a run at the first number that is not finite, and say where it came from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

_SHOWN = 8
_MEND_LEARNING = "the learning rate is too high or an observation is out of scale: lower it, or set obs_normalization"
_LAST_CHECKPOINT = "The last checkpoint is from before this."


class Term(Protocol):
    """One named term of an observation group, as ``envs.contract.TermSpec``."""

    @property
    def name(self) -> str:
        """Name of the term."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the term of one env."""
        ...

    @property
    def unit(self) -> str:
        """Unit of the term."""
        ...


class NanGuardError(FloatingPointError):
    """NaN or infinity in observations, rewards, actions, losses or networks."""


def check_metrics(metrics: Mapping[str, float], names: Sequence[str]) -> None:
    """Check logged numbers, once an iteration: they are on the host already.

    Args:
        metrics: What is logged.
        names: Those to check, as far as they are there.

    Raises:
        NanGuardError: If one is not finite.
    """
    bad = {name: metrics[name] for name in names if name in metrics and not math.isfinite(metrics[name])}
    if bad:
        told = ", ".join(f"{name}={value}" for name, value in bad.items())
        raise NanGuardError(f"not finite: {told}. What to do: {_MEND_LEARNING}. {_LAST_CHECKPOINT}")


def check_state(state: Any) -> None:
    """Check all floating-point tensors of a nested state, as of networks and optimisers, before it is written.

    Raises:
        NanGuardError: If one is not finite; names it.
    """
    for name, tensor in _tensors(state):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NanGuardError(f"not finite: {name}. What to do: {_MEND_LEARNING}. {_LAST_CHECKPOINT}")


def _tensors(state: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (dotted name, tensor) of everything in a nested state."""
    if isinstance(state, torch.Tensor):
        yield name, state
    elif isinstance(state, Mapping | list | tuple):
        items = state.items() if isinstance(state, Mapping) else enumerate(state)
        for key, value in items:
            yield from _tensors(value, f"{name}.{key}" if name else str(key))


class NanGuard:
    """Checks one env step at a time; every check waits for the device, once.

    Rows that the env reported as diverged are not looked at: they never reach a buffer.
    """

    def __init__(self, observations: Mapping[str, Sequence[Term]], num_envs: int, num_policies: int) -> None:
        """Take the terms of each observation group, to name them, and the sizes of the population."""
        self.observations = observations
        self.envs_per_policy = max(num_envs // num_policies, 1)

    def check(
        self,
        actions: torch.Tensor,
        rewards: torch.Tensor,
        observations: Mapping[str, torch.Tensor],
        valid: torch.Tensor,
    ) -> None:
        """Check the valid rows of a step.

        Args:
            actions: Shape (num_envs, num_actions).
            rewards: Shape (num_envs,).
            observations: Group to tensor (num_envs, size).
            valid: Rows to check, bool (num_envs,).

        Raises:
            NanGuardError: If one is not finite; names env ids, policy ids, the term, and what to do.
        """
        named = {("actions", ""): actions, ("rewards", ""): rewards.unsqueeze(-1)}
        named |= {(f"observation group {group!r}", group): values for group, values in observations.items()}
        bad = {names: ~torch.isfinite(values) & valid.unsqueeze(-1) for names, values in named.items()}
        if not bool(torch.stack([rows.any() for rows in bad.values()]).any()):
            return
        for names, rows in bad.items():
            if bool(rows.any()):
                raise NanGuardError(self._message(*names, rows))

    def _message(self, label: str, group: str, bad: torch.Tensor) -> str:
        env_ids = bad.any(-1).nonzero().flatten().tolist()
        policy_ids = sorted({env // self.envs_per_policy for env in env_ids})
        terms = self._terms(group, bad.any(0).nonzero().flatten().tolist())
        where = f"{label}, {terms}" if terms else label
        mend = (
            _MEND_LEARNING
            if label == "actions"
            else "the task computed it from a finite state: look for a division, a root or a logarithm in that term"
        )
        return (
            f"not finite: {where}; {len(env_ids)} of {bad.shape[0]} envs, env ids {_some(env_ids)}, policy ids"
            f" {_some(policy_ids)}. What to do: {mend}. {_LAST_CHECKPOINT}"
        )

    def _terms(self, group: str, columns: list[int]) -> str:
        if group not in self.observations:
            return f"columns {_some(columns)}" if group else ""
        names, start = [], 0
        for term in self.observations[group]:
            stop = start + torch.Size(term.shape).numel()
            inside = [column - start for column in columns if start <= column < stop]
            if inside:
                names.append(f"term {term.name!r} [{term.unit}] entries {_some(inside)}")
            start = stop
        return ", ".join(names)


def _some(numbers: list[int]) -> str:
    shown = ", ".join(str(n) for n in numbers[:_SHOWN])
    return shown + (f", ... ({len(numbers)} in all)" if len(numbers) > _SHOWN else "")
