"""Watches for contacts and constraints that found no room, without waiting for the device."""

from __future__ import annotations

import logging

import torch

from myriad_lab.envs.mujoco_warp.compat import mjw

log = logging.getLogger(__name__)

_FLAGS = mjw.OverflowType
_RAISE = "raise env.capacity.{name}, it is {value}"
MENDING = {
    _FLAGS.NEFC: ("constraints", _RAISE, "njmax"),
    _FLAGS.NJMAX_NNZ: ("entries of the constraints' Jacobian", _RAISE, "njmax"),
    _FLAGS.BROADPHASE: ("pairs of geoms close to each other", _RAISE, "nconmax"),
    _FLAGS.NARROWPHASE: ("contacts", _RAISE, "nconmax"),
    _FLAGS.CCD: ("pairs of convex geoms", _RAISE, "nccdmax"),
    _FLAGS.HFIELD: ("contacts of one geom with the height field", "make its cells larger", ""),
    _FLAGS.CONTACT_MATCH: ("contacts of one contact sensor", "sense a smaller body", ""),
    _FLAGS.EPA_HORIZON: ("edges in a convex collision", "take simpler geoms", ""),
}
"""What found no room -> its name, what to do, the number to raise. That a solver stopped at its last iteration is not
here: MuJoCo's C engine does that in silence, too."""

_SHARED = (_FLAGS.BROADPHASE, _FLAGS.NARROWPHASE)
"""Raised in all envs at once, for the room that they share."""


class OverflowWatch:
    """Reads the engine's flags (which stay set once they are set) every ``interval`` steps, and one interval late.

    The copy to the host runs beside the physics and is looked at when the next one is due, so that no step waits.
    """

    def __init__(self, flags: torch.Tensor, values: dict[str, int], interval: int = 100) -> None:
        """Watch flags.

        Args:
            flags: Bits of ``OverflowType``, int32 ``(num_envs,)``, live.
            values: The capacity, for the messages.
            interval: Steps between two looks.
        """
        self._flags = flags
        self._values = values
        self._interval = interval
        self._steps = 0
        self._bits = torch.tensor([int(flag) for flag in MENDING], dtype=torch.int32, device=flags.device)
        on_gpu = flags.is_cuda
        self._counts = torch.zeros(len(MENDING), dtype=torch.long, pin_memory=on_gpu)
        self._copied = torch.cuda.Event() if on_gpu else None
        self._told: set[int] = set()

    def after_step(self) -> None:
        """Count a step; every ``interval`` of them, report what the last copy holds and start the next one."""
        self._steps += 1
        if self._steps % self._interval == 0:
            self._report()
            self._copy()

    def check(self) -> None:
        """Report what is set now; waits for the device."""
        self._copy()
        self._report()

    def _copy(self) -> None:
        counts = ((self._flags.unsqueeze(1) & self._bits) != 0).sum(0)
        self._counts.copy_(counts, non_blocking=True)
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self._flags.device))

    def _report(self) -> None:
        """Warn once of each kind of overflow."""
        if self._copied is not None:
            self._copied.synchronize()  # it was recorded an interval ago
        counts = self._counts.tolist()
        for (flag, (what, mend, name)), count in zip(MENDING.items(), counts, strict=True):
            if count and int(flag) not in self._told:
                self._told.add(int(flag))
                where = f"in {'some' if flag in _SHARED else count} of {len(self._flags)} envs"
                advice = mend.format(name=name, value=self._values.get(name))
                log.warning(
                    "No room for some %s %s: they were dropped, so robots sink or slide there; %s", what, where, advice
                )
