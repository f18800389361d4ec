"""MuJoCo-Warp on a CUDA device: it moves as on the CPU, in torch's own memory, and a step makes nobody wait."""

from __future__ import annotations

import pytest
import torch

from envs.mujoco.scenes import WALLED, random_actions, rows, run, standing
from host_waits import no_cuda_syncs
from myriad_lab.envs.mujoco_warp.simulator import MujocoWarpSimulator
from myriad_lab.envs.robot_state import InitialState
from myriad_lab.tasks.locomotion.robots.robots import ANT

pytestmark = pytest.mark.gpu

NUM_ENVS = 8


def moved(initial: InitialState, device: str) -> InitialState:
    """Return states on a device."""
    return InitialState(**{name: getattr(initial, name).to(device) for name in initial.__dataclass_fields__})


def make(device: str) -> MujocoWarpSimulator:
    """Return ants that stand in their default pose."""
    simulator = MujocoWarpSimulator(ANT, WALLED, NUM_ENVS, device=device)
    simulator.reset(torch.arange(NUM_ENVS, device=device), moved(standing(ANT, NUM_ENVS), device))
    return simulator


def test_it_moves_as_on_the_cpu() -> None:
    ours, reference = make("cuda"), make("cpu")
    for actions in random_actions(reference, 5):
        ours.step(actions.cuda())
        reference.step(actions)
    for name in ("root_pos_w", "root_quat_w", "joint_pos"):
        mine, theirs = getattr(ours.state(), name).cpu(), getattr(reference.state(), name)
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


def test_a_replayed_step_waits_for_nothing_and_writes_into_the_same_memory() -> None:
    simulator = make("cuda")
    ids, initial = torch.tensor([1, 3], device="cuda"), moved(standing(ANT, 2), "cuda")
    actions = random_actions(simulator, 20)
    simulator.step(actions[0])
    where = simulator.physics.qpos.data_ptr()
    before = simulator.physics.qpos.clone()
    with no_cuda_syncs():
        for action in actions[1:]:
            simulator.step(action)
            simulator.reset(ids, initial)
    assert simulator.physics._graph is not None
    assert simulator.physics.qpos.data_ptr() == where == simulator.physics._data.qpos.ptr
    assert (simulator.physics.qpos != before).any(1).all()


def test_reset_touches_only_its_rows() -> None:
    simulator = make("cuda")
    run(simulator, random_actions(simulator, 10))
    before = rows(simulator)
    simulator.reset(torch.tensor([1, 3], device="cuda"), moved(standing(ANT, 2), "cuda"))
    others = [i for i in range(NUM_ENVS) if i not in (1, 3)]
    assert torch.equal(rows(simulator)[others], before[others])
    assert torch.equal(rows(simulator)[[1, 3]], rows(make("cuda"))[[1, 3]])


def test_a_snapshot_goes_on_within_rounding() -> None:
    """Threads find contacts in any order, and the solver sums them in it."""
    simulator, other = make("cuda"), make("cuda")
    actions = random_actions(simulator, 20)
    run(simulator, actions[:15])
    snapshot, now = simulator.state_dict(), rows(simulator)
    run(other, actions[:3])
    other.load_state_dict(snapshot)
    assert torch.equal(rows(other), now)
    for each in (simulator, other):
        run(each, actions[15:])
    for name in ("root_pos_w", "root_quat_w", "joint_pos"):
        torch.testing.assert_close(getattr(other.state(), name), getattr(simulator.state(), name), atol=1e-3, rtol=0)
