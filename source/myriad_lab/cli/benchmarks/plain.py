"""What somebody would write without this package: the peers of learner and replay memory, in plain torch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import mse_loss


class PlainTD3:
    """Twin critics and a deterministic policy of one head, a module for each, eager, with torch's fused AdamW.

    The same mathematics as a head of PQL with scalar critics and a fixed normaliser.

    Args:
        num_obs: Width of the observation.
        num_actions: Width of the action.
        hidden: Hidden widths of all networks.
        device: Where they live.
        mixed_precision: Whether forward passes run in bfloat16.
    """

    def __init__(
        self, num_obs: int, num_actions: int, hidden: Sequence[int], device: str, mixed_precision: bool = False
    ) -> None:
        self.actor = nn.Sequential(_mlp([num_obs, *hidden, num_actions]), nn.Tanh()).to(device)
        self.critics = nn.ModuleList(_mlp([num_obs + num_actions, *hidden, 1]) for _ in range(2)).to(device)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.mean, self.scale = torch.zeros(num_obs, device=device), torch.ones(num_obs, device=device)
        self.actor_optimizer = torch.optim.AdamW(self.actor.parameters(), 3e-4, fused=True)
        self.critic_optimizer = torch.optim.AdamW(self.critics.parameters(), 3e-4, fused=True)
        self._precision = (torch.device(device).type, mixed_precision)

    def value_update(
        self,
        obs: torch.Tensor,
        actions: torch.Tensor,
        rewards: torch.Tensor,
        next_obs: torch.Tensor,
        discounts: torch.Tensor,
    ) -> torch.Tensor:
        """Take one step on both critics and their targets; tensors ``(batch, ...)``."""
        with self._autocast():
            with torch.no_grad():
                after = self._normal(next_obs)
                following = torch.cat([after, self.actor(after)], dim=-1)
                value = torch.minimum(*(critic(following).float() for critic in self.targets)).squeeze(-1)
                target = rewards + discounts * value
            inputs = torch.cat([self._normal(obs), actions], dim=-1)
            values = [critic(inputs).float().squeeze(-1) for critic in self.critics]
        loss = sum((mse_loss(value, target) for value in values), torch.zeros((), device=target.device))
        self.critic_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.critics.parameters(), 1.0)
        self.critic_optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.targets.parameters(), self.critics.parameters(), strict=True):
                slow.lerp_(fast, 0.02)
        return loss.detach()

    def policy_update(self, obs: torch.Tensor) -> torch.Tensor:
        """Take one step on the policy; observations ``(batch, num_obs)``."""
        self.critics.requires_grad_(False)
        with self._autocast():
            here = self._normal(obs)
            inputs = torch.cat([here, self.actor(here)], dim=-1)
            value = torch.minimum(*(critic(inputs).float() for critic in self.critics))
        loss = -value.mean()
        self.actor_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.actor.parameters(), 1.0)
        self.actor_optimizer.step()
        self.critics.requires_grad_(True)
        return loss.detach()

    def _normal(self, obs: torch.Tensor) -> torch.Tensor:
        return (obs - self.mean) * self.scale

    def _autocast(self) -> torch.autocast:
        device, enabled = self._precision
        return torch.autocast(device, torch.bfloat16, enabled=enabled)


class PlainReplay:
    """Float32 ring ``[num_envs, steps, ...]`` with every next observation stored and flags as int64, FastTD3's layout.

    Args:
        capacity_steps: Steps kept for each env.
        num_envs: Envs.
        num_obs: Width of the observation.
        num_actions: Width of the action.
        device: Where it lives.
    """

    def __init__(self, capacity_steps: int, num_envs: int, num_obs: int, num_actions: int, device: str) -> None:
        shape = (num_envs, capacity_steps)
        self.obs, self.next_obs = (torch.zeros(*shape, num_obs, device=device) for _ in range(2))
        self.actions = torch.zeros(*shape, num_actions, device=device)
        self.rewards = torch.zeros(shape, device=device)
        self.dones, self.truncations = (torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(2))
        self._steps = 0

    def write(
        self,
        obs: torch.Tensor,
        actions: torch.Tensor,
        rewards: torch.Tensor,
        terminated: torch.Tensor,
        time_outs: torch.Tensor,
        next_obs: torch.Tensor,
    ) -> None:
        """Append one step of all envs."""
        slot = self._steps % self.rewards.shape[1]
        values = (obs, actions, rewards, next_obs, terminated | time_outs, time_outs)
        for memory, value in zip(self._tensors(), values, strict=True):
            memory[:, slot] = value
        self._steps += 1

    def sample(self, batch: int, n_step: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Draw windows of up to ``n_step`` steps.

        Returns:
            Observation, action, sum of rewards, observation after the window, discount, each ``(batch, ...)``.
        """
        num_envs, capacity = self.rewards.shape
        device, gamma = self.rewards.device, 0.99
        held = min(self._steps, capacity) - n_step + 1
        envs = torch.randint(num_envs, (batch,), generator=generator, device=device)
        steps = torch.randint(held, (batch,), generator=generator, device=device)
        window = steps.unsqueeze(1) + torch.arange(n_step, device=device)
        done = self.dones[envs.unsqueeze(1), window] > 0
        before = torch.cat([torch.zeros_like(done[:, :1]), done[:, :-1]], dim=1).int().cumsum(1)
        inside = before == 0
        powers = gamma ** torch.arange(n_step, device=device)
        rewards = (self.rewards[envs.unsqueeze(1), window] * inside * powers).sum(1)
        length = inside.sum(1)
        last = steps + length - 1
        ended = (self.dones[envs, last] > 0) & (self.truncations[envs, last] == 0)
        discounts = gamma**length * ~ended
        return self.obs[envs, steps], self.actions[envs, steps], rewards, self.next_obs[envs, last], discounts

    @property
    def num_bytes(self) -> int:
        """Size of the memory [B]."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    def _tensors(self) -> tuple[torch.Tensor, ...]:
        return self.obs, self.actions, self.rewards, self.next_obs, self.dones, self.truncations


def _mlp(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
