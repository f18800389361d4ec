"""The ranks that ``torchrun`` starts, over torch.distributed: NCCL between GPUs, gloo between the memories of hosts."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from myriad_lab.errors import ConfigurationError
from myriad_lab.functional.collective import Collective

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What ``torchrun`` sets for each process it starts."""
HOW = "torchrun --nproc_per_node 2 scripts/train.py ... --distributed"

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that ``torchrun`` started."""

    rank: int = 0
    """Number of the process, counted from 0."""
    world_size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Number of the process among those of this machine."""
    local_world_size: int = 1
    """Number of processes on this machine."""


def find_place(variables: Mapping[str, str] = os.environ) -> Place:
    """Return the place that ``torchrun`` gave to this process.

    Raises:
        ConfigurationError: If a variable is missing or is not the number it should be.
    """
    missing = [name for name in VARIABLES if not variables.get(name)]
    if missing:
        raise ConfigurationError(f"--distributed: {', '.join(missing)} not set; start the processes with `{HOW}`")
    numbers = {}
    for name in VARIABLES[:4]:
        if not variables[name].isdecimal():
            raise ConfigurationError(f"{name}={variables[name]!r}; expected a whole number, as `{HOW}` sets it")
        numbers[name.lower()] = int(variables[name])
    place = Place(**numbers)
    if place.rank >= place.world_size or place.local_rank >= place.local_world_size:
        raise ConfigurationError(
            f"RANK={place.rank} of WORLD_SIZE={place.world_size}, LOCAL_RANK={place.local_rank} of LOCAL_WORLD_SIZE="
            f"{place.local_world_size}: expected each rank below its size; start the processes with `{HOW}`"
        )
    return place


def refuse_lone_ranks(variables: Mapping[str, str] = os.environ) -> None:
    """Refuse processes that ``torchrun`` started to work together and that were not told so.

    Raises:
        ConfigurationError: If there are several.
    """
    if "TORCHELASTIC_RUN_ID" in variables and variables.get("WORLD_SIZE", "1") != "1":
        raise ConfigurationError(
            f"torchrun started {variables['WORLD_SIZE']} processes, each of which would train a whole run of its own; "
            "add --distributed"
        )


def check_shards(num_envs: int, num_policies: int, world_size: int) -> None:
    """Make sure that policies, and with them envs, can be dealt out evenly.

    Args:
        num_envs: Envs of the run, a multiple of ``num_policies``.
        num_policies: Policies of the run.
        world_size: Number of ranks.

    Raises:
        ConfigurationError: If they cannot; names numbers that would do.
    """
    if num_policies % world_size:
        fitting = world_size * max(1, round(num_policies / world_size))
        raise ConfigurationError(
            f"num_policies={num_policies} cannot be dealt out evenly to {world_size} ranks, and each policy lives on "
            f"one of them with its envs; use num_policies={fitting} with num_envs={num_envs // num_policies * fitting},"
            " or another number of processes"
        )


def settle_device(device: str, place: Place) -> None:
    """Make the GPU of this process, that of its number on the machine, the one that ``cuda`` means.

    Raises:
        ConfigurationError: If there is none, or another one is asked for.
    """
    if device == "cpu":
        return
    if device != "cuda":
        raise ConfigurationError(
            f"--device {device}: with --distributed each process takes the GPU of its LOCAL_RANK; give --device cuda"
        )
    count = torch.cuda.device_count()
    if place.local_rank >= count:
        raise ConfigurationError(
            f"rank {place.rank} is process {place.local_rank} of this machine, counted from 0, and the machine has "
            f"{count} GPUs; start at most one process for each GPU"
        )
    torch.cuda.set_device(place.local_rank)


class ProcessGroup(Collective):
    """The ranks of one run; see ``Collective``. Use it as a context manager, or close it.

    A rank that dies is noticed by ``torchrun``, which ends them all. Over gloo the others notice it at their next
    message; over NCCL they wait in it, until ``torchrun`` kills them.
    """

    def __init__(self, place: Place) -> None:
        """Wait for the other ranks, on the addresses that ``torchrun`` set."""
        self.rank, self.world_size = place.rank, place.world_size
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        # init_process_group tells about itself through the root logger of torch on every rank.
        logging.getLogger("torch.distributed").setLevel(logging.WARNING)
        # the others wait while rank 0 saves
        wait = timedelta(minutes=30)
        dist.init_process_group(backend, rank=place.rank, world_size=place.world_size, timeout=wait)

    def __enter__(self) -> ProcessGroup:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Leave the group; after an error, end without waiting for the others."""
        if kind is None:
            self.close()

    def close(self) -> None:
        """Leave the group; the second call does nothing."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of the tensors of all ranks."""
        summed = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of all ranks."""
        own = _as_numbers(rows.detach().contiguous())
        gathered = own.new_empty((self.world_size * len(own), *own.shape[1:]))
        _all_gather(gathered, own)
        return gathered.view(rows.dtype)

    def collect_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of all ranks on rank 0, in the memory of the host; elsewhere ``rows``."""
        own = _as_numbers(rows.detach().contiguous())
        parts = [torch.empty_like(own) for _ in range(self.world_size)] if self.is_main else None
        dist.gather(own, parts)
        return rows if parts is None else torch.cat([part.cpu() for part in parts]).view(rows.dtype)

    def collect(self, value: Any) -> list[Any]:
        """Return the values of all ranks on rank 0; elsewhere ``[value]``."""
        packed = io.BytesIO()
        torch.save(value, packed)
        parts: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(packed.getvalue(), parts)
        if parts is None:
            return [value]
        return [torch.load(io.BytesIO(part), map_location="cpu", weights_only=True) for part in parts]

    def from_main(self, value: Any) -> Any:
        """Return what rank 0 passes in."""
        told = [value]
        dist.broadcast_object_list(told)
        return told[0]


def _as_numbers(tensor: torch.Tensor) -> torch.Tensor:
    """Return flags as bytes, which every backend sends."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
