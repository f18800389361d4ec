"""Roll out full episodes of a population for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict

from myriad_lab.envs.contract import VecEnv
from myriad_lab.errors import ConfigurationError
from myriad_lab.networks.population import PopulationActor, check_population
from myriad_lab.portfolio.recording import EpisodeRecord

Policy = Callable[[TensorDict], torch.Tensor]
"""Observations of all envs to actions in [-1, 1], shape (num_envs, num_actions)."""


def actor_policy(
    actor: PopulationActor,
    obs_groups: Sequence[str] = ("policy",),
    deterministic: bool = True,
    generator: torch.Generator | None = None,
) -> Policy:
    """Return the population as a policy over the observation groups it was trained on."""

    def act(obs: TensorDict) -> torch.Tensor:
        rows = torch.cat([obs[group] for group in obs_groups], dim=-1)
        return actor.act(rows, generator=generator, deterministic=deterministic).action

    return act


def zero_policy(env: VecEnv) -> Policy:
    """Return the policy whose actions are all zero."""
    actions = torch.zeros(env.num_envs, env.num_actions, device=env.device)
    return lambda _: actions


def random_policy(env: VecEnv, seed: int = 0) -> Policy:
    """Return the policy whose actions are uniform in [-1, 1]."""
    generator = torch.Generator(device=env.device).manual_seed(seed)
    shape = (env.num_envs, env.num_actions)
    return lambda _: torch.rand(shape, generator=generator, device=env.device) * 2.0 - 1.0


def rollout_episodes(
    env: VecEnv,
    policy: Policy,
    num_policies: int,
    episodes_per_head: int = 256,
    *,
    features: str | None = "features",
    recorded_per_head: int | None = None,
    obs_groups: Sequence[str] = ("policy",),
    num_obs_rows: int = 1024,
    info: Mapping[str, Any] | None = None,
) -> EpisodeRecord:
    """Run every env until it has finished its share of episodes, and keep exactly those.

    Each env gives a number of episodes that is fixed beforehand, its first ones, so that short episodes are not
    over-represented. An episode whose physics diverged counts as it stands, marked in ``diverged``, never as a success.

    Args:
        env: Env of ``VecEnv``'s contract; env ``e`` belongs to head ``e // (num_envs // num_policies)``. It is reset.
        policy: Acts on all envs.
        num_policies: Number of heads m; divides ``env.num_envs``.
        episodes_per_head: Episodes kept of each head.
        features: Observation group whose values are recorded, ``None`` for none.
        recorded_per_head: Episodes of each head whose features are recorded; all by default.
        obs_groups: Groups that the policy reads, for the sample of observations.
        num_obs_rows: Observations to sample for checks of exported policies, 0 for none.
        info: Notes kept with the record.

    Raises:
        ConfigurationError: If the numbers do not fit, or the env lacks what is needed.
    """
    per_head = check_population(env.num_envs, num_policies)
    if episodes_per_head < 1:
        raise ConfigurationError(f"episodes_per_head={episodes_per_head}; at least one episode is needed")
    with torch.inference_mode():
        obs = env.reset()
        if features is not None and features not in obs.keys():  # noqa: SIM118 (a TensorDict iterates over rows)
            raise ConfigurationError(f"the env has no observation group {features!r}; pass features=None")
        recorder = _Recorder(env, -(-episodes_per_head // per_head), features, obs_groups, num_obs_rows)
        # One spare step per episode for envs that count the reset as a step.
        for _ in range(recorder.shares * (env.max_episode_length + 1)):
            recorder.before(obs)
            obs, rewards, dones, extras = env.step(policy(obs))
            recorder.after(rewards, dones, extras)
            if recorder.finished():
                break
        else:
            raise ConfigurationError(
                f"some envs finished fewer than {recorder.shares} episodes in {recorder.shares} times "
                f"max_episode_length={env.max_episode_length} steps; the env does not end its episodes"
            )
    return recorder.record(num_policies, episodes_per_head, recorded_per_head, dict(info or {}))


class _Recorder:
    """Preallocated buffers ``[share, env]`` with a spare share at the end that takes what is no longer wanted."""

    def __init__(
        self, env: VecEnv, shares: int, features: str | None, obs_groups: Sequence[str], num_obs_rows: int
    ) -> None:
        self.shares = shares
        self.num_envs = env.num_envs
        self.features = features
        self.obs_groups = obs_groups
        self.horizon = env.max_episode_length + 1
        device = torch.device(env.device)
        shape = (shares + 1, env.num_envs)
        self.env_ids = torch.arange(env.num_envs, device=device)
        self.share = torch.zeros(env.num_envs, dtype=torch.long, device=device)
        self.time = torch.zeros(env.num_envs, dtype=torch.long, device=device)
        self.returns = torch.zeros(shape, dtype=torch.float64, device=device)
        self.lengths = torch.zeros(shape, dtype=torch.long, device=device)
        self.diverged = torch.zeros(shape, dtype=torch.bool, device=device)
        self.success = torch.zeros(shape, dtype=torch.bool, device=device)
        self.has_success = False
        self.visits: torch.Tensor | None = None
        self.valid = torch.zeros(*shape, self.horizon, dtype=torch.bool, device=device)
        self.rows_per_step = -(-num_obs_rows // (shares * env.max_episode_length))
        self.num_obs_rows = num_obs_rows
        self.obs_rows: list[torch.Tensor] = []
        self.obs_envs: list[torch.Tensor] = []

    def before(self, obs: TensorDict) -> None:
        """Record the state in which the next action is taken."""
        if self.features is not None:
            values = obs[self.features]
            if self.visits is None:
                size = (self.shares + 1, self.num_envs, self.horizon, values.shape[-1])
                self.visits = torch.zeros(size, dtype=torch.float32, device=values.device)
            self.visits[self.share, self.env_ids, self.time] = values.float()
            self.valid[self.share, self.env_ids, self.time] = True
        if self.num_obs_rows:
            # A prime stride goes through the envs of all heads instead of staying with the first.
            start = len(self.obs_rows) * self.rows_per_step
            turn = torch.arange(start, start + self.rows_per_step, device=self.env_ids.device)
            chosen = (turn * 7919) % self.num_envs
            self.obs_rows.append(torch.cat([obs[group][chosen] for group in self.obs_groups], dim=-1).clone())
            self.obs_envs.append(chosen)

    def after(self, rewards: torch.Tensor, dones: torch.Tensor, extras: dict[str, Any]) -> None:
        """Record what the action brought."""
        ended = dones.bool()
        self.returns[self.share, self.env_ids] += rewards.double()
        self.lengths[self.share, self.env_ids] += 1
        diverged = extras.get("diverged")
        if diverged is not None:
            self.diverged[self.share, self.env_ids] |= diverged
        success = extras.get("success")
        if success is not None:
            self.has_success = True
            lucky = success if diverged is None else success & ~diverged
            self.success[self.share, self.env_ids] |= lucky & ended
        self.share = torch.where(ended, (self.share + 1).clamp(max=self.shares), self.share)
        self.time = torch.where(ended, 0, (self.time + 1).clamp(max=self.horizon - 1))

    def finished(self) -> bool:
        """Whether every env has given its share."""
        return bool((self.share == self.shares).all())

    def record(self, num_policies: int, episodes: int, recorded: int | None, info: dict[str, Any]) -> EpisodeRecord:
        """Return the wanted episodes, ``[share, env]`` regrouped as ``[head, episode]``."""

        def regroup(values: torch.Tensor, count: int) -> Any:
            split = values[: self.shares].unflatten(1, (num_policies, -1)).transpose(0, 1).flatten(1, 2)
            return split[:, :count].cpu().numpy()

        envs = torch.cat(self.obs_envs)[: self.num_obs_rows] if self.obs_rows else None
        kept = episodes if recorded is None else min(recorded, episodes)
        length = int(self.lengths[: self.shares].max())
        return EpisodeRecord(
            returns=regroup(self.returns, episodes),
            lengths=regroup(self.lengths, episodes),
            diverged=regroup(self.diverged, episodes),
            success=regroup(self.success, episodes) if self.has_success else None,
            features=None if self.visits is None else regroup(self.visits[:, :, :length], kept),
            valid=None if self.visits is None else regroup(self.valid[:, :, :length], kept),
            policy_obs=torch.cat(self.obs_rows)[: self.num_obs_rows].float().cpu().numpy() if self.obs_rows else None,
            policy_heads=None if envs is None else (envs // (self.num_envs // num_policies)).cpu().numpy(),
            info=info,
        )
