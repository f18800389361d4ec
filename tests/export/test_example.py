from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

from myriad_lab.cli.export import export
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from myriad_lab.portfolio.bundle import Bundle, load_bundle, save_bundle
from myriad_lab.tasks.registry import make_env
from portfolio.helpers import make_manifest

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "run_policy.py"
SECONDS = 0.2  # contacts are chaotic: soon after, rounding in float32 becomes millimetres
CASES = {
    "Myriad-AntMaze-Maze": {"start_noise": 0.0, "joint_noise": 0.0},
    "Myriad-AntMaze-Pyramid": {"start_noise": 0.0, "joint_noise": 0.0, "arena_scale": 0.5},
    "Myriad-Ant": {"joint_noise": 0.0, "joint_vel_noise": 0.0},
    "Myriad-Humanoid": {"joint_noise": 0.0, "joint_vel_noise": 0.0},
    "Myriad-Velocity-Quadruped": {
        "joint_noise": 0.0,
        "yaw_noise": 0.0,
        "command_low": [0.5, 0.0, 0.0],
        "command_high": [0.5, 0.0, 0.0],
        "standing_share": 0.0,
    },
}


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_policy", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_bundle(folder: Path, task: str, values: dict[str, Any]) -> Bundle:
    env = make_env(task, backend="mujoco", num_envs=2, overrides=values)
    try:
        cfg = PopulationActorCfg(trunk=[32], adapter_dim=16, mean_gain=3.0)
        generator = torch.Generator().manual_seed(0)
        actor = PopulationActor(env.spec.group_size("policy"), env.num_actions, 2, cfg, generator=generator)
        manifest = make_manifest(actor, spec=env.spec.to_dict(), task=task, backend="mujoco", config={"env": values})
    finally:
        env.close()
    return load_bundle(save_bundle(folder / "b", actor, manifest))


def env_path(bundle: Bundle, head: int, num_steps: int) -> np.ndarray:
    env = make_env(bundle.manifest.task, backend="mujoco", num_envs=2, overrides=bundle.manifest.config["env"])
    positions = []
    try:
        obs = env.reset()
        for _ in range(num_steps):
            obs, _, dones, _ = env.step(bundle.actor.act(obs["policy"], deterministic=True).action.detach())
            assert not dones.any()
            positions.append(env.simulator.state().root_pos_w[head].clone())  # pyright: ignore
    finally:
        env.close()
    return torch.stack(positions).numpy()


@pytest.mark.parametrize("task", CASES)
def test_example_walks_as_the_env_does(tmp_path: Path, task: str) -> None:
    bundle = make_bundle(tmp_path, task, CASES[task])
    export(bundle, "all", tmp_path / "out")
    contract = json.loads((tmp_path / "out" / "contract.json").read_text())
    num_steps = round(SECONDS / contract["control_period"]["value"])
    for head in (0, 1):
        walked = load_example().run(tmp_path / "out", num_steps * contract["control_period"]["value"], head)
        expected = env_path(bundle, head, num_steps)
        assert np.ptp(expected, axis=0).max() > 0.02, "a robot that does not move proves nothing"
        np.testing.assert_allclose(walked[: num_steps // 2], expected[: num_steps // 2], atol=1e-4)
        np.testing.assert_allclose(walked, expected, atol=2e-3)


@pytest.mark.parametrize("task", CASES)
def test_example_sees_what_the_env_shows(tmp_path: Path, task: str) -> None:
    bundle = make_bundle(tmp_path, task, CASES[task])
    export(bundle, "0", tmp_path / "out")
    contract = json.loads((tmp_path / "out" / "contract.json").read_text())
    env = make_env(task, backend="mujoco", num_envs=2, overrides=CASES[task])
    try:
        env.reset()
        actions = 2.0 * torch.rand(2, env.num_actions, generator=torch.Generator().manual_seed(1)) - 1.0
        for _ in range(6):  # until they are tilted and turning
            obs, _, dones, _ = env.step(actions)
        assert not dones.any()
        state = env.simulator.state()  # pyright: ignore
        for i in range(2):
            parts = (state.root_pos_w[i], state.root_quat_w[i], state.joint_pos[i])
            data = SimpleNamespace(qpos=torch.cat(parts).double().numpy())
            mujoco.mju_quat2Mat(to_world := np.empty(9), data.qpos[3:7])
            turning = to_world.reshape(3, 3).T @ state.root_ang_vel_w[i].double().numpy()
            data.qvel = np.concatenate((state.root_lin_vel_w[i].numpy(), turning, state.joint_vel[i].numpy()))
            row = load_example().observe(contract, data, actions[i].numpy(), (0.5, 0.0, 0.0))[0]
            np.testing.assert_allclose(row, obs["policy"][i].numpy(), atol=2e-5)
    finally:
        env.close()


def test_scene_stands_alone(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "Myriad-AntMaze-Maze", CASES["Myriad-AntMaze-Maze"])
    export(bundle, "1", tmp_path / "out")
    model = mujoco.MjModel.from_xml_string((tmp_path / "out" / "scene.xml").read_text())
    assert model.nu == bundle.actor.num_actions
    assert model.ngeom > 20, "walls belong to the scene"
    assert json.loads((tmp_path / "out" / "contract.json").read_text())["policy"]["head"] == 1


def test_example_is_short_and_needs_little() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= 60
    assert "torch" not in text
    assert "myriad" not in text
