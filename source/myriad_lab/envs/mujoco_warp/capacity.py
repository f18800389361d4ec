"""How many contacts and constraints there is room for, and what an env costs in memory."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from myriad_lab.envs.mujoco.compat import mujoco
from myriad_lab.envs.mujoco_warp.cfg import CapacityCfg
from myriad_lab.envs.mujoco_warp.compat import mjw, wp

_ROWS_PER_CONTACT = 4
"""Constraints of a contact with friction along two directions and a pyramidal cone."""
_CCD_SLOT_VERTICES, _CCD_SLOT_FACES, _CCD_SLOT_HORIZON = (10, 2, 16), (6, 5, 20), 96
"""Scratch of a convex collision: (fixed, per iteration, bytes of one) of vertices and faces; bytes of its horizon."""


@dataclass(frozen=True)
class Capacity:
    """See ``CapacityCfg``, with every number known."""

    nconmax: int
    njmax: int
    nccdmax: int


def capacity_of(model: mujoco.MjModel, cfg: CapacityCfg) -> Capacity:
    """Return the capacity that ``cfg`` asks for; where it leaves a number open, what the geometry can come to.

    On a plane a sphere touches once, a capsule twice, any other geom four times; beside walls as much again, and on a
    height field four times as much, for a geom may lie over several of its triangles. Limited joints add a row each.
    """
    moving = model.geom_bodyid > 0
    types, geom = model.geom_type[moving], mujoco.mjtGeom
    touches = np.where(types == geom.mjGEOM_SPHERE, 1, np.where(types == geom.mjGEOM_CAPSULE, 2, 4)).sum()
    walls = bool((model.geom_type[~moving] == geom.mjGEOM_BOX).any())
    nconmax = cfg.nconmax or int(touches) * (4 if model.nhfield else 2 if walls else 1)
    limits = int(model.jnt_limited.sum()) + model.neq
    return Capacity(
        nconmax=nconmax,
        njmax=cfg.njmax or _ROWS_PER_CONTACT * nconmax + limits,
        # a geom meets the one height field once, and any walls that are no primitive pair about as often
        nccdmax=min(nconmax, cfg.nccdmax or int(moving.sum())),
    )


@dataclass(frozen=True)
class Footprint:
    """Memory of the simulator [bytes]."""

    per_env: int
    """State and outputs of one env, exactly: the growth of all arrays with one env more."""
    scratch_per_env: int
    """What a physics step takes and gives back, about: solver, integrator, convex collision."""
    shared: int
    """The model, once."""

    def total(self, num_envs: int) -> int:
        """Return the memory for ``num_envs`` envs."""
        return self.shared + num_envs * (self.per_env + self.scratch_per_env)


def footprint(model: mujoco.MjModel, capacity: Capacity) -> Footprint:
    """Return what a simulator of this model will take, from arrays for one and two envs on the host."""
    with wp.ScopedDevice("cpu"):
        device_model = mjw.put_model(without_autoreset(model))
        one, two = (size_of(make_data(model, num_envs, capacity)) for num_envs in (1, 2))
    nv_pad = int(device_model.nv_pad)
    per_row, per_contact = 4 + 4 + 12 + 4, 20  # residuals, their products, line search, ids; a pair of the broadphase
    solver = per_row * capacity.njmax + 8 * nv_pad * nv_pad + 48 * nv_pad + per_contact * capacity.nconmax
    integrator = 4 * (3 * model.nC + 4 * model.nv)
    collision = 0
    if model.nhfield:
        iterations = int(device_model.opt.ccd_iterations)
        parts = (size * (fixed + each * iterations) for fixed, each, size in (_CCD_SLOT_VERTICES, _CCD_SLOT_FACES))
        collision = capacity.nccdmax * (sum(parts) + _CCD_SLOT_HORIZON)
    return Footprint(two - one, solver + integrator + collision, size_of(device_model))


def without_autoreset(model: mujoco.MjModel) -> mujoco.MjModel:
    """Return a copy for MuJoCo-Warp, which never resets a broken state and refuses to be told so."""
    import copy

    model = copy.copy(model)
    model.opt.disableflags &= ~int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    return model


def make_data(model: mujoco.MjModel, num_envs: int, capacity: Capacity) -> Any:
    """Allocate the engine's arrays on Warp's current device."""
    return mjw.make_data(
        without_autoreset(model),
        nworld=num_envs,
        nconmax=capacity.nconmax,
        njmax=capacity.njmax,
        nccdmax=capacity.nccdmax,
    )


def size_of(arrays: Any) -> int:
    """Return the bytes of all Warp arrays in a dataclass, nested ones included."""
    total = 0
    for spec in fields(arrays):
        value = getattr(arrays, spec.name)
        if is_dataclass(value):
            total += size_of(value)
        elif isinstance(value, wp.array):
            total += int(value.capacity)
    return total
