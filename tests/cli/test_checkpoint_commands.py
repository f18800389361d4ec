from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import myriad_lab.cli.evaluate as evaluate_command
import myriad_lab.cli.study as study_command
import myriad_lab.evaluation.report as report_page
from myriad_lab.cli.checkpoints import best_head, choose_heads, env_of, env_plan_of, open_bundle
from myriad_lab.cli.evaluate import EvaluateCfg, evaluate
from myriad_lab.cli.export import recorded_observations
from myriad_lab.cli.main import main
from myriad_lab.errors import CheckpointError, ConfigurationError
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from myriad_lab.portfolio.bundle import Bundle, describe_network, load_bundle, save_bundle
from myriad_lab.portfolio.manifest import Manifest
from myriad_lab.portfolio.run_folder import RunFolder
from myriad_lab.tasks.registry import make_env

TASK = "Myriad-PointMaze-Maze"
GOAL_TASK = f"{TASK}-Goal"
SMALL = EvaluateCfg(episodes=4, pool_size=256, num_envs=8)


def make_bundle(root: Path, task: str = TASK, steps: int = 20, **entries: Any) -> Bundle:
    run = RunFolder.create(root, "maze")
    env = make_env(task, num_envs=2, overrides={"episode_steps": steps})
    cfg = PopulationActorCfg(trunk=[16], adapter_dim=8)
    generator = torch.Generator().manual_seed(0)
    actor = PopulationActor(env.spec.group_size("policy"), env.num_actions, 2, cfg, generator=generator)
    manifest = Manifest(
        task=task,
        algorithm="kmyriad",
        spec=env.spec.to_dict(),
        network=describe_network(actor),
        num_policies=2,
        config={"env": {"episode_steps": steps}},
        backend="torch",
        arena=env.task.arena.to_dict(),  # pyright: ignore
        **entries,
    )
    return load_bundle(save_bundle(run.checkpoint_path(1), actor, manifest))


def test_evaluation_of_an_explorer(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    result, path = evaluate(bundle, SMALL)
    run = RunFolder.open(bundle.path)
    assert path == run.evaluation_file
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert 0.0 < result["portfolio"]["coverage"] < 0.2
    assert result["portfolio"]["coverage"] >= max(head["coverage"] for head in result["heads"])
    assert "success" not in result["portfolio"], "a reward-free task has no deterministic part"
    assert result["best_head"]["metric"] == "coverage"
    assert not (run.recordings / "evaluation.npz").exists()
    assert np.load(run.recordings / "evaluation_visits.npz")["features"].shape[0] == 2
    again, _ = evaluate(bundle, SMALL, out=tmp_path / "again.json")
    assert again == result, "the same seed gives the same numbers"


def test_evaluation_of_a_task_with_a_goal(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, GOAL_TASK)
    with torch.no_grad():
        bundle.actor.heads.out_bias[..., 0] = 10.0  # Straight to the right, where the goal is or is not.
    assert bundle.manifest.arena is not None
    x, y = bundle.manifest.arena["start"]
    near, _ = evaluate(
        bundle, SMALL, overrides=[f"env.goal=[{x + 2.0},{y}]", "env.goal_radius=1.0"], out=tmp_path / "near.json"
    )
    far, _ = evaluate(bundle, SMALL)
    assert near["portfolio"]["success"]["mean"] == 1.0
    assert near["portfolio"]["return"]["mean"] == 1.0
    assert near["portfolio"]["length"]["mean"] < 20.0
    assert far["portfolio"]["success"]["mean"] == 0.0
    assert far["portfolio"]["length"]["mean"] == 20.0
    assert far["settings"]["episodes_per_head"] == 4
    assert near["held_out_best"]["success"]["mean"] == 1.0
    assert len(far["goal"]) == 2


def test_explorer_is_evaluated_on_another_task_of_its_robot(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    cfg = EvaluateCfg(4, 256, num_envs=8, task=GOAL_TASK)
    result, _ = evaluate(bundle, cfg, overrides=["env.episode_steps=10"], out=tmp_path / "other.json")
    assert result["task"] == GOAL_TASK
    assert result["portfolio"]["length"]["mean"] == 10.0
    with pytest.raises(CheckpointError, match="do not fit the env"):
        env_of(bundle, 2, task="Myriad-Gridworld-Maze")


def test_one_head_alone(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    result, _ = evaluate(bundle, SMALL, heads=[1], out=tmp_path / "one.json")
    assert [head["head"] for head in result["heads"]] == [1]
    assert result["best_head"]["head"] == 1
    assert not list(tmp_path.rglob("recordings")), "what is written elsewhere is the numbers alone"


def test_heads_of_the_policy_flag(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    assert choose_heads("all", bundle) == [0, 1]
    assert choose_heads("1", bundle) == [1]
    for wrong in ("2", "-1", "beast", "\N{SUPERSCRIPT ONE}"):
        with pytest.raises(ConfigurationError, match=r"expected all, best, or a head in 0\.\.1"):
            choose_heads(wrong, bundle)
    with pytest.raises(ConfigurationError, match="nothing says which head"):
        choose_heads("best", bundle)
    bundle.manifest.head_metrics["mean_reward"] = [0.1, 0.7]
    assert choose_heads("best", bundle) == [1]
    evaluation = {"checkpoint": bundle.path.name, "task": TASK, "heads": [{}, {}], "best_head": {"head": 0}}
    file = RunFolder.open(bundle.path).evaluation_file
    file.write_text(json.dumps(evaluation))
    assert best_head(bundle) == 0
    file.write_text(json.dumps({**evaluation, "checkpoint": "iteration_000099"}))
    assert best_head(bundle) == 1, "an evaluation of another checkpoint does not count"
    file.write_text(json.dumps({**evaluation, "task": GOAL_TASK}))
    assert best_head(bundle) == 1, "nor does one on another task"


@pytest.mark.parametrize(("scores", "best"), [([None, 0.2, 0.7], 2), ([0.9, None, 0.7], 0)])
def test_heads_without_a_finished_episode_are_not_the_best(
    tmp_path: Path, scores: list[float | None], best: int
) -> None:
    bundle = make_bundle(tmp_path)
    bundle.manifest.num_policies = 3
    bundle.manifest.head_metrics["mean_reward"] = scores  # pyright: ignore
    assert best_head(bundle) == best
    bundle.manifest.head_metrics["mean_reward"] = [None, 0.2, None]  # pyright: ignore
    with pytest.raises(ConfigurationError, match="nothing says which head"):
        best_head(bundle)


def test_results_that_cannot_be_had_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(tmp_path)

    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(evaluate_command, "env_of", work)
    monkeypatch.setattr(report_page, "write_report", work)
    monkeypatch.setattr(study_command, "run_cells", work)
    (tmp_path / "file").touch()
    root = ["--runs_root", str(tmp_path)]
    below = str(tmp_path / "file" / "out")
    for arguments, message in (
        (["evaluate", *root, "--pool_size", "256", "--k", "128"], "k=128 with 128 particles for each of 2 heads"),
        (["evaluate", *root, "--pool_size", "1"], "with 0 particles"),
        (["evaluate", *root, "--policy", "1"], "evaluation.json is for all heads in the run's own task"),
        (["evaluate", *root, "--task", GOAL_TASK], f"not for --task {GOAL_TASK}; say with --out FILE"),
        (["evaluate", *root, "--backend", "mujoco"], "not for --backend mujoco; say with --out FILE"),
        (["evaluate", *root, "env.goal_radius=2"], "not for env.goal_radius=2; say with --out FILE"),
        (["evaluate", *root, "--out", below], f"cannot write to {tmp_path / 'file'}"),
        (["evaluate", *root, "--out", str(tmp_path)], f"cannot write to {tmp_path}: it is a folder"),
        (["report", *root, "--out", below], f"cannot write to {tmp_path / 'file'}"),
        (["study", "pretrain_pointmaze", "--out", below], f"cannot write to {below}"),
        (["benchmark", "knn", "--json", below], f"cannot write to {tmp_path / 'file'}"),
    ):
        assert main(arguments) == 2, arguments
        assert message in capsys.readouterr().err


def test_what_has_no_effect_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path)
    evaluate(bundle, SMALL)
    own, other = str(bundle.path), str(make_bundle(tmp_path, GOAL_TASK).path)
    run = str(RunFolder.open(own).path)
    for arguments, message in (
        (["export", "--checkpoint", own, "--policy", "1", "agent.k=3"], "agent.k=3: the run has recorded observations"),
        (["export", "--checkpoint", own, "--policy", "1", "env.foo=3"], "env.foo=3: the run has recorded observations"),
        (["report", run, "--checkpoint", "nowhere"], f"{run} and --checkpoint nowhere both say which run"),
        (["report", run, "--seeds", own], f"--seeds {run}: this run is on the page already"),
        (
            ["report", run, "--seeds", other],
            f"it is a run of kmyriad on {GOAL_TASK}, and the page is of kmyriad on {TASK}",
        ),
    ):
        assert main(arguments) == 2, arguments
        assert message in capsys.readouterr().err


def test_damaged_files_of_a_run_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder.open(make_bundle(tmp_path).path)
    for file, command in ((run.evaluation_file, "export"), (run.path / "run.json", "report")):
        file.write_text('{"task": "Myr')
        assert main([command, "--runs_root", str(tmp_path)]) == 2
        assert f"{file} is not readable as JSON" in capsys.readouterr().err
        file.unlink()
    (run.path / "run.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"run\.json holds no JSON object"):
        run.read_info()


def test_env_is_that_of_the_bundle_unless_told_otherwise(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    assert env_plan_of(bundle, TASK).values == {"episode_steps": 20}
    assert env_plan_of(bundle, TASK, overrides=["env.episode_steps=7"]).values == {"episode_steps": 7}
    assert env_plan_of(bundle, GOAL_TASK).values == {}
    with pytest.raises(ConfigurationError, match=r"only env\.key=value"):
        env_plan_of(bundle, TASK, overrides=["agent.k=3"])
    env = env_of(bundle, 4)
    assert (env.max_episode_length, env.num_envs) == (20, 4)
    with pytest.raises(ConfigurationError, match="device='cuda:99' is not there"):
        open_bundle(bundle.path, device="cuda:99")


def test_commands_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path)
    root = ["--runs_root", str(tmp_path)]
    small = ["--pool_size", "256", "--num_envs", "8"]
    assert main(["evaluate", "--checkpoint", "latest", *root, *small]) == 0
    assert main(["export", *root, "--policy", "best"]) == 0
    assert main(["report", *root]) == 0
    told = capsys.readouterr().out
    run = RunFolder.open(bundle.path)
    for file in (run.evaluation_file, run.path / "report.html"):
        assert str(file) in told
        assert file.stat().st_size > 500
    assert "recorded observations: ONNX" in told
    assert not (run.export / "scene.xml").exists(), "a point robot has no MuJoCo scene"
    session = onnxruntime.InferenceSession(str(run.export / "policy.onnx"))
    best = json.loads(run.evaluation_file.read_text())["best_head"]["head"]
    obs = np.zeros((1, bundle.actor.num_obs), dtype=np.float32)
    expected = bundle.actor.single(best)(torch.from_numpy(obs)).detach().numpy()
    np.testing.assert_allclose(session.run(None, {"obs": obs})[0], expected, atol=1e-6)


def test_export_leaves_alone_what_heads_saw_that_are_gone(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    evaluate(bundle, SMALL)
    _, heads = recorded_observations(bundle)
    assert set(heads) == {0, 1}
    halved = Bundle(bundle.path, bundle.manifest, bundle.actor.select([0]))
    assert recorded_observations(halved) == (None, None)


def test_export_without_an_evaluation_records_a_little(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path)
    assert main(["export", "--checkpoint", str(bundle.path), "--policy", "all", "--out", str(tmp_path / "out")]) == 0
    assert "on 512 rollout observations" in capsys.readouterr().out
    contract = json.loads((tmp_path / "out" / "contract.json").read_text())
    assert contract["policy"]["head"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--checkpoint", "nowhere"], "checkpoint nowhere does not exist"),
        (["export", "--checkpoint", "latest", "--runs_root", "nothing"], "no run with a checkpoint under nothing"),
        (["report", "--checkpoint", "nowhere"], "checkpoint nowhere does not exist"),
        (["evaluate", "--polcy", "all"], "unknown flag --polcy. Did you mean --policy"),
        (["report", "somewhere", "env.goal=1"], "report takes no overrides"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
