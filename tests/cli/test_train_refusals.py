"""Bad input through the command line: one clear line, status 2, and nothing built or written."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from myriad_lab.cli import train as train_module
from myriad_lab.cli.main import main
from myriad_lab.errors import ConfigurationError

TASK = "Myriad-PointMaze-Maze"
SMALL = ["--num_envs", "8", "--num_policies", "2", "--logger", "none"]
ON_PQL = ["--task", f"{TASK}-Goal", "--algorithm", "pql", *SMALL]
TINY_NETWORK = ["agent.actor.trunk=[8]", "agent.actor.adapter_dim=8", "env.episode_steps=10"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run of one iteration."""
    root = tmp_path_factory.mktemp("runs")
    flags = {
        "task": TASK,
        "num_envs": 8,
        "num_policies": 2,
        "max_iterations": 1,
        "logger": "none",
        "runs_root": str(root),
    }
    return train_module.train(flags, [*TINY_NETWORK, "agent.k=4"]).folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run ``myriad train``, which must refuse in one line on the error stream and leave nothing; return the line."""
    before = sorted(str(path) for path in Path().rglob("*"))
    assert main(["train", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    made = set(map(str, Path().rglob("*"))) - set(before)
    assert not [path for path in made if Path(path).is_file() or "checkpoints" in path or Path(path).parent.name == "a"]
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--task", TASK, "--num_envs", "10", "--num_policies", "4"], ["num_envs=10", "num_policies=4"]),
        (["--task", "Myriad-PointMaze-Mase", *SMALL], ["Myriad-PointMaze-Mase", "Did you mean", TASK]),
        ([*SMALL], ["--task", "list_tasks"]),
        (["--task", TASK, *SMALL, "agent.kk=3"], ["agent.kk", "Did you mean", "agent.k"]),
        (["--task", TASK, *SMALL, "env.gaol=[1,1]"], ["env.gaol", "Did you mean", "env.goal"]),
        (["--task", TASK, *SMALL, "agent.k=many"], ["agent.k='many'", "int"]),
        (["--task", TASK, *SMALL, "agent.k=100000"], ["k=100000", "particles"]),
        (["--task", TASK, *SMALL, "--device", "cuda:77"], ["cuda:77", "cpu"]),
        (
            ["--task", "Myriad-Ant", "--backend", "mujoco_warp"],
            ["cuda:0", "comes from the preset of backend mujoco_warp, --device chooses another"],
        ),
        (["--task", TASK, *SMALL, "--device", "abacus"], ["abacus", "cpu"]),
        (["--task", TASK, *SMALL, "--backend", "mujoco"], ["mujoco", "torch"]),
        (["--task", TASK, *SMALL, "backend=mujoco"], ["mujoco", "torch"]),
        (["--task", TASK, *SMALL, "--backend", "mujoco_warp"], ["no backend 'mujoco_warp'", "runs on torch"]),
        (["--task", TASK, *SMALL, "--backend", "isaaclab"], ["no backend 'isaaclab'", "runs on torch"]),
        (["--task", "Isaac-Ant-Direct", *SMALL], ["Isaac-Ant-Direct", "add --backend isaaclab"]),
        (["--task", TASK, *SMALL, "physics=ovphysx"], ["isaaclab.physics=ovphysx", "without --backend isaaclab"]),
        (["--task", TASK, *SMALL, "--viz", "viser"], ["--viz viser", "--backend isaaclab alone", "--video"]),
        (["--task", TASK, *SMALL, "--algorithm", "arac"], ["arac", "not available yet", "kmyriad"]),
        (["--task", TASK, *SMALL, "--algorithm", "kmyriat"], ["kmyriat", "Did you mean kmyriad"]),
        (["--task", TASK, *SMALL, "--distributed"], ["RANK, WORLD_SIZE", "not set", "torchrun --nproc_per_node"]),
        (["--task", TASK, *SMALL, "--num_envs", "-3"], ["--num_envs", "at least 1"]),
        (["--task", TASK, *SMALL, "--max_iterations", "0"], ["--max_iterations", "at least 1"]),
        (["--task", TASK, *SMALL, "--checkpoint", "gone"], ["gone", "does not exist"]),
        (["--task", TASK, *SMALL, "--checkpoint", "latest"], ["no run with a checkpoint"]),
        (["--task", TASK, *SMALL, "--portfolio", "gone"], ["gone", "does not exist"]),
        (["--task", TASK, *SMALL, "--seeding", "halving"], ["halving", "pql"]),
        ([*ON_PQL, "--seeding", "best"], ["--seeding best", "add --portfolio RUN"]),
        (["--task", TASK, "--algorithm", "ppo", *SMALL], ["num_policies=2", "ppo"]),
        (["--task", TASK, *SMALL, "--experiment_name", "a/b"], ["experiment_name", "a/b"]),
        (["--task", f"{TASK}-Goal", "--algorithm", "pql", *SMALL, "env.goal=[0.0,99.0]"], ["goal", "99"]),
        (["--task", f"{TASK}-Goal", "--algorithm", "pql", *SMALL, "env.goal=[1.0]"], ["goal", "[x, y]"]),
        (["--task", TASK, *SMALL, "experiment=none_such"], ["experiment=none_such"]),
        (["--task", TASK, "agent=ppo"], ["agent=ppo belongs to --algorithm ppo", "is kmyriad", "add --algorithm ppo"]),
        (["--task", TASK, "agent=pql"], ["agent=pql belongs to --algorithm pql"]),
        ([*ON_PQL, "agent=kmyriad_paper"], ["agent=kmyriad_paper belongs to --algorithm kmyriad", "is pql"]),
        (["experiment=pointmaze_goal", "agent=kmyriad"], ["belongs to --algorithm kmyriad", "is pql"]),
        (["--task", TASK, *SMALL, "agent.num_minibatches=100000"], ["num_minibatches=100000", "600 env steps"]),
        (["--task", TASK, *SMALL, "agent.actor.trunk=[-3]"], ["agent.actor.trunk=[-3]", "at least 1"]),
        ([*ON_PQL, "agent.actor.trunk=[-3]"], ["agent.actor.trunk=[-3]", "at least 1"]),
        ([*ON_PQL, "agent.runner.halving_iterations=[-5]"], ["halving_iterations=[-5]", "at least 1"]),
        ([*ON_PQL, "agent.runner.halving_iterations=[5,5]"], ["halving_iterations=[5, 5]", "ascending"]),
        ([*ON_PQL, "agent.actor_lr=0"], ["actor_lr=0"]),
        ([*ON_PQL, "agent.target_bounds=[1.0]"], ["target_bounds=[1.0]", "two ascending numbers"]),
        ([*ON_PQL, "agent.prior_weight=0.5"], ["prior_weight=0.5", "portfolio"]),
        ([*ON_PQL, "experiment=pointmaze_goal"], ["prior_fraction=0.5", "portfolio"]),
        ([*ON_PQL, "agent.runner.learner_threads=9999"], ["learner_threads=9999", "at most 1024"]),
        ([*ON_PQL, "agent.runner.policy_device=cpu"], ["policy_device='cpu'", "mode=parallel"]),
        ([*ON_PQL, "agent.runner.mode=parallel", "agent.runner.value_device=cuda:7"], ["cuda:7", "cpu"]),
        ([*ON_PQL, "agent.runner.mode=parallel", "--deterministic"], ["--deterministic", "mode=interleaved"]),
        ([*ON_PQL, "agent.runner.evaluation_interval=5"], ["agent.runner.evaluation_interval"]),
        (
            [*ON_PQL, "--seeding", "halving", "--max_seconds", "60"],
            ["halving", "--max_iterations", "halving_iterations"],
        ),
        ([*ON_PQL, "--seeding", "halving", "--max_env_steps", "9"], ["halving", "env steps"]),
        ([*ON_PQL, "--seeding", "halving", "--max_iterations", "1"], ["max_iterations=1", "give at least 2"]),
        (["--task", TASK, "--algorithm", "ppo", "agent.runner.save_interval=0"], ["save_interval=0"]),
        (
            ["--task", TASK, "--algorithm", "ppo", "agent.min_log_std=-1.0"],
            ["min_log_std=-1.0 has no effect", "nothing"],
        ),
        ([*ON_PQL, "agent.actor.squash=clip"], ["squash='clip'", "end in tanh"]),
    ],
)
def test_bad_input(arguments: list[str], says: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, *arguments)
    assert all(text in line for text in says), line


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_logger_whose_package_is_missing(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    line = refused(capsys, "--task", TASK, *SMALL, *TINY_NETWORK, "agent.k=4", "--logger", name)
    assert f"needs the package {name}" in line


def test_a_goal_inside_a_wall(capsys: pytest.CaptureFixture[str]) -> None:
    from myriad_lab.tasks.registry import get

    entry = get(f"{TASK}-Goal")
    x, y = entry.make_task(entry.cfg).arena.boxes[-1].center
    line = refused(capsys, "--task", entry.id, "--algorithm", "pql", *SMALL, f"env.goal=[{x},{y}]")
    assert "inside a wall" in line


def test_an_unwritable_run_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    line = refused(capsys, "--task", TASK, *SMALL, "--runs_root", "file")
    assert "cannot write to file" in line


def test_the_bundle_of_another_task(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--task", "Myriad-PointMaze-Empty", *SMALL, "--checkpoint", str(trained))
    assert "Myriad-PointMaze-Empty" in line
    assert TASK in line


def test_the_bundle_of_another_robot(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--task", "Myriad-AntMaze-Maze", *SMALL, "--portfolio", str(trained))
    assert f"of {TASK}, do not fit the env, of Myriad-AntMaze-Maze" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*ON_PQL, "agent.actor.trunk=[16]"], ["agent.actor.trunk=[16]", "the policies come from", "leave it out"]),
        (
            ["--task", f"{TASK}-Goal", "--algorithm", "ppo", "--num_envs", "8", "agent.actor_hidden_dims=[16]"],
            ["agent.actor_hidden_dims=[16]", "the policies come from"],
        ),
        (
            ["--task", f"{TASK}-Goal", "--algorithm", "ppo", "--num_envs", "8", "--seeding", "all"],
            ["--seeding all", "ppo trains one policy", "best head"],
        ),
        (
            ["--task", f"{TASK}-Goal", "--algorithm", "ppo", "--num_envs", "8", "agent.init_std=0.1"],
            ["agent.init_std=0.1 has no effect", "a head, which brings its noise"],
        ),
    ],
)
def test_what_a_portfolio_leaves_without_effect(
    trained: Path, arguments: list[str], says: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "--portfolio", str(trained), *arguments)
    assert all(text in line for text in says), line


def test_pql_from_policies_that_do_not_end_in_tanh(capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"task": f"{TASK}-Goal", "algorithm": "ppo", "num_envs": 8, "max_iterations": 1, "logger": "none"}
    small = ["agent.actor_hidden_dims=[8]", "agent.critic_hidden_dims=[8]", "agent.num_steps_per_env=4"]
    folder = train_module.train(flags, small).folder
    assert "end in tanh" in refused(capsys, "--portfolio", str(folder), *ON_PQL[:-4], "--num_envs", "8")


def test_another_number_of_heads(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--checkpoint", str(trained), "--num_policies", "4", "--max_iterations", "5")
    assert "another num_policies: 2 in the bundle, 4 asked for" in line


@pytest.mark.parametrize("preset", ["experiment=antmaze", "agent=pql", "task=antmaze", "backend=mujoco", "logger=none"])
def test_presets_for_a_run_to_go_on_with(preset: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--checkpoint", str(trained), "--max_iterations", "5", preset)
    assert f"{preset}: presets" in line
    assert "agent.KEY=VALUE" in line


def test_a_truncated_checkpoint(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    (weights,) = copy.glob("checkpoints/*/weights.pt")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated" in refused(capsys, "--checkpoint", str(copy), "--max_iterations", "5")


def test_a_run_that_has_done_more(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    assert main(["train", "--checkpoint", str(copy), "--max_iterations", "2"]) == 0
    capsys.readouterr()
    for bundle, done in ((copy, 2), (min(copy.glob("checkpoints/iteration_*")), 1)):
        line = refused(capsys, "--checkpoint", str(bundle), "--max_iterations", "1")
        assert f"the run has done {done} of max_iterations=1" in line


def test_a_checkpoint_and_a_portfolio(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--checkpoint", str(trained), "--portfolio", str(trained))
    assert "give one of them" in line


def test_features_with_nan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from myriad_lab.tasks.maze.point_maze import PointMazeTask

    monkeypatch.setattr(PointMazeTask, "features", lambda self, state: state.root_pos_w[:, :2] * float("nan"))
    line = refused(capsys, "--task", TASK, *SMALL, *TINY_NETWORK, "agent.k=4")
    assert "group 'features' is not finite at the start, in 8 of 8 envs, columns [0, 1]" in line


def test_a_policy_that_breaks_in_training(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from myriad_lab.algorithms.pql import PQL

    monkeypatch.setattr(PQL, "act", lambda self, obs: torch.full((self.num_envs, self.num_actions), float("nan")))
    assert main(["train", *ON_PQL, *TINY_NETWORK]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: NaN in the actions of envs [0, 1, 2, 3, 4, 5, 6, 7]: the policy broke")


@pytest.mark.parametrize(
    ("version", "says"), [(None, "is not installed here"), ("2.3.2", "Isaac Lab 2.3.2 is not supported yet, only 3.0")]
)
def test_isaac_lab_that_is_not_there_or_too_old(
    version: str | None, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib import metadata

    found = metadata.version

    def version_of(name: str) -> str:
        if name == "isaaclab" and version is None:
            raise metadata.PackageNotFoundError(name)
        return str(version) if name == "isaaclab" else found(name)

    monkeypatch.setattr(metadata, "version", version_of)
    assert main(["train", "--task", "Isaac-Ant-Direct", "--backend", "isaaclab"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("key", ["env.scene.num_envs=64", "env.seed=7", "env.sim.device=cuda:0"])
def test_what_flags_say_is_not_said_again(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--task", "Myriad-Ant", "--backend", "isaaclab", key]) == 2
    assert f"{key.split('=')[0]} is set by --" in capsys.readouterr().err


def test_features_of_our_own_tasks_are_not_exchanged(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--task", "Myriad-Ant", "--backend", "isaaclab", "isaaclab.features=[root_quat]"]) == 2
    assert "Myriad-Ant has features of its own, by which coverage and maps go" in capsys.readouterr().err


def test_viewers_are_known_and_films_need_one_with_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg

    with pytest.raises(ConfigurationError, match="unknown viewer 'foo'"):
        IsaacLabCfg(viz="viser,foo").validate()
    IsaacLabCfg(viz="viser,newton_gl").validate()
    arguments = ["--task", "Myriad-Ant", "--backend", "isaaclab", "--video", "--viz", "viser"]
    assert main(["train", *arguments]) == 2
    assert "gives no pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("feature", "says"),
    [
        ("root_yx", "unknown feature 'root_yx'"),
        ("term:policy", "expected term:GROUP:TERM"),
        ("columns:policy:3:1", "two numbers START < STOP"),
        ("body_pos", "expected body_pos:BODY"),
        ("root_xy:", "expected root_xy or root_xy:ASSET"),
    ],
)
def test_features_that_cannot_be(feature: str, says: str) -> None:
    from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg

    with pytest.raises(ConfigurationError, match=re.escape(says)):
        IsaacLabCfg(features=[feature]).validate()
