"""Parallel Q-learning (PQL, arXiv 2307.12983) for a population of deterministic policies."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict

from myriad_lab.algorithms.algorithm import Step
from myriad_lab.algorithms.pql_cfg import PQLCfg
from myriad_lab.algorithms.pql_parts import adamw, check_squash, clip_per_head, noise_ladder, restore, weighted_mean
from myriad_lab.algorithms.repeated_noise import RepeatedNoise
from myriad_lab.algorithms.update_counts import UpdateCounts
from myriad_lab.errors import CheckpointError, ConfigurationError
from myriad_lab.functional.projection import categorical_projection
from myriad_lab.networks.normalizer import RunningNormalizer
from myriad_lab.networks.population import PopulationActor, check_population
from myriad_lab.networks.q_ensemble import QEnsemble
from myriad_lab.storage.replay import ReplayBatch, ReplayBuffer

__all__ = ["POLICY_METRICS", "PQL", "VALUE_METRICS", "PQLCfg"]

VALUE_METRICS = ("Loss/critic", "Policy/q_mean", "Policy/q_target")
POLICY_METRICS = ("Loss/actor", "Policy/action_magnitude", "Policy/prior_distance")


class PQL:
    """Twin critics and a deterministic policy per head, learnt from a shared replay memory.

    ``value_update`` and ``policy_update`` are the learner; ``update`` runs both in the configured ratio in one process,
    and the parallel runner calls each in a process of its own. Targets: n-step return with the true effective length
    plus the smaller of the two target critics at the action of the current policy (TD3 without a target actor). A
    categorical critic takes the whole distribution of the head with the smaller expectation, so that mass is kept.

    Args:
        actor: The policies; trained in place, acts with ``tanh(mean)``, its log-std has no loss of its own.
        cfg: Settings.
        num_envs: Envs observed per step; env e belongs to head ``e // (num_envs // num_policies)``.
        obs_sizes: Group -> width; needs ``policy`` and ``cfg.critic_group``.
        device: Where networks and replay live.
        seed: Seed of all random numbers drawn here.
        seeded: Whether ``actor`` comes from a portfolio; see ``warmup_steps``, ``critic_warmup``, ``prior_fraction``.
        replay: A replay memory to use instead of an own one, as a learner process does.
        guard_slots: See ``ReplayBuffer``.

    Raises:
        ConfigurationError: If the configuration, the heads or the groups do not fit.
    """

    def __init__(
        self,
        actor: PopulationActor,
        cfg: PQLCfg,
        num_envs: int,
        obs_sizes: dict[str, int],
        device: torch.device | str = "cpu",
        seed: int = 0,
        *,
        seeded: bool = False,
        replay: ReplayBuffer | None = None,
        guard_slots: int = 0,
    ) -> None:
        cfg.validate()
        missing = {"policy", cfg.critic_group} - obs_sizes.keys()
        if missing:
            raise ConfigurationError(f"PQL needs the observation groups {sorted(missing)}; got {sorted(obs_sizes)}.")
        check_squash(actor.cfg.squash)
        self.cfg, self.num_envs, self.seeded = cfg, num_envs, seeded
        self.device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0", which can be compared
        self.num_policies, self.num_actions = actor.num_policies, actor.num_actions
        self.envs_per_policy = check_population(num_envs, actor.num_policies)
        self.groups = {"policy": obs_sizes["policy"], cfg.critic_group: obs_sizes[cfg.critic_group]}
        self.actor = actor.to(self.device)
        self.prior = copy.deepcopy(self.actor).requires_grad_(False) if seeded else None
        weights = torch.Generator().manual_seed(seed)
        critic = QEnsemble(self.groups[cfg.critic_group], self.num_actions, self.num_policies, cfg.critic, weights)
        self.critic = critic.to(self.device)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.generator = torch.Generator(self.device).manual_seed(seed + 1)
        self._guard_slots = guard_slots
        self.replay = replay if replay is not None else self._make_replay()
        apart = self.replay.device != self.device
        self._draws = torch.Generator(self.replay.device).manual_seed(seed + 2) if apart else self.generator
        self.noise = RepeatedNoise(num_envs, self.num_actions, cfg.noise_repeat, self.device)
        self.noise_scale = self._noise_ladder()
        self.actor_optimizer = adamw(self.actor, cfg.actor_lr, cfg.weight_decay)
        self.critic_optimizer = adamw(self.critic, cfg.critic_lr, cfg.weight_decay)
        self.counts = self._make_counts()

    @torch.no_grad()
    def act(self, obs: TensorDict) -> torch.Tensor:
        """Return exploratory actions in [-1, 1], (num_envs, num_actions)."""
        noise = self.noise.draw(self.generator)
        if self.counts.steps < self.cfg.warmup_steps and self.prior is None:
            return torch.rand(noise.shape, generator=self.generator, device=self.device) * 2.0 - 1.0
        grouped = obs["policy"].unflatten(0, (self.num_policies, -1))
        mean = self.actor.squash(self.actor(grouped)[0]).flatten(0, 1)
        actions = (mean + self.noise_scale * noise).clamp(-1.0, 1.0)
        if self.prior is None or self.cfg.prior_fraction == 0.0:
            return actions
        explored = self.prior.act(obs["policy"], self.generator).action
        return torch.where(self.prior_mask, explored, actions)

    def observe(self, step: Step) -> None:
        """Store one env step and merge its observations into the running statistics.

        Raises:
            ConfigurationError: If the step has no ``final_obs``.
        """
        self.replay.write(
            step.obs,
            step.actions,
            step.rewards,
            step.terminated,
            step.time_outs,
            step.next_obs,
            step.final_obs,
            step.valid,
        )

        # the observation before a divergence may already be far off: count the one after the reset instead
        def sane(group: str) -> torch.Tensor:
            return torch.where(step.valid.unsqueeze(-1), step.obs[group], step.next_obs[group])

        self.critic.update_normalizer(sane(self.cfg.critic_group))
        self.target_critic.update_normalizer(sane(self.cfg.critic_group))
        if isinstance(self.actor.normalizer, RunningNormalizer) and not self.seeded:
            self.actor.normalizer.update(sane("policy"))
        self.counts.steps += 1

    def update(self) -> dict[str, torch.Tensor]:
        """Do the critic and policy updates that the steps observed so far entitle to; empty if there are none."""
        due = self.counts.earned_value_updates() - self.counts.value_updates
        if due <= 0:
            return {}
        logs: dict[str, list[torch.Tensor]] = {}
        for batch in self.sample(due).split(due):
            metrics = self.value_update(batch)
            if self.counts.policy_update_is_due():
                metrics |= self.policy_update(batch)
            for key, value in metrics.items():
                logs.setdefault(key, []).append(value)
        return {key: torch.stack(values).mean() for key, values in logs.items()}

    def restart_replay(self) -> None:
        """Collect ``warmup_steps`` before learning goes on, as after a resume without the replay memory.

        Updates still owed are forgotten: there is nothing to do them with.
        """
        del self.replay  # before the next one is allocated
        self.replay = self._make_replay()
        self.counts.warm_up_again()

    def reseed(self, seed: int) -> None:
        """Start all streams of random numbers anew, as in a process beside another one."""
        self.generator.manual_seed(seed)
        if self._draws is not self.generator:
            self._draws.manual_seed(seed + 1)

    def sample(self, updates: int = 1) -> ReplayBatch:
        """Draw the rows of ``updates`` minibatches, (num_policies, updates * batch_size, ...)."""
        cfg = self.cfg
        batch = self.replay.sample(
            cfg.batch_size * updates, self._draws, own_fraction=cfg.own_fraction, n_step=cfg.n_step, gamma=cfg.gamma
        )
        return batch if self._draws is self.generator else batch.map(lambda tensor: tensor.to(self.device))

    def value_update(self, batch: ReplayBatch) -> dict[str, torch.Tensor]:
        """Take one step on the critics of all heads and move their targets; returns ``VALUE_METRICS``."""
        with self._autocast():
            target, value = self._targets(batch)
            raw = self.critic(batch.obs[self.cfg.critic_group], batch.actions).float()
        if self.critic.cfg.kind == "categorical":
            errors = -(target.unsqueeze(1) * raw.log_softmax(-1)).sum(-1)
        else:
            errors = (raw - target.unsqueeze(1)).square()
        losses = weighted_mean(errors.sum(1), batch.weights)
        self.critic_optimizer.zero_grad(set_to_none=True)
        # a sum over heads: the step of a head does not depend on how many others there are
        losses.sum().backward()
        clip_per_head(list(self.critic.parameters()), self.num_policies, self.cfg.max_grad_norm)
        self.critic_optimizer.step()
        # optimiser and target update touch lists of stacked parameters: a handful of kernels for any number of heads
        online = [p.detach() for p in self.critic.parameters()]
        torch._foreach_lerp_(list(self.target_critic.parameters()), online, self.cfg.tau)
        self.counts.value_updates += 1
        means = (losses.mean(), self.critic.expectation(raw).mean(), value.mean())
        return {key: metric.detach() for key, metric in zip(VALUE_METRICS, means, strict=True)}

    def policy_update(self, batch: ReplayBatch) -> dict[str, torch.Tensor]:
        """Take one deterministic policy-gradient step on all heads; returns ``POLICY_METRICS``."""
        obs = batch.obs["policy"]
        with self._autocast():
            actions = self.actor.squash(self.actor(obs)[0])
            value = self.critic.values(batch.obs[self.cfg.critic_group], actions).float().amin(1)
        losses, distance = weighted_mean(-value, batch.weights), torch.zeros_like(value)
        if self.prior is not None and self.cfg.prior_weight > 0.0:
            with torch.no_grad():
                wanted = self.prior.squash(self.prior(obs)[0])
            distance = (actions - wanted).square().mean(-1)
            # in units of each head's values (TD3+BC): as strong before the first reward is met as long after
            scale = weighted_mean(value.detach().abs(), batch.weights)
            losses = losses + self.cfg.prior_weight * scale * weighted_mean(distance, batch.weights)
        loss = losses.mean()
        parameters = [p for p in self.actor.parameters() if p.requires_grad]
        # only the actor's gradients are formed; the critics' parameters get none
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, self.cfg.max_grad_norm)
        self.actor_optimizer.step()
        self.counts.policy_updates += 1
        means = (loss, actions.abs().mean(), distance.mean())
        return {key: metric.detach() for key, metric in zip(POLICY_METRICS, means, strict=True)}

    def keep_heads(self, head_ids: Sequence[int]) -> None:
        """Go on with the given heads only and give them all envs, with their critics; optimisers start anew."""
        self.replay.regroup(head_ids)
        self.actor = self.actor.select(head_ids)
        self.prior = None if self.prior is None else self.prior.select(head_ids).requires_grad_(False)
        self.critic = self.critic.select(head_ids)
        self.target_critic = self.target_critic.select(head_ids).requires_grad_(False)
        self.num_policies = len(head_ids)
        self.envs_per_policy = check_population(self.num_envs, self.num_policies)
        self.noise_scale = self._noise_ladder()
        self.actor_optimizer = adamw(self.actor, self.cfg.actor_lr, self.cfg.weight_decay)
        self.critic_optimizer = adamw(self.critic, self.cfg.critic_lr, self.cfg.weight_decay)

    def state_dict(self) -> dict[str, Any]:
        """Return networks, optimisers, counters and generator; the replay memory has a state of its own."""
        return {
            **{name: module.state_dict() for name, module in self._modules().items()},
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "noise": self.noise.state_dict(),
            **self.counts.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; the state says whether the policies come from a portfolio.

        The optimisers' step sizes and decay are those of this configuration, and so are the ratios of updates: where
        they are others, nothing of the past is made up for.

        Raises:
            CheckpointError: If the state belongs to other networks.
            ConfigurationError: If a setting speaks of a portfolio and the state knows of none.
        """
        self.seeded = "prior" in state
        self.cfg.check_prior(self.seeded)
        self.prior = copy.deepcopy(self.actor).requires_grad_(False) if self.seeded else None
        try:
            for name, module in self._modules().items():
                module.load_state_dict(state[name])
            restore(self.actor_optimizer, state["actor_optimizer"])
            restore(self.critic_optimizer, state["critic_optimizer"])
            self.counts = self._make_counts()
            self.counts.load_state_dict(state)
            if "noise" in state:  # versions before noise could last saved none
                self.noise.load_state_dict(state["noise"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit the networks of this configuration: {error}") from error
        self.generator.set_state(state["generator"])

    def _make_counts(self) -> UpdateCounts:
        cfg = self.cfg
        waits = cfg.critic_warmup if self.seeded else 0
        return UpdateCounts(cfg.value_updates_per_step, cfg.policy_delay, cfg.warmup_steps, waits)

    def _make_replay(self) -> ReplayBuffer:
        return ReplayBuffer(
            max(self.cfg.n_step + 1, self.cfg.replay_capacity // self.num_envs),
            self.num_envs,
            self.num_policies,
            self.groups,
            self.num_actions,
            self.device,
            guard_slots=self._guard_slots,
        )

    def _modules(self) -> dict[str, torch.nn.Module]:
        modules: dict[str, torch.nn.Module] = {"actor": self.actor, "critic": self.critic}
        modules["target_critic"] = self.target_critic
        return modules if self.prior is None else {**modules, "prior": self.prior}

    def _noise_ladder(self) -> torch.Tensor:
        """Return the noise of every env, (num_envs, 1): the same ladder within the block of each head."""
        cfg = self.cfg
        ladder, prior = noise_ladder(self.envs_per_policy, cfg.sigma_min, cfg.sigma_max, cfg.prior_fraction)
        self.prior_mask = prior.repeat(self.num_policies).unsqueeze(-1).to(self.device)
        return ladder.repeat(self.num_policies).unsqueeze(-1).to(self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.cfg.mixed_precision)

    @torch.no_grad()
    def _targets(self, batch: ReplayBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return targets, (m, batch) or (m, batch, num_atoms), and the values bootstrapped from, (m, batch)."""
        actions = self.actor.squash(self.actor(batch.next_obs["policy"])[0])
        if self.cfg.target_noise > 0.0:
            noise = torch.randn(actions.shape, generator=self.generator, device=self.device)
            bound = self.cfg.target_noise_clip
            actions = (actions + (noise * self.cfg.target_noise).clamp(-bound, bound)).clamp(-1.0, 1.0)
        raw, value = self._worse_critic(batch.next_obs[self.cfg.critic_group], actions)
        if self.prior is not None and self.cfg.prior_bootstrap:
            actions = self.prior.squash(self.prior(batch.next_obs["policy"])[0])
            other_raw, other = self._worse_critic(batch.next_obs[self.cfg.critic_group], actions)
            better = other > value
            raw = torch.where(better.unsqueeze(-1), other_raw, raw)
            value = torch.where(better, other, value)
        rewards = batch.rewards * self.cfg.reward_scale
        if self.target_critic.cfg.kind == "categorical":
            support = self.target_critic.support
            return categorical_projection(raw.softmax(-1), rewards, batch.discounts, support), value
        target = rewards + batch.discounts * value
        bounds = self.cfg.target_bounds
        return target if bounds is None else target.clamp(*(b * self.cfg.reward_scale for b in bounds)), value

    def _worse_critic(self, obs: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return output (m, batch, num_outputs) and value (m, batch) of the target critic of the smaller value."""
        raw = self.target_critic(obs, actions).float()
        value, which = self.target_critic.expectation(raw).min(1)
        outputs = raw.view(*raw.shape[:3], -1)
        index = which[:, None, :, None].expand(-1, 1, -1, outputs.shape[-1])
        return outputs.gather(1, index).squeeze(1), value
