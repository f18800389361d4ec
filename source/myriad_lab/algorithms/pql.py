"""Parallel Q-learning (PQL, arXiv 2307.12983) for a population of deterministic policies."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict

from myriad_lab.algorithms.algorithm import Step
from myriad_lab.algorithms.captured import CapturedUpdate
from myriad_lab.algorithms.pql_cfg import PQLCfg
from myriad_lab.algorithms.pql_losses import POLICY_METRICS, VALUE_METRICS, PQLLosses
from myriad_lab.algorithms.pql_parts import adamw, check_squash, clip_per_head, compiled, means, noise_ladder
from myriad_lab.algorithms.precision import MixedPrecision
from myriad_lab.algorithms.repeated_noise import RepeatedNoise
from myriad_lab.algorithms.replay_rows import ReplayRows
from myriad_lab.algorithms.return_scale import ReturnScale
from myriad_lab.algorithms.shards import collect_learner, load_learner, own_critics, sum_and_clip
from myriad_lab.algorithms.update_counts import UpdateCounts
from myriad_lab.errors import CheckpointError
from myriad_lab.functional.collective import ALONE, Collective
from myriad_lab.networks.normalizer import RunningNormalizer
from myriad_lab.networks.population import PopulationActor, check_population
from myriad_lab.networks.q_ensemble import QEnsemble
from myriad_lab.storage.replay import ReplayBuffer
from myriad_lab.storage.replay_batch import ReplayBatch

__all__ = ["POLICY_METRICS", "PQL", "VALUE_METRICS", "PQLCfg"]

_APART = 1_000_003
"""Between the seeds of two ranks, which draw actions and rows each for itself."""


class PQL:
    """Twin critics and a deterministic policy per head, learnt from a shared replay memory.

    ``learn_critics`` and ``learn_policies`` are the learner, one draw of rows and one step each; ``update`` runs both
    in the configured ratio in one process, and the parallel runner calls each in a process of its own. On a GPU each is
    replayed as one CUDA graph. Targets: n-step return with the true effective length plus the smaller of the two target
    critics at the action of the current policy (TD3 without a target actor). A categorical critic takes the whole
    distribution of the head with the smaller expectation, so that mass is kept.

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
        ranks: Those that train the rest of the population. ``actor`` and ``num_envs`` are this rank's; heads stay on
            their rank with critics and replay memory, the gradients of the shared trunk are summed over all ranks.

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
        ranks: Collective = ALONE,
    ) -> None:
        cfg.validate()
        cfg.check_groups(obs_sizes)
        check_squash(actor.cfg.squash)
        self.cfg, self.num_envs, self.seeded, self.ranks = cfg, num_envs, seeded, ranks
        self.device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0", which can be compared
        self.num_policies, self.num_actions = actor.num_policies, actor.num_actions
        self.envs_per_policy = check_population(num_envs, actor.num_policies)
        self.groups = {"policy": obs_sizes["policy"], cfg.critic_group: obs_sizes[cfg.critic_group]}
        self.actor = actor.to(self.device)
        self.prior = copy.deepcopy(self.actor).requires_grad_(False) if seeded else None
        self.critic = own_critics(self.groups[cfg.critic_group], actor, cfg.critic, seed, ranks).to(self.device)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.generator = torch.Generator(self.device).manual_seed(seed + 1 + ranks.rank * _APART)
        self._guard_slots = guard_slots
        self.replay = replay if replay is not None else self._make_replay()
        self.rows = ReplayRows(self.replay, cfg, self.generator)
        self.noise = RepeatedNoise(num_envs, self.num_actions, cfg.noise_repeat, self.device)
        self.noise_scale = self._noise_ladder()
        self._reward_scale = torch.tensor(cfg.reward_scale, device=self.device)
        self.return_scale: ReturnScale | None = None
        if cfg.normalize_returns:
            self.return_scale = ReturnScale(num_envs, cfg.gamma, cfg.return_bound, self.device)
        self.mixed_precision = MixedPrecision(cfg.mixed_precision, self.device)
        self.counts = self._make_counts()
        self._make_updates()

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

        if self.return_scale is not None:
            self.return_scale.update(step.rewards, step.terminated | step.time_outs, step.valid, self.ranks)

        # the observation before a divergence may already be far off: count the one after the reset instead
        def sane(group: str) -> torch.Tensor:
            return torch.where(step.valid.unsqueeze(-1), step.obs[group], step.next_obs[group])

        self.critic.update_normalizer(sane(self.cfg.critic_group), self.ranks)
        self.target_critic.take_statistics(self.critic)
        if isinstance(self.actor.normalizer, RunningNormalizer) and not self.seeded:
            self.actor.normalizer.update(sane("policy"), self.ranks)
        self.counts.steps += 1

    def update(self) -> dict[str, torch.Tensor]:
        """Do the critic and policy updates that the steps observed so far entitle to; empty if there are none."""
        due = self.counts.earned_value_updates() - self.counts.value_updates
        critics, policies = [], []
        for _ in range(due):
            critics.append(self.learn_critics())
            if self.counts.policy_update_is_due():
                policies.append(self.learn_policies())
        return means(VALUE_METRICS, critics) | means(POLICY_METRICS, policies)

    def learn_critics(self) -> torch.Tensor:
        """Draw rows and do one update of the critics of all heads; returns ``VALUE_METRICS``, (3,)."""
        self.rows.bring()
        metrics = self._captured_critics()
        self.counts.value_updates += 1
        return metrics

    def learn_policies(self) -> torch.Tensor:
        """Draw rows and do one update of all policies; returns ``POLICY_METRICS``, (3,)."""
        self.rows.bring()
        metrics = self._captured_policies()
        self.counts.policy_updates += 1
        return metrics

    def restart_replay(self) -> None:
        """Collect ``warmup_steps`` before learning goes on, as after a resume without the replay memory.

        Updates still owed are forgotten: there is nothing to do them with.
        """
        del self.replay, self.rows  # before the next one is allocated
        self.replay = self._make_replay()
        self.rows = ReplayRows(self.replay, self.cfg, self.generator)
        self._capture_anew()
        self.counts.warm_up_again()

    def reseed(self, seed: int) -> None:
        """Start all streams of random numbers anew, as in a process beside another one."""
        self.generator.manual_seed(seed)
        self.rows.reseed()

    def sample(self) -> ReplayBatch:
        """Draw the rows of one minibatch per head, (num_policies, batch_size, ...)."""
        return self.rows.sample()

    def value_update(self, batch: ReplayBatch) -> torch.Tensor:
        """Take one step on the critics of all heads and move their targets; returns ``VALUE_METRICS``, (3,)."""
        noise = None
        if self.cfg.target_noise > 0.0:
            noise = torch.randn(batch.actions.shape, generator=self.generator, device=self.device)
        losses, metrics = self._critic_losses(batch, noise, self.reward_factor)
        self.critic_optimizer.zero_grad(set_to_none=True)
        # a sum over heads: the step of a head does not depend on how many others there are
        losses.sum().backward()
        clip_per_head(list(self.critic.parameters()), self.num_policies, self.cfg.max_grad_norm)
        self.critic_optimizer.step()
        self.critic.project_weights()
        # optimiser and target update touch lists of stacked parameters: a handful of kernels for any number of heads
        online = [p.detach() for p in self.critic.parameters()]
        torch._foreach_lerp_(list(self.target_critic.parameters()), online, self.cfg.tau)
        return metrics

    def policy_update(self, batch: ReplayBatch) -> torch.Tensor:
        """Take one deterministic policy-gradient step on all heads; returns ``POLICY_METRICS`` of this rank's, (3,)."""
        # only the actor's gradients are formed; a compiled backward pass forms those of all that ask for one
        self.critic.requires_grad_(False)
        loss, metrics = self._actor_loss(batch)
        self.critic.requires_grad_(True)
        parameters = [p for p in self.actor.parameters() if p.requires_grad]
        # the loss is the mean over the heads of all ranks
        gradients = torch.autograd.grad(loss / self.ranks.world_size, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        own = self.actor.head_parameters()
        sum_and_clip(self.actor.shared_parameters(), own, self.cfg.max_grad_norm, self.ranks)
        self.actor_optimizer.step()
        return metrics

    @property
    def reward_factor(self) -> torch.Tensor:
        """What rewards are multiplied by before the critics see them, a scalar."""
        return self._reward_scale if self.return_scale is None else self._reward_scale * self.return_scale.factor

    def keep_heads(self, head_ids: Sequence[int]) -> None:
        """Go on with the given heads only and give them all envs, with their critics; optimisers start anew."""
        self.replay.regroup(len(head_ids))
        self.actor = self.actor.select(head_ids)
        self.prior = None if self.prior is None else self.prior.select(head_ids).requires_grad_(False)
        self.critic = self.critic.select(head_ids)
        self.target_critic = self.target_critic.select(head_ids).requires_grad_(False)
        self.num_policies = len(head_ids)
        self.envs_per_policy = check_population(self.num_envs, self.num_policies)
        self.noise_scale = self._noise_ladder()
        self._make_updates()

    def state_dict(self) -> dict[str, Any]:
        """Return networks, optimisers, counters and generator; the replay memory has a state of its own.

        On rank 0 it is that of all ranks, a call of all of them.
        """
        own: dict[str, Any] = {"generator": self.generator.get_state(), "noise": self.noise.state_dict()}
        if self.return_scale is not None:
            own["return_scale"] = self.return_scale.state_dict()
        others = self.ranks.collect(own)[1:]
        return {
            **collect_learner(self._modules(), self._optimizers(), self.ranks),
            **own,
            **({"others": others} if others else {}),
            **self.counts.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; the state says whether the policies come from a portfolio.

        The optimisers' step sizes and decay are those of this configuration, and so are the ratios of updates: where
        they are others, nothing of the past is made up for. On another number of ranks random numbers and returns
        under way begin anew.

        Raises:
            CheckpointError: If the state belongs to other networks.
            ConfigurationError: If a setting speaks of a portfolio and the state knows of none.
        """
        self.seeded = "prior" in state
        self.cfg.check_prior(self.seeded)
        self.prior = copy.deepcopy(self.actor).requires_grad_(False) if self.seeded else None
        self._make_updates()
        try:
            load_learner(self._modules(), self._optimizers(), state, self.ranks)
            self.counts = self._make_counts()
            self.counts.load_state_dict(state)
            self._load_own(state)
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit the networks of this configuration: {error}") from error

    def _load_own(self, state: Mapping[str, Any]) -> None:
        """Restore what this rank alone has, where there were as many ranks."""
        own = self.ranks.own_part(state)
        if self.return_scale is not None:
            saved = (own or state).get("return_scale")
            self.return_scale.load_state_dict(saved, with_returns=own is not None)
        if own is None:
            self.reseed(self.generator.initial_seed() + self.counts.steps)
            return
        if "noise" in own:  # versions before noise could last saved none
            self.noise.load_state_dict(own["noise"])
        self.generator.set_state(own["generator"])

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"actor": self.actor_optimizer, "critic": self.critic_optimizer}

    def _make_counts(self) -> UpdateCounts:
        cfg = self.cfg
        waits = cfg.critic_warmup if self.seeded else 0
        return UpdateCounts(cfg.value_updates_per_step, cfg.policy_delay, cfg.warmup_steps, waits)

    def _make_replay(self) -> ReplayBuffer:
        return ReplayBuffer(
            max(self.cfg.n_step + 1, self.cfg.replay_capacity // (self.ranks.world_size * self.num_envs)),
            self.num_envs,
            self.num_policies,
            self.groups,
            self.num_actions,
            self.device,
            getattr(torch, self.cfg.replay_dtype),
            guard_slots=self._guard_slots,
        )

    def _make_updates(self) -> None:
        """Make what changes the networks: their optimisers, their losses, and the updates that use both."""
        cfg = self.cfg
        self.actor_optimizer = adamw(self.actor, cfg.actor_lr, cfg.weight_decay)
        self.critic_optimizer = adamw(self.critic, cfg.critic_lr, cfg.weight_decay)
        networks = self.actor, self.critic, self.target_critic, self.prior
        self.losses = PQLLosses(*networks, cfg, self.mixed_precision)
        self._critic_losses, self._actor_loss = self.losses.critics, self.losses.actor
        if cfg.compile or (cfg.compile is None and self.device.type == "cuda"):
            self._critic_losses, self._actor_loss = compiled(self._critic_losses), compiled(self._actor_loss)
        self._capture_anew()

    def _capture_anew(self) -> None:
        """Forget recorded graphs: they know the tensors of before."""
        graphs, alone = self.device.type == "cuda", self.ranks.world_size == 1  # messages are no part of a graph
        self.rows.forget()
        # a graph that held its learner would keep memory of a GPU until Python looks for cycles, which that never asks
        learner = weakref.proxy(self)
        self._captured_critics = CapturedUpdate(
            lambda: learner.value_update(learner.rows.current()), self.generator, graphs
        )
        self._captured_policies = CapturedUpdate(
            lambda: learner.policy_update(learner.rows.current()), self.generator, graphs and alone
        )

    def _modules(self) -> dict[str, PopulationActor | QEnsemble]:
        prior = {} if self.prior is None else {"prior": self.prior}
        return {"actor": self.actor, "critic": self.critic, "target_critic": self.target_critic, **prior}

    def _noise_ladder(self) -> torch.Tensor:
        """Return the noise of every env, (num_envs, 1): the same ladder within the block of each head."""
        cfg = self.cfg
        ladder, prior = noise_ladder(self.envs_per_policy, cfg.sigma_min, cfg.sigma_max, cfg.prior_fraction)
        self.prior_mask = prior.repeat(self.num_policies).unsqueeze(-1).to(self.device)
        return ladder.repeat(self.num_policies).unsqueeze(-1).to(self.device)
