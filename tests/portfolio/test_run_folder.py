from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from myriad_lab.errors import CheckpointError, ConfigurationError
from myriad_lab.portfolio.atomic import check_writable, write_bytes, write_json
from myriad_lab.portfolio.bundle import save_bundle
from myriad_lab.portfolio.run_folder import RunFolder, git_state, resolve_checkpoint

from .helpers import make_actor, make_manifest


def add(run: RunFolder, iteration: int, coverage: float | None, task: str = "Myriad-Ant") -> Path:
    actor = make_actor(num_policies=1)
    metrics = {} if coverage is None else {"Population/coverage": coverage}
    manifest = make_manifest(actor, iteration, task=task, metrics=metrics)
    return save_bundle(run.checkpoint_path(iteration), actor, manifest)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "maze", "first")


def test_create_never_takes_an_existing_folder(tmp_path: Path) -> None:
    paths = {RunFolder.create(tmp_path, "e").path for _ in range(3)}
    assert len(paths) == 3
    with pytest.raises(ConfigurationError, match="leave out slashes"):
        RunFolder.create(tmp_path, "e", "../evil")


def test_unwritable_folder_is_found_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot write to .*file"):
        RunFolder.create(tmp_path / "file", "e")
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(ConfigurationError, match="Permission denied"):
            check_writable(tmp_path / "closed")


def test_full_disk_is_found_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"MiB left, at least .* MiB are needed"):
        RunFolder.create(tmp_path, "e", min_free_bytes=2**62)


def test_selectors(run: RunFolder) -> None:
    root = run.path.parents[1]
    with pytest.raises(CheckpointError, match="no run with a checkpoint under"):
        resolve_checkpoint("latest", root)
    first, second, third = (add(run, i, c) for i, c in [(1, 0.2), (9, 0.8), (10, 0.5)])
    assert resolve_checkpoint("latest", root) == third
    assert resolve_checkpoint("best", root) == second
    assert resolve_checkpoint(run.path) == third
    assert resolve_checkpoint(run.path / "best") == second
    assert resolve_checkpoint(first) == first
    run.mark_best(first.name)
    assert resolve_checkpoint("best", root) == first
    other = RunFolder.create(root, "ant")
    newest = add(other, 1, 0.1, task="Myriad-Humanoid")
    assert resolve_checkpoint("latest", root) == newest
    assert resolve_checkpoint("latest", root, task="Myriad-Ant") == third
    with pytest.raises(CheckpointError, match="no run with a checkpoint of Nothing"):
        resolve_checkpoint("latest", root, task="Nothing")


def test_wrong_paths_are_named(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint .*missing does not exist"):
        resolve_checkpoint(tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"holds neither manifest\.json nor checkpoints/"):
        resolve_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        resolve_checkpoint(run.path)
    with pytest.raises(CheckpointError, match="is no run folder"):
        RunFolder.open(tmp_path)
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        run.mark_best("iteration_000009")


def test_best_needs_the_named_metric(run: RunFolder) -> None:
    add(run, 1, None)
    with pytest.raises(CheckpointError, match="names as best_metric"):
        run.best()
    add(run, 2, float("nan"))
    with pytest.raises(CheckpointError, match="names as best_metric"):
        run.best()


def test_best_honours_the_mode(run: RunFolder) -> None:
    actor = make_actor(num_policies=1)
    for iteration, value in [(1, 3.0), (2, 1.0), (3, 2.0)]:
        manifest = make_manifest(actor, best_metric={"name": "loss", "mode": "min"}, metrics={"loss": value})
        save_bundle(run.checkpoint_path(iteration), actor, manifest)
    assert run.best().name == "iteration_000002"


def test_prune_keeps_the_last_and_the_best(run: RunFolder) -> None:
    for iteration, coverage in enumerate([0.1, 0.9, 0.2, 0.3, 0.4], start=1):
        add(run, iteration, coverage)
    (run.checkpoints / ".tmp-1-iteration_000006").mkdir()
    run.prune(keep=2)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == [f"iteration_{i:06d}" for i in (2, 4, 5)]
    assert RunFolder.open(run.latest()).path == run.path.resolve()
    with pytest.raises(ConfigurationError, match="keep=0"):
        run.prune(keep=0)


def test_incomplete_checkpoint_is_not_the_latest(run: RunFolder) -> None:
    complete = add(run, 3, 0.1)
    run.checkpoint_path(4).mkdir()
    assert run.latest() == complete
    complete.rename(run.checkpoints / ".previous-iteration_000003")
    assert run.latest() == complete


def test_run_info_and_metrics(run: RunFolder) -> None:
    run.write_info({"command": ["train"], "finished": False, "loss": float("inf")})
    run.write_info({"finished": True})
    assert run.read_info() == {"command": ["train"], "finished": True, "loss": None}
    run.metrics_file.write_text('{"iteration": 1}\n{"iteration": 2}\n{"iterat')
    assert [row["iteration"] for row in run.read_metrics()] == [1, 2]
    run.metrics_file.write_text('{"iterat\n{"iteration": 2}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl line 1 is damaged"):
        run.read_metrics()


def test_atomic_files(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "f", b"one")
    write_bytes(tmp_path / "a" / "f", b"two")
    assert (tmp_path / "a" / "f").read_bytes() == b"two"
    with pytest.raises(TypeError, match="has no JSON form"):
        write_json(tmp_path / "a" / "g", {"x": object()})
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["f"]


def test_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) == (None, "")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    (tmp_path / "f").write_text("one\n")
    for arguments in (["init", "-q"], ["add", "f"], ["commit", "-q", "--no-verify", "-m", "m"]):
        subprocess.run([*git, *arguments], check=True)
    (tmp_path / "f").write_text("two\n")
    commit, difference = git_state(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    assert "-one\n+two" in difference
