"""The losses of parallel Q-learning: what a minibatch says of the critics and of the policies."""

from __future__ import annotations

import torch

from myriad_lab.algorithms.pql_cfg import PQLCfg
from myriad_lab.algorithms.pql_parts import weighted_mean
from myriad_lab.algorithms.precision import MixedPrecision
from myriad_lab.functional.projection import categorical_projection
from myriad_lab.networks.population import PopulationActor
from myriad_lab.networks.q_ensemble import QEnsemble
from myriad_lab.storage.replay_batch import ReplayBatch

VALUE_METRICS = ("Loss/critic", "Policy/q_mean", "Policy/q_target")
"""What ``PQLLosses.critics`` tells beside the losses, in this order."""
POLICY_METRICS = ("Loss/actor", "Policy/action_magnitude", "Policy/prior_distance")
"""What ``PQLLosses.actor`` tells beside the loss, in this order."""


class PQLLosses:
    """Losses as functions of the networks and a minibatch; nothing is drawn, counted or updated here.

    Args:
        actor: The policies.
        critic: Twin critics per head.
        target_critic: Their slow copies.
        prior: The policies of the seeding portfolio, if there is one.
        cfg: Settings.
        mixed_precision: Whether forward passes run in bfloat16.
    """

    def __init__(
        self,
        actor: PopulationActor,
        critic: QEnsemble,
        target_critic: QEnsemble,
        prior: PopulationActor | None,
        cfg: PQLCfg,
        mixed_precision: MixedPrecision,
    ) -> None:
        self._actor, self._critic, self._target_critic, self._prior = actor, critic, target_critic, prior
        self._cfg, self._mixed_precision = cfg, mixed_precision

    def critics(
        self, batch: ReplayBatch, noise: torch.Tensor | None, reward_factor: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of the critics of every head, (m,), and ``VALUE_METRICS``, (3,).

        Args:
            batch: Rows for every head.
            noise: Standard normal noise of the target actions, (m, batch, num_actions), or ``None`` for none.
            reward_factor: What rewards are multiplied by, a scalar; ``PQL.reward_factor``.
        """
        with self._mixed_precision.autocast():
            target, value = self.targets(batch, noise, reward_factor)
            raw = self._critic(batch.obs[self._cfg.critic_group], batch.actions).float()
        if self._critic.cfg.kind == "categorical":
            errors = -(target.unsqueeze(1) * raw.log_softmax(-1)).sum(-1)
        else:
            errors = (raw - target.unsqueeze(1)).square()
        losses = weighted_mean(errors.sum(1), batch.weights)
        metrics = (losses.mean(), self._critic.expectation(raw).mean(), value.mean())
        return losses, torch.stack(metrics).detach()

    def actor(self, batch: ReplayBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of all policies, a scalar, and ``POLICY_METRICS``, (3,)."""
        obs, cfg = batch.obs["policy"], self._cfg
        with self._mixed_precision.autocast():
            actions = self._actor.squash(self._actor(obs)[0])
            value = self._critic.values(batch.obs[cfg.critic_group], actions).float().amin(1)
        losses, distance = weighted_mean(-value, batch.weights), torch.zeros_like(value)
        if self._prior is not None and cfg.prior_weight > 0.0:
            with torch.no_grad():
                wanted = self._prior.squash(self._prior(obs)[0])
            distance = (actions - wanted).square().mean(-1)
            # in units of each head's values (TD3+BC): as strong before the first reward is met as long after
            scale = weighted_mean(value.detach().abs(), batch.weights)
            losses = losses + cfg.prior_weight * scale * weighted_mean(distance, batch.weights)
        loss = losses.mean()
        return loss, torch.stack((loss, actions.abs().mean(), distance.mean())).detach()

    @torch.no_grad()
    def targets(
        self, batch: ReplayBatch, noise: torch.Tensor | None, reward_factor: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return targets, (m, batch) or (m, batch, num_atoms), and the values bootstrapped from, (m, batch).

        Arguments as for ``critics``.
        """
        cfg, obs = self._cfg, batch.next_obs[self._cfg.critic_group]
        actions = self._actor.squash(self._actor(batch.next_obs["policy"])[0])
        if noise is not None:
            bound = cfg.target_noise_clip
            actions = (actions + (noise * cfg.target_noise).clamp(-bound, bound)).clamp(-1.0, 1.0)
        raw, value = self._worse_critic(obs, actions)
        if self._prior is not None and cfg.prior_bootstrap:
            actions = self._prior.squash(self._prior(batch.next_obs["policy"])[0])
            other_raw, other = self._worse_critic(obs, actions)
            better = other > value
            raw = torch.where(better.unsqueeze(-1), other_raw, raw)
            value = torch.where(better, other, value)
        rewards = batch.rewards * reward_factor
        if self._target_critic.cfg.kind == "categorical":
            support = self._target_critic.support
            return categorical_projection(raw.softmax(-1), rewards, batch.discounts, support), value
        target = rewards + batch.discounts * value
        bounds = cfg.target_bounds
        return target if bounds is None else target.clamp(bounds[0] * reward_factor, bounds[1] * reward_factor), value

    def _worse_critic(self, obs: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return output (m, batch, num_outputs) and value (m, batch) of the target critic of the smaller value."""
        raw = self._target_critic(obs, actions).float()
        value, which = self._target_critic.expectation(raw).min(1)
        outputs = raw.view(*raw.shape[:3], -1)
        index = which[:, None, :, None].expand(-1, 1, -1, outputs.shape[-1])
        return outputs.gather(1, index).squeeze(1), value
