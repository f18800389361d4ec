"""K-Myriad: a population that maximises the entropy of the states it visits together (arXiv 2601.18580)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tensordict import TensorDict

from myriad_lab.algorithms.algorithm import Step
from myriad_lab.algorithms.policy_updates import ClippedUpdate, OneStepUpdate, PolicyUpdateCfg
from myriad_lab.algorithms.population_optimizer import PopulationOptimizer, PopulationOptimizerCfg
from myriad_lab.algorithms.state_rewards import StateRewardCfg, StateRewards
from myriad_lab.errors import CheckpointError, ConfigurationError
from myriad_lab.functional.collective import ALONE, Collective
from myriad_lab.networks.normalizer import RunningNormalizer
from myriad_lab.networks.population import (
    PopulationActor,
    PopulationActorCfg,
    PopulationValue,
    check_population,
)
from myriad_lab.networks.stacked import collect_state, load_own_state
from myriad_lab.storage.rollout import RolloutStorage

MIN_ROWS = 32
"""Envs of a policy from which on bfloat16 pays: with fewer rows its weights take longer to cast than to multiply."""


@dataclass
class KMyriadCfg(StateRewardCfg, PolicyUpdateCfg, PopulationOptimizerCfg):
    """Settings of K-Myriad: state rewards, policy update, optimiser and network."""

    actor: PopulationActorCfg = field(default_factory=PopulationActorCfg)
    """Network of the population."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a value is out of range."""
        for part in (StateRewardCfg, PolicyUpdateCfg, PopulationOptimizerCfg):
            part.validate(self)
        self.actor.validate()
        if self.desired_kl is not None and self.num_epochs == 1:
            raise ConfigurationError(
                f"desired_kl={self.desired_kl} needs num_epochs above 1: a single step measures no divergence"
            )


class KMyriad:
    """Trains a population on the entropy of its pooled states; see ``algorithms.algorithm.Algorithm``.

    Every env runs one trajectory of ``num_steps`` steps, then ``update`` is called. Env ``e`` is driven by policy
    ``e // (num_envs // num_policies)``. Credit is individual: a policy is rewarded for *where* its states lie in the
    pooled density, so policies spread out although no term asks for diversity.

    On several ranks, each has a block of the policies with their envs. What they learn is what one process with all of
    them would, to rounding: noise and minibatches are drawn as there, pool, statistics and norms are of all ranks.
    """

    def __init__(
        self,
        actor: PopulationActor,
        cfg: KMyriadCfg,
        num_envs: int,
        obs_sizes: dict[str, int],
        device: torch.device | str = "cpu",
        seed: int = 0,
        *,
        num_steps: int,
        ranks: Collective = ALONE,
    ) -> None:
        """Create the algorithm.

        Args:
            actor: The population, of this rank, already on ``device``; trained in place.
            cfg: Settings.
            num_envs: Number of envs, of this rank.
            obs_sizes: Width of the groups ``policy`` and ``features``.
            device: Where to store and compute.
            seed: Seed of the action noise and of the minibatches.
            num_steps: Env steps of a trajectory.
            ranks: Those that train the rest of the population.

        Raises:
            ConfigurationError: If a setting is out of range or the sizes do not fit.
        """
        cfg.validate()
        check_population(num_envs, actor.num_policies)
        missing = {"policy", "features"} - obs_sizes.keys()
        if missing:
            raise ConfigurationError(
                f"K-Myriad needs the observation groups {sorted(missing)}; got {sorted(obs_sizes)}"
            )
        self.actor, self.cfg, self.ranks = actor, cfg, ranks
        self.num_envs, self.num_steps = num_envs, num_steps
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.iteration = 0
        self.state_rewards = StateRewards(
            cfg, num_steps, num_envs, actor.num_policies, obs_sizes["features"], self.device, seed, ranks
        )
        self.state_rewards.tell_of_few_particles()
        self.value = self._make_value(obs_sizes["policy"] + 1) if cfg.num_epochs > 1 else None
        self.optimizer = PopulationOptimizer(actor, self.value, cfg, ranks)
        self._improve = self._make_update()
        fields = {
            "obs": ((obs_sizes["policy"],), torch.float32),
            "pre_squash": ((actor.num_actions,), torch.float32),
            "log_prob": ((), torch.float32),
            "features": ((obs_sizes["features"],), torch.float32),
            "valid": ((), torch.bool),
        }
        self.storage = RolloutStorage(num_steps, num_envs, actor.num_policies, fields, self.device)
        self._alive = torch.ones(num_envs, dtype=torch.bool, device=self.device)
        self._sampled: dict[str, torch.Tensor] | None = None

    @torch.no_grad()
    def act(self, obs: TensorDict) -> torch.Tensor:
        """Draw actions in [-1, 1], shape (num_envs, num_actions)."""
        rows = obs["policy"]
        with self._improve.mixed_precision.autocast():  # as in the update, or ratios would be those of rounding
            sample = self.actor.act(rows, self.generator, ranks=self.ranks)
        self._sampled = {"obs": rows, "pre_squash": sample.pre_squash, "log_prob": sample.log_prob}
        return sample.action

    @torch.no_grad()
    def observe(self, step: Step) -> None:
        """Store one env step; what follows a divergence is masked until the next rollout.

        An episode that ends early goes on from its start as part of the rollout: falling costs what it costs, the way
        back into states that are visited often.

        Raises:
            ConfigurationError: If ``act`` was not called before, the rollout is full, or there is no final observation.
        """
        if self._sampled is None:
            raise ConfigurationError("observe() stores the actions drawn by act(); call act() first")
        if step.final_obs is None:
            raise ConfigurationError(
                "K-Myriad measures the true last state of an episode, and this env does not give it: build the env with"
                " final_obs=True"
            )
        ended = step.terminated | step.time_outs
        valid = self._alive & step.valid
        features = torch.where(ended.unsqueeze(1), step.final_obs["features"], step.next_obs["features"])
        features = torch.where(valid.unsqueeze(1), features, 0.0)
        self.storage.append({**self._sampled, "features": features, "valid": valid})
        self._alive = valid
        self._sampled = None

    def update(self) -> dict[str, torch.Tensor]:
        """Learn from one full rollout and forget it; returns scalar tensors.

        Raises:
            ConfigurationError: If the rollout is not complete.
        """
        if not self.storage.full:
            raise ConfigurationError(
                f"update() needs a rollout of {self.num_steps} steps, {self.storage.position} are stored"
            )
        valid = self.storage["valid"]
        rewards, num_particles, metrics = self.state_rewards(self.storage["features"], valid, self.cfg.standardize)
        self.optimizer.set_iteration(self.iteration)
        guard = self.optimizer.guard()
        metrics |= self._improve(self.storage, rewards, num_particles)
        broken = guard.restore_if_broken(metrics["Loss/surrogate"], metrics["Loss/grad_norm"])
        self._update_normalizers()
        metrics["Loss/restored"] = broken.float()
        metrics["Policy/valid_share"] = self.ranks.sum(valid.float().mean()) / self.ranks.world_size
        metrics["Policy/learning_rate"] = self.optimizer.learning_rate
        self.iteration += 1
        self._forget()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return networks, optimiser, counters, generator and particles, of all ranks; call it between rollouts.

        On several ranks it is a call of all of them, and rank 0 gets the whole; it does not tell how many there were.
        """
        return {
            "actor": collect_state(self.actor, self.ranks),
            "value": None if self.value is None else collect_state(self.value, self.ranks),
            "optimizer": self.optimizer.state_dict(),
            "state_rewards": self.state_rewards.state_dict(),
            "generator": self.generator.get_state(),
            "iteration": self.iteration,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; a rollout in progress is dropped.

        Raises:
            CheckpointError: If the state belongs to other networks.
        """
        if (state["value"] is None) != (self.value is None):
            raise CheckpointError(
                f"num_epochs={self.cfg.num_epochs} does not fit the checkpoint: an update of several epochs has a value"
                " function and one of a single step has none; resume with the configuration of the run"
            )
        try:
            load_own_state(self.actor, state["actor"], self.ranks)
            if self.value is not None:
                load_own_state(self.value, state["value"], self.ranks)
            self.optimizer.load_state_dict(state["optimizer"])
            if isinstance(self._improve, ClippedUpdate):
                self._improve.record_anew()
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit the networks of this configuration: {error}") from error
        self.state_rewards.load_state_dict(state["state_rewards"])
        self.generator.set_state(state["generator"].cpu())
        self.iteration = int(state["iteration"])
        self._forget()

    def _make_value(self, num_obs: int) -> PopulationValue:
        # As with the policies, the weights are drawn for the heads of all ranks.
        num_heads = self.ranks.world_size * self.actor.num_policies
        value = PopulationValue(num_obs, num_heads, _without_normalizer(self.actor.cfg))
        value.heads.keep(self.ranks.block(num_heads))
        return value.to(self.device)

    def _make_update(self) -> OneStepUpdate | ClippedUpdate:
        cfg = self.cfg
        if cfg.mixed_precision is None and self.num_envs < MIN_ROWS * self.actor.num_policies:
            cfg = replace(cfg, mixed_precision=False)
        if self.value is None:
            return OneStepUpdate(self.actor, self.optimizer, cfg, self.ranks)
        return ClippedUpdate(self.actor, self.value, self.optimizer, cfg, self.generator, self.ranks)

    def _update_normalizers(self) -> None:
        """Merge the observations of the rollout, after the update: within one, all ratios use the same statistics."""
        if isinstance(self.actor.normalizer, RunningNormalizer):
            obs = self.storage["obs"]
            # The observation before a divergence may already be far off: count the one after the reset instead.
            self.actor.normalizer.update(torch.where(self.storage["valid"].unsqueeze(-1), obs, obs[0]), self.ranks)

    def _forget(self) -> None:
        self.storage.clear()
        self._alive.fill_(True)
        self._sampled = None


def _without_normalizer(cfg: PopulationActorCfg) -> PopulationActorCfg:
    """Return the settings of a value network that is fed with what the actor's normaliser puts out."""
    return replace(cfg, obs_normalization=False)
