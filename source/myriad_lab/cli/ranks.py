"""The processes of one training run: which of them this one is, and what it leaves to the first."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from myriad_lab.distributed.process_group import (
    Place,
    ProcessGroup,
    find_place,
    refuse_lone_ranks,
    settle_device,
)
from myriad_lab.functional.collective import ALONE, Collective

if TYPE_CHECKING:
    from myriad_lab.cli.run_cfg import RunCfg


def place_of(flags: Mapping[str, Any]) -> Place:
    """Return where this process stands; one that is not the first says only what went wrong from now on.

    Raises:
        ConfigurationError: If ``--distributed`` is given without ``torchrun``, or the other way round.
    """
    if not flags.get("distributed"):
        refuse_lone_ranks()
        return Place()
    place = find_place()
    if place.rank:
        logging.getLogger().setLevel(logging.ERROR)
        # a rank's robots are its own: nobody else tells what becomes of them
        logging.getLogger("myriad_lab.envs").setLevel(logging.WARNING)
    return place


def open_ranks(place: Place, run: RunCfg) -> AbstractContextManager[Collective]:
    """Return the ranks of a run, as a context in which they can talk.

    Raises:
        ConfigurationError: If this process has no GPU of its own.
    """
    if not run.distributed:
        return nullcontext(ALONE)
    settle_device(run.device, place)
    return ProcessGroup(place)


def physics_threads(place: Place, learner_threads: int) -> int | None:
    """Return how many cores physics may take here, ``None`` for all: those that learner processes leave.

    Of several ranks each has a share of the launcher's cores, or all of its own where the launcher bound it to some.

    Args:
        place: Where this process stands.
        learner_threads: Threads of the learner processes beside it.
    """
    from myriad_lab.envs.cores import usable_cores

    if place.local_world_size == 1:
        return max(1, len(usable_cores()) - learner_threads) if learner_threads else None
    return min(len(usable_cores()), max(1, len(usable_cores(os.getppid())) // place.local_world_size))
