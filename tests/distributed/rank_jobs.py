"""What the processes of the tests do; importable by name, so that they can be sent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from myriad_lab.algorithms.algorithm import Step
from myriad_lab.algorithms.kmyriad import KMyriad, KMyriadCfg
from myriad_lab.algorithms.population_optimizer import WeightGuard
from myriad_lab.cli.main import main
from myriad_lab.envs.contract import VecEnv
from myriad_lab.envs.shard import Shard
from myriad_lab.functional.collective import Collective
from myriad_lab.monitor.logger import make_loggers
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from myriad_lab.portfolio.run_folder import RunFolder
from myriad_lab.runners.callbacks import Callback
from myriad_lab.runners.population_runner import PopulationRunner, PopulationRunnerCfg
from myriad_lab.tasks.registry import make_env

M, NUM_ENVS, T = 4, 8, 12
SIZES = {"policy": 3, "features": 2}
TASK = "Myriad-PointMaze-Maze"


def tell_each_other(ranks: Collective) -> dict[str, Any]:
    """Call everything a ``Collective`` can do."""
    rows = torch.arange(6).view(3, 2) + 10 * ranks.rank
    flags = torch.tensor([ranks.rank == 0, False, ranks.rank == 1])
    whole = rows.T.contiguous().T  # not contiguous in memory
    return {
        "sum": ranks.sum(whole),
        "any": ranks.any(flags),
        "gathered": ranks.gather_rows(whole),
        "flags": ranks.gather_rows(flags),
        "collected": ranks.collect_rows(whole),
        "values": ranks.collect({"rank": ranks.rank, "rows": rows}),
        "told": ranks.from_main(f"rank {ranks.rank}"),
        "drawn": ranks.draw(torch.rand, 3, 2, generator=torch.Generator().manual_seed(0)),
        "left": rows,
    }


def outlive(ranks: Collective) -> str:
    """Return what rank 0 is told at its next message where the last rank has died without a word."""
    if ranks.rank == ranks.world_size - 1:
        os._exit(1)
    try:
        ranks.sum(torch.ones(1))
    except RuntimeError as error:
        return str(error)
    return "nothing"


def make(ranks: Collective, settings: dict[str, Any]) -> KMyriad:
    """Build the block of this rank of a small population."""
    settings = {"k": 3, "particle_stride": 2, "learning_rate": 1e-9, "mixed_precision": False} | settings
    network = settings.pop("network", {})
    actor_cfg = PopulationActorCfg(trunk=[16], adapter_dim=8, activation="tanh", obs_normalization=True, **network)
    torch.manual_seed(0)
    actor = PopulationActor(SIZES["policy"], 2, M, actor_cfg).select(range(M)[ranks.block(M)])
    cfg = KMyriadCfg(actor=actor_cfg, **settings)
    return KMyriad(actor, cfg, NUM_ENVS // ranks.world_size, SIZES, seed=0, num_steps=T, ranks=ranks)


def roll_out(algorithm: KMyriad, seed: int) -> None:
    """Fill one rollout of points that are pushed by their actions; env 5 diverges."""
    ranks, n = algorithm.ranks, algorithm.num_envs
    position = ranks.own_rows(torch.randn(NUM_ENVS, 2, generator=torch.Generator().manual_seed(seed)))
    own = torch.arange(NUM_ENVS)[ranks.block(NUM_ENVS)]
    none = torch.zeros(n, dtype=torch.bool)

    def observe() -> TensorDict:
        policy = torch.cat((position, torch.full((n, 1), 0.5)), 1)
        return TensorDict({"policy": policy, "features": position.clone()}, batch_size=[n])

    for t in range(T):
        obs = observe()
        actions = algorithm.act(obs)
        position = position + 0.3 * actions
        valid = ~((own == 5) & (t == 7))
        algorithm.observe(Step(obs, actions, torch.zeros(n), none, none, observe(), observe(), valid))


def learn(ranks: Collective, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return metrics, gradients and state of the whole population after two updates, for each case."""
    found: dict[str, Any] = {}
    for name, settings in cases.items():
        algorithm = make(ranks, settings)
        metrics: dict[str, torch.Tensor] = {}
        for i in range(2):
            roll_out(algorithm, i)
            metrics = algorithm.update()
        grads = {}
        for part, network in (("actor", algorithm.actor), ("value", algorithm.value)):
            stacked = network.stacked_names() if network is not None else ()
            for key, parameter in network.named_parameters() if network is not None else ():
                assert parameter.grad is not None
                grads[f"{part}.{key}"] = ranks.gather_rows(parameter.grad) if key in stacked else parameter.grad
        found[name] = {
            "metrics": metrics,
            "grads": grads,
            "heads": dict(algorithm.state_rewards.head_statistics),
            "state": algorithm.state_dict(),
        }
    return found


def break_one(ranks: Collective) -> dict[str, Any]:
    """Break a head of the last rank alone, under the eyes of the guard, and then by an update."""
    algorithm = make(ranks, {"num_epochs": 1})
    before = torch.cat([p.detach().flatten() for p in algorithm.actor.parameters()])

    def unchanged() -> bool:
        return torch.equal(before, torch.cat([p.detach().flatten() for p in algorithm.actor.parameters()]))

    guard: WeightGuard = algorithm.optimizer.guard()
    with torch.no_grad():
        algorithm.actor.trunk[0].weight.add_(1.0)
        if ranks.rank == ranks.world_size - 1:
            algorithm.actor.heads.out_bias[0] = torch.nan
    restored = bool(guard.restore_if_broken()) and unchanged()
    roll_out(algorithm, 0)
    if ranks.rank == ranks.world_size - 1:
        algorithm.storage["pre_squash"][0, 0] = torch.inf
    return {"guard": restored, "update": float(algorithm.update()["Loss/restored"]), "unchanged": unchanged()}


def adapt(ranks: Collective, share: float) -> float:
    """Return by what the step sizes change where every rank tells of ``share`` times the desired divergence."""
    algorithm = make(ranks, {"num_epochs": 2, "desired_kl": 0.5, "learning_rate": 1e-3})
    algorithm.optimizer.adapt(torch.tensor(0.5 * share))
    return float(algorithm.optimizer.learning_rate) / 1e-3


def point_maze(ranks: Collective) -> VecEnv:
    """Return this rank's part of the envs that are trained in."""
    shard = Shard(ranks.rank, ranks.world_size)
    return make_env(TASK, num_envs=NUM_ENVS // ranks.world_size, seed=0, overrides={"episode_steps": 10}, shard=shard)


class StopOnLastRank(Callback):
    """Asks one rank alone to stop after its second iteration, as a budget of seconds may."""

    def on_iteration(self, runner: Any, metrics: dict[str, float]) -> None:
        if runner.iteration == 1 and runner.ranks.rank == runner.ranks.world_size - 1:
            runner.request_stop()


def train(ranks: Collective, asked: dict[str, Any]) -> dict[str, Any]:
    """Train in the point maze, and return the trunk with the counters."""
    settings = {"k": 3, "window": 2, "mixed_precision": False} | asked
    folder, iterations = settings.pop("folder"), settings.pop("iterations")
    resume, stop = settings.pop("resume", None), settings.pop("stop", False)
    env = point_maze(ranks)
    network = PopulationActorCfg(trunk=[16], adapter_dim=8, obs_normalization=True)
    cfg = KMyriadCfg(actor=network, **settings)
    runner = PopulationRunner(
        env,
        cfg,
        PopulationRunnerCfg(save_interval=1),
        RunFolder(folder),
        num_policies=M,
        callbacks=[StopOnLastRank()] if stop else [],
        loggers=make_loggers("jsonl", folder) if ranks.is_main else [],
        ranks=ranks,
    )
    if resume is not None:
        runner.load(resume)
    runner.learn(iterations)
    trunk = torch.cat([p.detach().flatten() for p in runner.actor.shared_parameters()])
    return {"trunk": trunk, "iteration": runner.iteration, "env_steps": runner.env_steps}


def command(argv: list[str], folder: str, output: str) -> int:
    """Run ``myriad`` in ``folder`` and keep what it prints as ``output`` and the rank."""
    os.chdir(folder)
    with Path(f"{output}_{os.environ['RANK']}").open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    return main(argv)
