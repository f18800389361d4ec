"""What several ranks cost and gain: their messages, their shares of the neighbour search, and a whole update."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from myriad_lab.cli.benchmarks.line import BenchmarkLine, Case, measure
from myriad_lab.functional.collective import ALONE, Collective

NUM_OBS, NUM_ACTIONS, NUM_FEATURES = 48, 8, 2

NUM_POLICIES = 32
"""Of the populations that are timed, which are dealt out to no more ranks."""

Times = dict[tuple[str, str], tuple[float, float]]
"""(what, size) -> median and 95th percentile [s]."""


def cases(device: str, quick: bool) -> list[Case]:
    """Return a case for each number of ranks: 2 on a CPU, else the powers of 2 up to the number of GPUs, or that one.

    Ranks that share cores get less than a core each: run it where there is one for each.

    Args:
        device: Kind of device; on GPUs each rank has its own.
        quick: Small sizes, few repetitions.
    """
    most = 2 if torch.device(device).type == "cpu" else min(torch.cuda.device_count(), NUM_POLICIES)
    worlds = [2**n for n in range(1, most.bit_length())] or [1]
    return [Case(f"{world_size} ranks", partial(time_ranks, world_size, device, quick)) for world_size in worlds]


def time_ranks(world_size: int, device: str, quick: bool) -> list[BenchmarkLine]:
    """Return the times on 1 rank and on several, started here as ``torchrun`` would.

    The floor of a message is a copy of as many bytes in memory, that of shared work the time of one rank over the
    number of ranks, so that a ratio of 1 means that nothing is lost.
    """
    _, alone = _in_processes(1, device, quick)
    messages, work = _in_processes(world_size, device, quick) if world_size > 1 else ({}, alone)
    lines = []
    for (what, size), timing in messages.items():
        if what != "copy":
            floor = messages["copy", size][0]
            named = f"{what}, {world_size} ranks"
            lines.append(BenchmarkLine(named, size, *timing, floor_s=floor, floor="copy of the same bytes"))
    for (what, size), timing in work.items():
        single = alone[what, size][0]
        named, note = f"{what}, {world_size} ranks", f"1 rank {1000 * single:.4g} ms"
        floor = single / world_size
        lines.append(BenchmarkLine(named, size, *timing, floor_s=floor, floor="1 rank / ranks", note=note))
    return lines


def _in_processes(world_size: int, device: str, quick: bool) -> tuple[Times, Times]:
    """Return what rank 0 measured among as many processes."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours, theirs = context.Pipe()
    processes = [
        context.Process(target=_rank_main, args=(rank, world_size, port, device, quick, theirs), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    theirs.close()
    try:
        while not ours.poll(1.0):
            for rank, process in enumerate(processes):
                if process.exitcode not in (None, 0):
                    raise RuntimeError(f"rank {rank} of {world_size} ended with status {process.exitcode}; see above")
        return ours.recv()
    except BaseException:
        for process in processes:  # they would wait for the dead one, and disturb what is timed next
            process.kill()
        raise
    finally:
        for process in processes:
            process.join()


def _rank_main(rank: int, world_size: int, port: int, device: str, quick: bool, link: Any) -> None:
    from myriad_lab.distributed.process_group import Place, ProcessGroup, settle_device

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    place = Place(rank, world_size, rank, world_size)
    kind = torch.device(device).type
    settle_device(kind, place)
    if world_size == 1:
        link.send(({}, _shared_work(ALONE, kind, quick)))
        return
    with ProcessGroup(place) as ranks:
        found = _messages(ranks, kind, quick), _shared_work(ranks, kind, quick)
    if ranks.is_main:
        link.send(found)


def _messages(ranks: Collective, device: str, quick: bool) -> Times:
    """Time the messages of an iteration, and copies of as many bytes."""
    repetitions = 5 if quick else 50
    times: Times = {}

    def clock(what: str, size: str, work: Callable[[], object]) -> None:
        times[what, size] = measure(work, repetitions, device=device)

    trunk = [torch.randn(shape, device=device) for shape in ((512, NUM_OBS), (512,), (256, 512), (256,))]
    bucket = torch.cat([part.flatten() for part in trunk])
    size = f"{bucket.nbytes / 1e6:.2f} MB, trunk"
    clock("all-reduce in one message", size, lambda: ranks.sum(bucket))
    clock("all-reduce in 4 messages", size, lambda: [ranks.sum(part) for part in trunk])
    clock("copy", size, bucket.clone)
    one = torch.ones(1, device=device)
    clock("all-reduce in one message", "1 number", lambda: ranks.sum(one))
    clock("copy", "1 number", one.clone)
    for total in (16_384,) if quick else (16_384, 131_072, 1_048_576):
        rows = torch.randn(total // ranks.world_size, NUM_FEATURES, device=device)
        size = f"{rows.nbytes * ranks.world_size / 1e6:.2f} MB, {total} particles"
        clock("all-gather", size, partial(ranks.gather_rows, rows))
        clock("copy", size, rows.repeat(ranks.world_size, 1).clone)
    return times


def _shared_work(ranks: Collective, device: str, quick: bool) -> Times:
    """Time what the ranks share out, each doing its part at the same time."""
    from myriad_lab.functional.entropy import particle_rewards

    times: Times = {}

    def clock(what: str, size: str, work: Callable[[], object], repetitions: int = 10) -> None:
        times[what, size] = measure(work, 2 if quick else repetitions, warmup=1, device=device)

    for total in (4096,) if quick else (32_768, 131_072):
        generator = torch.Generator().manual_seed(0)
        rows = ranks.own_rows(torch.randn(total, NUM_FEATURES, generator=generator)).to(device)
        work = partial(_gather_and_reward, particle_rewards, ranks, rows)
        clock("gather the pool, search own neighbours", f"{total} particles, d={NUM_FEATURES}", work)
    total = 1024 if quick else 16_384
    clock(
        "action noise, drawn for all ranks",
        f"{total} envs",
        lambda: ranks.draw(torch.randn, total // ranks.world_size, NUM_ACTIONS, device=device),
    )
    for epochs in (1, 4):
        what = "rollout and update, one step" if epochs == 1 else f"rollout and update, {epochs} epochs"
        runner = _make_runner(ranks, device, quick, epochs)
        size = f"{runner.sizes['num_envs']} envs, {runner.sizes['num_policies']} policies"
        clock(what, size, partial(runner.learn, 1), repetitions=3)
    return times


def _gather_and_reward(reward: Callable[..., object], ranks: Collective, rows: torch.Tensor) -> object:
    return reward(ranks.gather_rows(rows), 20, ranks=ranks)


def _make_runner(ranks: Collective, device: str, quick: bool, epochs: int) -> Any:
    from myriad_lab.algorithms.kmyriad import KMyriadCfg
    from myriad_lab.envs.shard import Shard
    from myriad_lab.runners.population_runner import PopulationRunner, PopulationRunnerCfg
    from myriad_lab.tasks.registry import make_env

    num_envs = 64 if quick else 1024
    env = make_env(
        "Myriad-PointMaze-Maze",
        num_envs=num_envs // ranks.world_size,
        device=device,
        overrides={"episode_steps": 20 if quick else 50},
        shard=Shard(ranks.rank, ranks.world_size),
    )
    cfg = KMyriadCfg(num_epochs=epochs, k=5 if quick else 20)
    return PopulationRunner(env, cfg, PopulationRunnerCfg(), None, device, num_policies=NUM_POLICIES, ranks=ranks)
