"""Run a function in several processes that form a group over gloo; one server forks them, so that a start is cheap."""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch

from myriad_lab.distributed.process_group import ProcessGroup, find_place
from myriad_lab.functional.collective import ALONE

SECONDS = 120.0
"""Longest time without an answer [s]."""
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch.distributed", "myriad_lab.cli.train", "myriad_lab.cli.plan"])


def run_ranks(world_size: int, job: Callable[..., Any], *args: Any, answers: int | None = None) -> list[Any]:
    """Return ``job(ranks, *args)`` of every rank, or of the first ``answers``; one rank alone runs here."""
    if world_size == 1:
        return [job(ALONE, *args)]
    return run_places(world_size, _in_group, job, *args, answers=answers)


def run_places(world_size: int, job: Callable[..., Any], *args: Any, answers: int | None = None) -> list[Any]:
    """Return ``job(*args)`` of processes that have the variables which torchrun sets; plain containers and tensors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    variables |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    running = []
    for rank in range(world_size):
        ours, theirs = _CONTEXT.Pipe()
        own = variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = _CONTEXT.Process(target=_main, args=(theirs, own, job, args), daemon=True)
        process.start()
        theirs.close()
        running.append((process, ours))
    try:
        return [_receive(rank, link) for rank, (_, link) in enumerate(running[:answers])]
    finally:
        for process, link in running:
            process.join(10.0)
            process.kill()
            process.join()
            process.close()
            link.close()


def _receive(rank: int, link: Any) -> Any:
    assert link.poll(SECONDS), f"rank {rank} says nothing"
    try:
        return torch.load(io.BytesIO(link.recv_bytes()), weights_only=True)
    except EOFError:
        raise AssertionError(f"rank {rank} died") from None


def _main(link: Any, variables: dict[str, str], job: Callable[..., Any], args: tuple) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    packed = io.BytesIO()
    torch.save(job(*args), packed)
    link.send_bytes(packed.getvalue())


def _in_group(job: Callable[..., Any], *args: Any) -> Any:
    with ProcessGroup(find_place()) as ranks:
        return job(ranks, *args)
