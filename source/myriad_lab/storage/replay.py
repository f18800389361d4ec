"""Replay memory ``[slot, env, ...]``: every observation stored once, n-step windows read at sampling time."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch

from myriad_lab.errors import CheckpointError, ConfigurationError
from myriad_lab.storage.replay_batch import ReplayBatch

logger = logging.getLogger(__name__)

_TERMINATED, _TIME_OUT, _VALID = 1, 2, 4
_OBS = "ring/obs/"  # saved with a slot more than the rest: the one after the newest step has the newest observation
_BLOCK_BYTES = 2**28  # copied to or from a GPU at once
_TICKETS = 2**31  # slots keep them in int32, so they begin again at 0 after so many ends of episodes


class ReplayBuffer:
    """A ring of env steps, preallocated on the device and poisoned with NaN.

    Slot t holds what was seen and done at step t; the observation after it is that of slot t + 1. The true last
    observations of finished episodes live in a side table of ``final_capacity`` rows; each slot keeps an int32 ticket
    into it, and a ticket whose row was overwritten is known to be dead. Neither writing nor sampling waits for the
    device: the ring's head and size are device tensors.

    Args:
        capacity_steps: Env steps kept, per env.
        num_envs: Envs written per step; env e belongs to head ``e // (num_envs // num_policies)``.
        num_policies: Heads; must divide ``num_envs``.
        obs_sizes: Group -> width of the groups to store.
        num_actions: Width of the actions.
        device: Where the memory lives.
        dtype: Of observations and actions; rewards are always float32.
        final_capacity: Rows of the side table; ``None`` means one row per 16 transitions, at least ``2 * num_envs``.
        guard_slots: Extra slots between the newest and the oldest sampled step, for a writer in another process: it
            may run that many steps ahead during one sample without touching what is read.

    Raises:
        ConfigurationError: If a size is not positive or the heads do not divide the envs.
    """

    def __init__(
        self,
        capacity_steps: int,
        num_envs: int,
        num_policies: int,
        obs_sizes: dict[str, int],
        num_actions: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        final_capacity: int | None = None,
        guard_slots: int = 0,
    ) -> None:
        if capacity_steps < 1 or num_envs < 1 or num_policies < 1 or num_envs % num_policies:
            raise ConfigurationError(
                f"A replay memory needs capacity_steps >= 1 and num_policies dividing num_envs, got capacity_steps="
                f"{capacity_steps}, num_envs={num_envs}, num_policies={num_policies}; change one of them."
            )
        self.capacity_steps, self.num_envs, self.num_policies = capacity_steps, num_envs, num_policies
        self.obs_sizes, self.num_actions = dict(obs_sizes), num_actions
        self.device, self.dtype = torch.empty(0, device=device).device, dtype
        self.num_slots = capacity_steps + 1 + guard_slots
        default_rows = max(2 * num_envs, math.ceil(capacity_steps * num_envs / 16))
        self.final_capacity = max(num_envs, default_rows if final_capacity is None else final_capacity)
        self.final_rows = self.final_capacity + guard_slots * num_envs
        if self.device.type != "meta":  # where it takes no memory, somebody only asks for its size
            told = (capacity_steps, num_envs, self.num_bytes / 2**20, self.bytes_per_transition)
            logger.info("Replay memory of %d x %d steps: %.1f MiB, %.0f B per transition", *told)
        self._allocate()

    @property
    def num_bytes(self) -> int:
        """Size of the memory [B], known before it is allocated."""
        item = torch.empty((), dtype=self.dtype).element_size()
        row = item * (sum(self.obs_sizes.values()) + self.num_actions)
        return self.num_slots * self.num_envs * (row + 4 + 4 + 1) + (self.final_rows + 1) * row

    @property
    def bytes_per_transition(self) -> float:
        """Size of the memory over the transitions it keeps [B], side table and guard slots included."""
        return self.num_bytes / (self.capacity_steps * self.num_envs)

    @property
    def num_steps(self) -> int:
        """Env steps written and still kept, as counted by the process that writes."""
        return self._host_size

    def write(
        self,
        obs: Mapping[str, torch.Tensor],
        actions: torch.Tensor,
        rewards: torch.Tensor,
        terminated: torch.Tensor,
        time_outs: torch.Tensor,
        next_obs: Mapping[str, torch.Tensor],
        final_obs: Mapping[str, torch.Tensor] | None,
        valid: torch.Tensor,
    ) -> None:
        """Append one step of all envs; see ``algorithms.algorithm.Step`` for the meaning and shape of each tensor.

        ``obs`` is read only where the step does not follow from the one written before.

        Raises:
            ConfigurationError: If there are no final observations, or the actions have another shape.
        """
        if final_obs is None:
            raise ConfigurationError(
                "The replay memory needs the true last observation of finished episodes, and this env gives none: "
                "build it with final_obs=True."
            )
        if actions.shape != (self.num_envs, self.num_actions):
            raise ConfigurationError(
                f"Expected actions of shape {(self.num_envs, self.num_actions)}, got {tuple(actions.shape)}."
            )
        here, after = self._host_head, (self._host_head + 1) % self.num_slots
        ended = (terminated | time_outs) & valid
        rank = torch.cumsum(ended, 0, dtype=torch.int64)
        tickets = self._tickets_issued + rank - 1
        # rows that did not end all go to one extra row, so that the number of ends never has to reach the host
        rows = torch.where(ended, tickets % self.final_rows, self.final_rows)
        for group, memory in self._obs.items():
            if not self._continues:
                memory[here].copy_(obs[group])
            memory[after].copy_(next_obs[group])
            self._final_obs[group].index_copy_(0, rows, final_obs[group].to(memory))
        self._actions[here].copy_(actions)
        self._rewards[here].copy_(torch.where(valid, rewards, 0.0))
        self._tickets[here].copy_(torch.where(ended, tickets % _TICKETS, -1))
        self._flags[here].copy_(terminated * _TERMINATED + time_outs * _TIME_OUT + valid * _VALID)
        self._tickets_issued += rank[-1]
        self._advance(after)

    def cut(self) -> None:
        """Tell that the next step does not follow from the last one, as after a reset from outside.

        The last step is no longer sampled: what came after it is about to be overwritten.
        """
        if self._host_size:
            self._flags[(self._host_head - 1) % self.num_slots] = 0
        self._continues = False

    def regroup(self, num_policies: int) -> None:
        """Hand the envs to another number of heads: a head's own rows are those of its envs, whoever drove them before.

        Raises:
            ConfigurationError: If the heads do not divide the envs.
        """
        if num_policies < 1 or self.num_envs % num_policies:
            raise ConfigurationError(f"{num_policies} heads do not divide num_envs={self.num_envs}.")
        self.num_policies = num_policies

    def sample(
        self,
        batch_per_policy: int,
        generator: torch.Generator,
        *,
        own_fraction: float = 1.0,
        n_step: int = 1,
        gamma: float = 0.99,
    ) -> ReplayBatch:
        """Draw windows for every head, each from its own envs with probability ``own_fraction``, else from all."""
        ages, draw = self._draw(batch_per_policy, generator)
        block = self.num_envs // self.num_policies
        first = torch.arange(self.num_policies, device=self.device).unsqueeze(1) * block
        own = torch.rand(draw.shape, generator=generator, device=self.device) < own_fraction
        envs = torch.where(own, first + _uniform_index(draw, block), _uniform_index(draw, self.num_envs))
        return self._gather(ages, envs, n_step, gamma)

    def share_memory_(self) -> ReplayBuffer:
        """Move the memory to shared memory (CPU); memory on a GPU is shared by handle without this."""
        for tensor in self._tensors().values():
            tensor.share_memory_()
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return the steps kept, oldest first, the last observations and the counters; tensors are on the CPU.

        A memory may fill more than half of a GPU, which has no room for a second one then.
        """
        rest = {**self._final_parts(), "tickets_issued": self._tickets_issued}
        return {
            **{key: self._kept(memory, key.startswith(_OBS)) for key, memory in self._ring_parts().items()},
            **{key: value.to("cpu", copy=True) for key, value in rest.items()},
            "size": self._host_size,
            "continues": self._continues,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; ring and side table may have another number of rows.

        Raises:
            CheckpointError: If the memory holds more steps than this one keeps, or other rows.
        """
        held = int(state["size"])
        head = int(state.get("head", held))  # older bundles have all slots, in the order of the ring
        if held > self.capacity_steps:
            raise CheckpointError(
                f"The saved replay memory holds {held} steps, not {self.capacity_steps}: raise replay_capacity."
            )
        for key, memory in (self._ring_parts() | self._final_parts()).items():
            saved = state.get(key)
            if saved is None or saved.shape[1:] != memory.shape[1:]:
                raise CheckpointError(
                    f"The saved replay memory does not fit: {key} should be {(-1, *memory.shape[1:])}, and is "
                    f"{None if saved is None else tuple(saved.shape)}."
                )
        for key, memory in self._ring_parts().items():
            _unroll(state[key], head - held, memory[: held + key.startswith(_OBS)])
        self._tickets_issued.copy_(state["tickets_issued"])
        self._host_head = self._host_size = held
        self._head.fill_(held)
        self._size.fill_(held)
        self._continues = bool(state["continues"])
        self._restore_final_obs({group: state[f"final/{group}"] for group in self._final_obs})

    def _kept(self, memory: torch.Tensor, with_newest: bool) -> torch.Tensor:
        slots = torch.empty((self._host_size + with_newest, *memory.shape[1:]), dtype=memory.dtype)
        _unroll(memory, self._host_head - self._host_size, slots)
        return slots

    def _restore_final_obs(self, saved: dict[str, torch.Tensor]) -> None:
        """Put each last observation where a table of this size has the row of its ticket."""
        issued, saved_rows = int(self._tickets_issued), len(next(iter(saved.values()))) - 1
        oldest = max(0, issued - min(saved_rows, self.final_rows))
        tickets = torch.arange(oldest, issued, device=self.device)
        for group, memory in self._final_obs.items():
            memory[tickets % self.final_rows] = saved[group].to(memory)[tickets % saved_rows]
        # a larger table would take the older ones for alive
        self._tickets[(issued - self._tickets.long()) % _TICKETS > issued - oldest] = -1

    def _allocate(self) -> None:
        shape = (self.num_slots, self.num_envs)

        def poison(*size: int) -> torch.Tensor:
            return torch.full(size, math.nan, dtype=self.dtype, device=self.device)

        # ring and side table are parts of one tensor: the observation after a window is one gather, wherever it lies,
        # and so are all groups of the one before it and its action
        ring, widths = self.num_slots * self.num_envs, [*self.obs_sizes.values(), self.num_actions]
        self._rows = poison(ring + self.final_rows + 1, sum(widths))
        *groups, self._actions = self._rows[:ring].view(*shape, -1).split(widths, -1)
        self._obs = dict(zip(self.obs_sizes, groups, strict=True))
        self._final_obs = dict(zip(self.obs_sizes, self._rows[ring:].split(widths, -1), strict=False))
        self._rewards = torch.full(shape, math.nan, device=self.device)
        self._flags = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        self._tickets = torch.full(shape, -1, dtype=torch.int32, device=self.device)
        self._tickets_issued = torch.zeros((), dtype=torch.int64, device=self.device)
        self._head, self._size = self._tickets_issued.clone(), self._tickets_issued.clone()
        self._host_head, self._host_size, self._continues = 0, 0, False

    def _ring_parts(self) -> dict[str, torch.Tensor]:
        ring = {"actions": self._actions, "rewards": self._rewards, "flags": self._flags, "tickets": self._tickets}
        obs = {f"{_OBS}{group}": memory for group, memory in self._obs.items()}
        return obs | {f"ring/{key}": memory for key, memory in ring.items()}

    def _final_parts(self) -> dict[str, torch.Tensor]:
        return {f"final/{group}": memory for group, memory in self._final_obs.items()}

    def _tensors(self) -> dict[str, torch.Tensor]:
        counters = {"tickets_issued": self._tickets_issued, "head": self._head, "size": self._size}
        return self._ring_parts() | self._final_parts() | counters

    def _advance(self, after: int) -> None:
        self._host_head, self._host_size = after, min(self._host_size + 1, self.capacity_steps)
        self._continues = True
        # published last, and the size after the head: readers take the size first and look as many steps behind it
        self._head.fill_(after)
        self._size.fill_(self._host_size)

    def _draw(self, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (2, self.num_policies, batch)
        draw = torch.rand(shape, generator=generator, device=self.device, dtype=torch.float64)
        return _uniform_index(draw[0], self._size.clamp_min(1)) + 1, draw[1]

    def _gather(self, ages: torch.Tensor, env_ids: torch.Tensor, n_step: int, gamma: float) -> ReplayBatch:
        """Read the windows that start ``ages`` steps ago (1 is the newest) in ``env_ids``."""
        start = self._head - ages
        # once, and after the head, which a writer beside us publishes later
        issued = self._tickets_issued.clone()
        offsets = torch.arange(n_step, device=self.device)
        rows = (start.unsqueeze(-1) + offsets) % self.num_slots * self.num_envs + env_ids.unsqueeze(-1)
        flags = _pick(self._flags.view(-1), rows)
        ended = (flags & (_TERMINATED | _TIME_OUT)) != 0
        usable = ((flags & _VALID) != 0) & (offsets < ages.unsqueeze(-1))
        # a step belongs to the window while it and all before it are usable and none before it ended
        follows = torch.ones_like(usable)
        follows[..., 1:] = (usable & ~ended)[..., :-1]
        inside = (usable & follows.cumprod(-1).bool()).cumprod(-1).bool()
        steps = inside.sum(-1)
        powers = gamma ** torch.arange(n_step + 1, device=self.device, dtype=torch.float32)
        rewards = torch.where(inside, _pick(self._rewards.view(-1), rows), 0.0).mul(powers[:-1]).sum(-1)
        last_row = rows.gather(-1, (steps - 1).clamp_min(0).unsqueeze(-1)).squeeze(-1)
        last_flags = torch.where(steps > 0, _pick(self._flags.view(-1), last_row), 0)
        terminated, time_out = (last_flags & _TERMINATED) != 0, (last_flags & _TIME_OUT) != 0
        tickets = _pick(self._tickets.view(-1), last_row).to(torch.int64)
        ends_ago = (issued - tickets) % _TICKETS
        alive = (tickets >= 0) & (ends_ago <= self.final_capacity)
        from_table = (terminated | time_out) & alive
        table_rows = self.num_slots * self.num_envs + (issued - ends_ago) % self.final_rows
        next_rows = (start + steps) % self.num_slots * self.num_envs + env_ids
        next_rows = torch.where(from_table, table_rows, next_rows)
        widths = list(self.obs_sizes.values())
        *obs, actions = _pick(self._rows, rows[..., 0]).float().split([*widths, self.num_actions], -1)
        next_obs = _pick(self._rows[:, : sum(widths)], next_rows).float().split(widths, -1)
        return ReplayBatch(
            obs=dict(zip(self.obs_sizes, obs, strict=True)),
            actions=actions,
            rewards=rewards,
            next_obs=dict(zip(self.obs_sizes, next_obs, strict=True)),
            discounts=torch.where(terminated, 0.0, _pick(powers, steps)),
            steps=steps,
            weights=((steps > 0) & ~(time_out & ~alive)).float(),
            env_ids=env_ids,
        )


def _pick(memory: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return rows of ``memory`` (rows, ...) at an index of any shape; several times faster than ``memory[index]``."""
    return memory.index_select(0, index.reshape(-1)).unflatten(0, index.shape)


def _unroll(ring: torch.Tensor, first: int, slots: torch.Tensor) -> None:
    """Copy as many slots of a ring as ``slots`` has, from number ``first`` on, which may count from its end.

    In blocks: columns of a row lie apart, and torch gathers those on a GPU before it sends them.
    """
    block = max(1, _BLOCK_BYTES * len(slots) // max(1, slots.nbytes))
    done = 0
    while done < len(slots):
        start = (first + done) % len(ring)
        stop = min(start + min(block, len(slots) - done), len(ring))
        slots[done : done + stop - start].copy_(ring[start:stop])
        done += stop - start


def _uniform_index(draw: torch.Tensor, high: int | torch.Tensor) -> torch.Tensor:
    """Map uniform numbers in [0, 1) to integers in [0, high), without asking the device for ``high``."""
    return (draw * high).to(torch.int64).clamp_max(high - 1) if isinstance(high, int) else (draw * high).to(torch.int64)
