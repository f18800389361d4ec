"""The value learner and the policy learner as processes of their own, and the collector's side of them."""

from __future__ import annotations

import io
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.multiprocessing
from torch import nn

from myriad_lab.algorithms.pql import POLICY_METRICS, PQL, VALUE_METRICS, PQLCfg
from myriad_lab.distributed.mailbox import WeightMailbox
from myriad_lab.distributed.tokens import Tokens
from myriad_lab.distributed.workers import PATIENCE_SECONDS, WorkerGroup, WorkerLink
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from myriad_lab.networks.q_ensemble import QEnsembleCfg
from myriad_lab.runners.parallel_q_cfg import ParallelQRunnerCfg
from myriad_lab.storage.replay import ReplayBuffer

VALUE_LEARNER, POLICY_LEARNER = "value learner", "policy learner"
GPU_PATIENCE_SECONDS = 60.0
"""How long learners on a GPU may take to stop: one that is killed keeps others' memory, and may be compiling."""
_REPORT_EVERY = 16
_VALUE, _POLICY = 0, 1


@dataclass
class Wiring:
    """Everything shared between collector, value learner and policy learner."""

    replay: ReplayBuffer
    """Written by the collector, read by both learners."""
    collect: Tokens
    """Env steps the collector may still do."""
    value: Tokens
    """Critic updates the value learner may still do."""
    policy: Tokens
    """Policy updates the policy learner may still do."""
    policy_room: Tokens
    """Policy updates the value learner may run ahead of."""
    actor_weights: WeightMailbox
    """From the policy learner to the other two; tags: policy updates done."""
    critic_weights: WeightMailbox
    """From the value learner to the policy learner; tags: critic updates done."""
    statistics: WeightMailbox
    """Normalisers, from the collector to both learners."""
    updates: torch.Tensor
    """Critic and policy updates done, int64 (2,); each entry has one writer."""
    metrics: tuple[torch.Tensor, torch.Tensor]
    """Newest ``VALUE_METRICS`` and ``POLICY_METRICS``, float32, and at the end of each whether there are any."""


def collector_lead(cfg: PQLCfg, max_lead: int) -> int:
    """Return how many env steps the collector may be ahead: enough to earn at least one critic update."""
    return max(max_lead, math.ceil(1.0 / cfg.value_updates_per_step) + 1)


def guard_slots(cfg: PQLCfg, runner_cfg: ParallelQRunnerCfg) -> int:
    """Return how many env steps may be written while one learner draws one sample: none where they take turns."""
    if runner_cfg.mode != "parallel":
        return 0
    policy_lead = math.ceil((runner_cfg.max_lead + 1) * cfg.policy_delay / cfg.value_updates_per_step)
    return collector_lead(cfg, runner_cfg.max_lead) + policy_lead + 2


class ParallelLearners:
    """The collector's handle on the two learner processes.

    The ratios are held by tokens: an env step earns ``value_updates_per_step`` critic updates, ``policy_delay`` critic
    updates earn a policy update. Nobody may run further ahead than ``max_lead`` env steps or policy updates.

    Args:
        algorithm: The collector's own copy; its replay memory, which needs ``guard_slots``, is moved to shared memory.
        max_lead: How far the collector, and the value learner, may run ahead.
        value_device: Device of the value learner.
        policy_device: Device of the policy learner.
        threads: CPU threads of each learner.
    """

    def __init__(self, algorithm: PQL, max_lead: int, value_device: str, policy_device: str, threads: int = 1) -> None:
        self.algorithm, cfg = algorithm, algorithm.cfg
        context = torch.multiprocessing.get_context("spawn")
        # the collector may go on until it is a full lead ahead of what the critic updates done have paid for
        counts = algorithm.counts
        paid = counts.paid_steps(counts.value_updates)
        self._granted = counts.earned_value_updates()
        due = counts.due_policy_updates(counts.value_updates) - counts.policy_updates
        self._wiring = Wiring(
            replay=algorithm.replay.share_memory_(),
            collect=Tokens(context, paid + collector_lead(cfg, max_lead) - counts.steps),
            value=Tokens(context, self._granted - counts.value_updates),
            policy=Tokens(context, due),
            policy_room=Tokens(context, max_lead - due),
            actor_weights=WeightMailbox(_weights(algorithm.actor)),
            critic_weights=WeightMailbox(_weights(algorithm.critic)),
            statistics=WeightMailbox(_statistics(algorithm)),
            updates=torch.tensor([counts.value_updates, counts.policy_updates]).share_memory_(),
            metrics=(_report(VALUE_METRICS), _report(POLICY_METRICS)),
        )
        self._acting_version = counts.policy_updates
        self._waited, self._since = 0.0, time.perf_counter()
        on_gpu = "cuda" in (torch.device(device).type for device in (value_device, policy_device))
        self.workers = WorkerGroup(context, GPU_PATIENCE_SECONDS if on_gpu else PATIENCE_SECONDS)
        payload = _pack(algorithm)
        for name, target, device in (
            (VALUE_LEARNER, run_value_learner, value_device),
            (POLICY_LEARNER, run_policy_learner, policy_device),
        ):
            self.workers.start(name, target, payload, self._wiring, device, threads)

    def before_step(self) -> None:
        """Wait for the right to one env step and take over the newest policy.

        Raises:
            WorkerDied: If a learner is dead.
        """
        self.workers.check()
        started = time.perf_counter()
        self._wiring.collect.take(self.workers.check)
        self._waited += time.perf_counter() - started
        tags = self._wiring.actor_weights.fetch(_weights(self.algorithm.actor))
        self._acting_version = self._acting_version if tags is None else tags[0]

    def after_step(self) -> None:
        """Hand out the updates that the env step earned."""
        if self.algorithm.device.type == "cuda":
            torch.cuda.current_stream(self.algorithm.device).synchronize()
        self._wiring.statistics.publish(_statistics(self.algorithm))
        earned = self.algorithm.counts.earned_value_updates()
        self._wiring.value.grant(earned - self._granted)
        self._granted = earned

    def metrics(self) -> dict[str, float]:
        """Return the learners' newest losses, the age of the acting policy, and the collector's share of waiting.

        ``Perf/collector_wait`` is the share of the time since the last call in which the collector had no right to a
        step: near 0 the learners are hidden behind the collection, near 1 they are what it waits for.
        """
        out: dict[str, float] = {}
        for names, told in zip((VALUE_METRICS, POLICY_METRICS), self._wiring.metrics, strict=True):
            *values, there = told.tolist()
            out |= dict(zip(names, values, strict=True)) if there else {}
        now = time.perf_counter()
        out["Perf/collector_wait"] = self._waited / (now - self._since)
        self._waited, self._since = 0.0, now
        return {**out, "Perf/policy_lag": float(self._wiring.updates[_POLICY] - self._acting_version)}

    def updates(self) -> tuple[int, int]:
        """Return the critic and policy updates done so far."""
        return int(self._wiring.updates[_VALUE]), int(self._wiring.updates[_POLICY])

    def pull(self) -> None:
        """Bring networks, optimisers and counters of the learners into the collector's algorithm.

        The observation statistics stay: the collector is the one who gathers them, and its own are the newest.
        """
        # Both go on learning meanwhile: asked in this order, no policy update is without the critic updates it needs.
        answers = self.workers.ask("state", (POLICY_LEARNER, VALUE_LEARNER))
        states = {name: torch.load(io.BytesIO(raw)) for name, raw in answers.items()}
        algorithm, value, policy = self.algorithm, states[VALUE_LEARNER], states[POLICY_LEARNER]
        newest = [statistic.clone() for statistic in _statistics(algorithm)]
        algorithm.critic.load_state_dict(value["critic"])
        algorithm.target_critic.load_state_dict(value["target_critic"])
        algorithm.critic_optimizer.load_state_dict(value["critic_optimizer"])
        algorithm.actor.load_state_dict(policy["actor"])
        algorithm.actor_optimizer.load_state_dict(policy["actor_optimizer"])
        torch._foreach_copy_(_statistics(algorithm), newest)
        algorithm.counts.value_updates, algorithm.counts.policy_updates = value["updates"], policy["updates"]

    def stop(self) -> None:
        """End both processes."""
        self.workers.stop()


def run_value_learner(link: WorkerLink, payload: bytes, wiring: Wiring, device: str, threads: int) -> None:
    """Update the critics for ever; body of the value learner's process."""
    learner = _unpack(payload, wiring.replay, device, threads, role=1)
    link.answers["state"] = lambda: _dump(
        critic=learner.critic, target_critic=learner.target_critic, critic_optimizer=learner.critic_optimizer,
        updates=learner.counts.value_updates,
    )  # fmt: skip
    while True:
        link.poll()
        wiring.value.take(link.poll)
        before = learner.counts.value_updates
        earned = learner.counts.due_policy_updates(before + 1) - learner.counts.due_policy_updates(before)
        for _ in range(earned):
            wiring.policy_room.take(link.poll)
        wiring.actor_weights.fetch(_weights(learner.actor))
        wiring.statistics.fetch(_statistics(learner))
        metrics = learner.learn_critics()
        if earned:
            wiring.critic_weights.publish(_weights(learner.critic), (learner.counts.value_updates,))
        wiring.updates[_VALUE] = learner.counts.value_updates
        _tell(wiring.metrics[_VALUE], metrics, learner.counts.value_updates)
        wiring.policy.grant(earned)
        wiring.collect.grant(learner.counts.paid_steps(before + 1) - learner.counts.paid_steps(before))


def run_policy_learner(link: WorkerLink, payload: bytes, wiring: Wiring, device: str, threads: int) -> None:
    """Update the policies for ever; body of the policy learner's process."""
    learner = _unpack(payload, wiring.replay, device, threads, role=2)
    link.answers["state"] = lambda: _dump(
        actor=learner.actor, actor_optimizer=learner.actor_optimizer, updates=learner.counts.policy_updates
    )
    while True:
        link.poll()
        wiring.policy.take(link.poll)
        wiring.critic_weights.fetch(_weights(learner.critic))
        wiring.statistics.fetch(_statistics(learner))
        metrics = learner.learn_policies()
        wiring.updates[_POLICY] = learner.counts.policy_updates  # first: what acts is never ahead of it
        wiring.actor_weights.publish(_weights(learner.actor), (learner.counts.policy_updates,))
        _tell(wiring.metrics[_POLICY], metrics, learner.counts.policy_updates)
        wiring.policy_room.grant()


def _weights(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach() for p in module.parameters()]


def _statistics(algorithm: PQL) -> list[torch.Tensor]:
    """Return what the collector alone gathers: the normalisers' buffers and the scale of the rewards."""
    modules = (algorithm.actor.normalizer, algorithm.critic.normalizer, algorithm.target_critic.normalizer)
    factor = torch.ones(()) if algorithm.return_scale is None else algorithm.return_scale.factor
    return [buffer for module in modules for buffer in module.buffers()] + [factor]


def _report(names: tuple[str, ...]) -> torch.Tensor:
    return torch.zeros(len(names) + 1).share_memory_()


def _tell(shared: torch.Tensor, metrics: torch.Tensor, count: int) -> None:
    if count % _REPORT_EVERY == 1:  # reading a loss waits for the device: seldom
        shared[:-1] = metrics
        shared[-1] = 1.0


def _dump(**parts: Any) -> bytes:
    """Serialise parts of a learner for a checkpoint; weights between updates go through the mailboxes instead."""
    buffer = io.BytesIO()
    torch.save({k: v.state_dict() if hasattr(v, "state_dict") else v for k, v in parts.items()}, buffer)
    return buffer.getvalue()


def _pack(algorithm: PQL) -> bytes:
    """Serialise an algorithm by value: tensors handed to a process would be shared, and both would train them."""
    actor = algorithm.actor
    buffer = io.BytesIO()
    sizes = [actor.num_obs, actor.num_actions, actor.num_policies]
    torch.save(
        {
            "actor": {"sizes": sizes, "cfg": asdict(actor.cfg)},
            "cfg": asdict(algorithm.cfg),
            "num_envs": algorithm.num_envs,
            "obs_sizes": algorithm.groups,
            "seed": algorithm.generator.initial_seed(),
            "state": algorithm.state_dict(),
        },
        buffer,
    )
    return buffer.getvalue()


def _unpack(payload: bytes, replay: ReplayBuffer, device: str, threads: int, role: int) -> PQL:
    torch.set_num_threads(threads)
    packed = torch.load(io.BytesIO(payload), map_location="cpu")
    num_obs, num_actions, num_policies = packed["actor"]["sizes"]
    actor = PopulationActor(num_obs, num_actions, num_policies, PopulationActorCfg(**packed["actor"]["cfg"]))
    raw = packed["cfg"]
    cfg = PQLCfg(**{**raw, "actor": PopulationActorCfg(**raw["actor"]), "critic": QEnsembleCfg(**raw["critic"])})
    algorithm = PQL(actor, cfg, packed["num_envs"], packed["obs_sizes"], device, replay=replay)
    # the generator of another device is none for this one, and every process draws its own rows
    algorithm.load_state_dict({**packed["state"], "generator": algorithm.generator.get_state()})
    algorithm.reseed(packed["seed"] + 1_000_000_007 * role + algorithm.counts.value_updates)
    return algorithm
