from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from myriad_lab.errors import CheckpointError, ConfigurationError
from myriad_lab.portfolio import manifest as manifest_module
from myriad_lab.portfolio.bundle import check_resume, check_seed, load_bundle, save_bundle, seed_actor, seed_heads
from myriad_lab.portfolio.manifest import Manifest
from myriad_lab.portfolio.plain_state import capture_rng_state, restore_rng_state

from .helpers import TASK, make_actor, make_manifest, make_spec


def save(path: Path, seed: int = 0, **parts: object) -> Path:
    actor = make_actor(seed=seed)
    return save_bundle(path, actor, make_manifest(actor), **parts)


@pytest.mark.parametrize("adapter", ["full", "film", "low_rank", "none"])
@pytest.mark.parametrize("state_dependent_std", [True, False])
def test_round_trip_gives_the_same_policies(tmp_path: Path, adapter: str, state_dependent_std: bool) -> None:
    actor = make_actor(adapter=adapter, state_dependent_std=state_dependent_std)
    save_bundle(tmp_path / "b", actor, make_manifest(actor, metrics={"Population/coverage": 0.5, "bad": float("nan")}))
    obs = torch.randn(8, 5)
    before = torch.get_rng_state()
    bundle = load_bundle(tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), before), "loading must not move the global generator"
    assert torch.equal(bundle.actor.act(obs, deterministic=True).action, actor.act(obs, deterministic=True).action)
    assert bundle.manifest.metrics == {"Population/coverage": 0.5, "bad": None}
    assert bundle.manifest.num_policies == 4
    assert bundle.manifest.package_version
    weights = torch.load(tmp_path / "b" / "weights.pt", weights_only=True)
    assert set(weights) == set(actor.state_dict())


def test_train_state_is_plain_and_comes_back(tmp_path: Path) -> None:
    big = torch.arange(1000.0)
    state = {
        "rng": capture_rng_state(),
        "view": big[:3],
        "array": np.arange(4, dtype=np.int64),
        "number": np.float64(0.1),
        "obs": TensorDict({"policy": torch.ones(2, 3)}, batch_size=[2]),
        "groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "none": None}],
        3: "integer key",
    }
    draws = (random.random(), float(np.random.rand()), torch.rand(3))
    path = save(tmp_path / "b", train_state=state, replay={"slots": torch.zeros(2, 2)})
    bundle = load_bundle(path)
    loaded = bundle.load_train_state()
    assert loaded["groups"] == state["groups"]
    assert loaded[3] == "integer key"
    assert loaded["number"] == 0.1
    assert torch.equal(loaded["view"], big[:3])
    assert loaded["view"].untyped_storage().nbytes() == 12, "a view must not drag its whole storage along"
    assert torch.equal(loaded["array"], torch.arange(4))
    assert torch.equal(loaded["obs"]["policy"], torch.ones(2, 3))
    assert torch.equal(bundle.load_replay()["slots"], torch.zeros(2, 2))
    restore_rng_state(loaded["rng"])
    again = (random.random(), float(np.random.rand()), torch.rand(3))
    assert draws[:2] == again[:2]
    assert torch.equal(draws[2], again[2])


def test_state_that_is_not_plain_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"train_state\.optimizer\[1\] holds a PosixPath"):
        save(tmp_path / "b", train_state={"optimizer": [1, Path("x")]})
    with pytest.raises(CheckpointError, match=r"has the key 1\.5 of type float"):
        save(tmp_path / "b", train_state={1.5: 1})
    assert list(tmp_path.iterdir()) == []


def test_missing_parts_are_named(tmp_path: Path) -> None:
    bundle = load_bundle(save(tmp_path / "b"))
    assert not bundle.has_replay
    with pytest.raises(CheckpointError, match=r"train_state\.pt is missing"):
        bundle.load_train_state()
    with pytest.raises(CheckpointError, match=r"replay\.pt is missing"):
        bundle.load_replay()
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        load_bundle(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty/manifest\.json is missing"):
        load_bundle(tmp_path / "empty")


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_truncated_weights_are_refused(tmp_path: Path, keep: int) -> None:
    path = save(tmp_path / "b")
    data = (path / "weights.pt").read_bytes()
    (path / "weights.pt").write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match=r"weights\.pt is truncated"):
        load_bundle(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "b")
    size = (path / "weights.pt").stat().st_size
    (path / "weights.pt").write_bytes(b"\0" * size)
    with pytest.raises(CheckpointError, match=r"weights\.pt is damaged"):
        load_bundle(path)
    (path / "manifest.json").write_text("{ not json")
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        load_bundle(path)
    (path / "manifest.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds no JSON object"):
        load_bundle(path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "b")
    manifest = Manifest.load(path)
    manifest.network["num_policies"] = 3
    manifest.save(path)
    with pytest.raises(CheckpointError, match="does not fit the network"):
        load_bundle(path)
    manifest.network["cfg"]["unheard_of"] = 1
    manifest.save(path)
    with pytest.raises(CheckpointError, match=r"cannot build.*unheard_of"):
        load_bundle(path)


def test_nan_weights_leave_the_previous_bundle(tmp_path: Path) -> None:
    path = save(tmp_path / "b", seed=1)
    actor = make_actor(seed=2)
    with torch.no_grad():
        actor.heads.out_weight[1, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"heads\.out_weight holds NaN"):
        save_bundle(path, actor, make_manifest(actor))
    obs = torch.randn(4, 5)
    expected = make_actor(seed=1).act(obs, deterministic=True).action
    assert torch.equal(load_bundle(path).actor.act(obs, deterministic=True).action, expected)


def test_full_disk_leaves_the_previous_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "b")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(path, seed=5)
    monkeypatch.undo()
    assert load_bundle(path).manifest.iteration == 1
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
from portfolio.helpers import make_actor, make_manifest
from myriad_lab.portfolio.bundle import save_bundle
import torch
torch.set_num_threads(1)
for i in range(100000):
    actor = make_actor(seed=i)
    state = {"counter": torch.full((20000,), float(i))}
    save_bundle(sys.argv[1], actor, make_manifest(actor, iteration=i), train_state=state)
    print(i, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.007])
def test_killed_while_saving_leaves_a_loadable_bundle(tmp_path: Path, delay: float) -> None:
    path = tmp_path / "b"
    command = [sys.executable, "-c", KILLED, str(path), str(Path(__file__).parents[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = -1
        for line in process.stdout:
            last = int(line)
            if last == 5:
                time.sleep(delay)
                process.send_signal(signal.SIGKILL)
                break
    assert last == 5
    bundle = load_bundle(path)
    iteration = bundle.manifest.iteration
    assert iteration >= 5
    assert torch.equal(bundle.load_train_state()["counter"], torch.full((20000,), float(iteration)))
    expected = make_actor(seed=iteration).state_dict()
    assert all(torch.equal(expected[name], value) for name, value in bundle.actor.state_dict().items())


def test_crash_between_the_two_moves_is_recovered(tmp_path: Path) -> None:
    path = save(tmp_path / "b")
    path.rename(tmp_path / ".previous-b")
    (tmp_path / ".tmp-1-b").mkdir()
    assert load_bundle(path).manifest.iteration == 1


def test_resume_refusal_prints_every_difference() -> None:
    manifest = make_manifest(make_actor())
    check_resume(manifest, make_spec(), num_policies=4, num_envs=8, algorithm="kmyriad", task=TASK)
    check_resume(manifest, make_spec().to_dict(), num_policies=4, task=TASK)
    asked = {"num_policies": 8, "num_envs": 16, "algorithm": "pql", "task": "Myriad-Ant"}
    with pytest.raises(CheckpointError) as refusal:
        check_resume(manifest, make_spec(joint_vel=8, scale=2.0, steps=100), **asked)
    text = str(refusal.value)
    assert "num_envs: 8 in the bundle, 16 asked for" in text
    assert "algorithm: kmyriad in the bundle, pql asked for" in text
    assert "task: Myriad-PointMaze-Maze in the bundle, Myriad-Ant asked for" in text
    assert "num_policies: 4 in the bundle, 8 asked for" in text
    assert "observations.policy[1]: joint_vel (3,) [rad/s] in the bundle, joint_vel (8,) [rad/s] in the env" in text
    assert "action.scale: [1.0, 1.0] in the bundle, [2.0, 2.0] in the env" in text
    assert "max_episode_length: 200 in the bundle, 100 in the env" in text


def test_seeding_demands_policy_terms_and_actions_only() -> None:
    manifest = make_manifest(make_actor())
    check_seed(manifest, make_spec(steps=17, task="Myriad-PointMaze-Maze-Goal"))
    spec = make_spec().to_dict()
    shorter = {**spec, "observations": {"policy": spec["observations"]["policy"][:1]}}
    with pytest.raises(CheckpointError, match=r"joint_vel \(3,\) \[rad/s\] in the bundle, absent in the env"):
        check_seed(manifest, shorter)
    other_scale = make_spec().to_dict()
    other_scale["observations"]["policy"][0]["scale"] = (0.5, 0.5)
    with pytest.raises(CheckpointError, match=r"policy\[0\]\.scale: \[\] in the bundle, \[0\.5, 0\.5\] in the env"):
        check_seed(manifest, other_scale)
    with pytest.raises(CheckpointError, match="of Myriad-PointMaze-Maze, do not fit the env, of Myriad-Ant"):
        check_seed(manifest, make_spec(scale=0.5, task="Myriad-Ant"))


def test_schema_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = make_manifest(make_actor()).to_dict()
    with pytest.raises(CheckpointError, match=r"schema version 99.*upgrade"):
        Manifest.from_dict({**raw, "schema_version": 99})
    with pytest.raises(CheckpointError, match="can no longer be read"):
        Manifest.from_dict({**raw, "schema_version": 0})
    with pytest.raises(CheckpointError, match="schema_version None"):
        Manifest.from_dict({k: v for k, v in raw.items() if k != "schema_version"})
    with pytest.raises(CheckpointError, match="lacks task"):
        Manifest.from_dict({k: v for k, v in raw.items() if k != "task"})
    with pytest.raises(CheckpointError, match="has unknown colour"):
        Manifest.from_dict({**raw, "colour": "red"})
    with pytest.raises(CheckpointError, match="lacks spec"):
        Manifest.from_dict({**{k: v for k, v in raw.items() if k != "spec"}, "schema_version": 1})
    monkeypatch.setitem(manifest_module.MIGRATIONS, 0, lambda old: {"task": old.pop("env_id"), **old})
    old = {**{k: v for k, v in raw.items() if k != "task"}, "env_id": "Old-Task", "schema_version": 0}
    migrated = Manifest.from_dict(old)
    assert (migrated.task, migrated.schema_version) == ("Old-Task", manifest_module.SCHEMA_VERSION)


def test_a_bundle_of_schema_1_fits_by_the_numbers_that_its_prose_told() -> None:
    raw = make_manifest(make_actor()).to_dict()
    spec, raw["schema_version"] = make_spec().to_dict(), 1
    for term in raw["spec"]["observations"]["policy"]:
        del term["parameters"]
    raw["spec"]["observations"]["policy"][1]["description"] = "sines of pi f p, f: [1.0, 3.0] (inner)"
    spec["observations"]["policy"][1].update(description="reworded", parameters={"frequencies": (1.0, 3.0)})
    check_seed(Manifest.from_dict(raw), spec)
    check_resume(Manifest.from_dict(raw), spec, task=TASK)
    spec["observations"]["policy"][1]["parameters"] = {"frequencies": (1.0, 4.0)}
    with pytest.raises(CheckpointError, match=r"frequencies: \[1\.0, 3\.0\] in the bundle, \[1\.0, 4\.0\] in the env"):
        check_seed(Manifest.from_dict(raw), spec)


def test_seed_heads() -> None:
    scores = [0.1, 0.9, 0.5]
    assert seed_heads(3, 3) == [0, 1, 2]
    assert seed_heads(3, 6, "halving") == [0, 0, 1, 1, 2, 2]
    assert seed_heads(3, 2, "all", scores) == [1, 2]
    assert seed_heads(3, 4, "best", scores) == [1, 1, 1, 1]
    for arguments, message in [
        ((3, 2), "less than the 3 heads"),
        ((3, 5), "not a multiple of the 3 heads"),
        ((3, 1, "best"), "needs a score per head"),
        ((3, 1, "bets", scores), "Did you mean best"),
        ((3, 3, "all", [1.0]), "1 scores for 3 heads"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            seed_heads(*arguments)


def test_seed_actor_takes_the_best_head(tmp_path: Path) -> None:
    bundle = load_bundle(save(tmp_path / "b"))
    seeded = seed_actor(bundle, 2, "best", [0.0, 0.0, 1.0, 0.0])
    obs = torch.randn(6, 5)
    expected = bundle.actor.select([2]).act(obs, deterministic=True).action
    torch.testing.assert_close(seeded.act(obs, deterministic=True).action, expected)
