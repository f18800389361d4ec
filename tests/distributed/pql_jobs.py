"""What the processes of the tests of parallel Q-learning do; importable by name, so that they can be sent."""

from __future__ import annotations

from typing import Any

import torch
from rank_jobs import NUM_ENVS, M, StopOnLastRank, point_maze
from tensordict import TensorDict

from myriad_lab.algorithms.algorithm import Step
from myriad_lab.algorithms.pql import PQL, PQLCfg
from myriad_lab.functional.collective import Collective
from myriad_lab.monitor.logger import make_loggers
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from myriad_lab.networks.q_ensemble import QEnsembleCfg
from myriad_lab.portfolio.run_folder import RunFolder
from myriad_lab.runners.parallel_q_runner import ParallelQRunner, ParallelQRunnerCfg
from myriad_lab.storage.replay_batch import ReplayBatch

ROWS = 16
NETWORKS = {
    "actor": PopulationActorCfg(trunk=[16], adapter_dim=8, obs_normalization=True),
    "critic": QEnsembleCfg(hidden=[16, 16]),
    "mixed_precision": False,
}


def make(ranks: Collective, settings: dict[str, Any]) -> PQL:
    """Build the block of this rank of a small population; steps are so small that rounding cannot grow."""
    settings = {"actor_lr": 1e-9, "critic_lr": 1e-9, **settings}
    seeded = settings.pop("seeded", False)
    weights = torch.Generator().manual_seed(0)
    actor = PopulationActor(3, 2, M, NETWORKS["actor"], weights).select(range(M)[ranks.block(M)])
    cfg = PQLCfg(**NETWORKS, **settings)
    algorithm = PQL(actor, cfg, NUM_ENVS // ranks.world_size, {"policy": 3}, seed=0, seeded=seeded, ranks=ranks)
    with torch.no_grad():  # so that the policies are not those of the portfolio any more
        algorithm.actor.heads.out_bias.add_(0.3 if seeded else 0.0)
    return algorithm


def walk(algorithm: PQL, steps: int = 6) -> None:
    """Observe a walk of all envs in which env 5 diverges once and env 2 ends."""
    ranks, draw = algorithm.ranks, torch.Generator().manual_seed(1)
    for t in range(steps):
        obs, next_obs, actions = (torch.randn(NUM_ENVS, size, generator=draw) for size in (3, 3, 2))
        rewards, own = torch.rand(NUM_ENVS, generator=draw), torch.arange(NUM_ENVS)
        rows = [rewards, (own == 2) & (t == 3), (own == 5) & (t == 4), ~((own == 5) & (t == 4))]
        rewards, terminated, time_outs, valid = (ranks.own_rows(row) for row in rows)
        groups = [TensorDict({"policy": part}, [len(part)]) for part in (ranks.own_rows(obs), ranks.own_rows(next_obs))]
        own_actions = ranks.own_rows(actions.tanh())
        algorithm.observe(Step(groups[0], own_actions, rewards, terminated, time_outs, groups[1], groups[1], valid))


def minibatch(ranks: Collective) -> ReplayBatch:
    """Return this rank's rows of a minibatch for all heads."""
    draw = torch.Generator().manual_seed(2)
    obs, next_obs, actions = (torch.randn(M, ROWS, size, generator=draw) for size in (3, 3, 2))
    numbers, ids = torch.rand(3, M, ROWS, generator=draw), torch.zeros(M, ROWS, dtype=torch.int64)
    batch = ReplayBatch(
        obs={"policy": obs},
        actions=actions.tanh(),
        rewards=numbers[0],
        next_obs={"policy": next_obs},
        discounts=torch.where(numbers[1] < 0.1, 0.0, 0.97),
        steps=ids + 3,
        weights=(numbers[2] > 0.2).float(),
        env_ids=ids,
    )
    return batch.map(ranks.own_rows)


def update(ranks: Collective, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return gradients and state of the whole population after a walk and two updates of everything, for each case."""
    found: dict[str, Any] = {}
    for name, settings in cases.items():
        algorithm = make(ranks, settings)
        walk(algorithm)
        for _ in range(2):
            metrics = [algorithm.value_update(minibatch(ranks)), algorithm.policy_update(minibatch(ranks))]
        grads = {}
        for part, network in (("actor", algorithm.actor), ("critic", algorithm.critic)):
            for key, parameter in network.named_parameters():
                if parameter.grad is not None:
                    own = key in network.stacked_names()
                    grads[f"{part}.{key}"] = ranks.gather_rows(parameter.grad) if own else parameter.grad
        state = algorithm.state_dict()
        for drawn in ("generator", "noise", "others"):
            state.pop(drawn, None)
        if algorithm.return_scale is not None:
            state["return_scale"]["returns"] = ranks.gather_rows(algorithm.return_scale.state_dict()["returns"])
        told = ranks.sum(torch.stack(metrics)) / ranks.world_size
        found[name] = {"metrics": told, "grads": grads, "state": state}
    return found


def draws(ranks: Collective) -> dict[str, Any]:
    """Return what each rank draws for itself, noise of actions and envs of rows, and how many steps it keeps."""
    algorithm = make(ranks, {})
    walk(algorithm)
    noise = algorithm.noise.draw(algorithm.generator)
    return {"noise": noise, "envs": algorithm.sample().env_ids, "slots": algorithm.replay.capacity_steps}


def train(ranks: Collective, asked: dict[str, Any]) -> dict[str, Any]:
    """Train in the point maze, and return the trunk, the counters and the weights a resume began with."""
    settings = {"warmup_steps": 4, "batch_size": ROWS, "normalize_returns": True} | asked
    folder, iterations = settings.pop("folder"), settings.pop("iterations")
    resume, stop = settings.pop("resume", None), settings.pop("stop", False)
    save_replay = settings.pop("save_replay", False)
    runner = ParallelQRunner(
        point_maze(ranks),
        PQLCfg(**NETWORKS, **settings),
        ParallelQRunnerCfg(num_steps_per_iteration=15, save_interval=1, save_replay=save_replay),
        RunFolder(folder),
        num_policies=M,
        callbacks=[StopOnLastRank()] if stop else [],
        loggers=make_loggers("jsonl", folder) if ranks.is_main else [],
        ranks=ranks,
    )
    if resume is not None:
        runner.load(resume)
    began = ranks.gather_rows(runner.algorithm.critic.weights[0].detach()).clone()
    drawn = runner.algorithm.generator.get_state()
    runner.learn(iterations)
    trunk = torch.cat([p.detach().flatten() for p in runner.actor.shared_parameters()])
    counts = runner.algorithm.counts
    return {
        "trunk": trunk,
        "began": began,
        "generator": drawn,
        "iteration": runner.iteration,
        "env_steps": runner.env_steps,
        "updates": [counts.value_updates, counts.policy_updates],
    }
