"""Drivers of others' learners, with stand-ins of a few lines for their checkouts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from myriad_lab.cli import study as command
from myriad_lab.cli import study_cell, study_cells
from myriad_lab.cli.main import main, parser_of
from myriad_lab.cli.peers import cell, checkouts, fast_td3, flash_sac, recorder
from myriad_lab.cli.peers.checkouts import PEERS, find_checkout, refuse, stand_in, without_progress
from myriad_lab.cli.peers.recorder import Recorder, load_snapshots
from myriad_lab.cli.peers.requests import resolve_checkouts
from myriad_lab.envs.contract import VecEnv
from myriad_lab.errors import ConfigurationError
from myriad_lab.evaluation.study import BudgetCfg, load_study
from myriad_lab.export.torchscript import load_torchscript
from predictable_env import PredictableEnv

FAST_TD3 = {
    "fast_td3/hyperparams.py": """
        from dataclasses import dataclass
        import tyro

        @dataclass
        class IsaacLabArgs:
            env_name: str = ""
            num_envs: int = 4096
            seed: int = 1
            cuda: bool = True
            device_rank: int = 0
            total_timesteps: int = 100
            save_interval: int = 5000
            use_wandb: bool = True
            eval_interval: int = 5000
            render_interval: int = 5000
            learning_starts: int = 2
            num_updates: int = 2
            action_bounds: float = 1.0
            obs_normalization: bool = True

        def get_args():
            return tyro.cli(IsaacLabArgs)
    """,
    "fast_td3/fast_td3_utils.py": """
        import torch

        class Normalizer(torch.nn.Module):
            def forward(self, x, center=True, update=True):
                assert not update
                return x / 10.0

        def save_params(*args):
            raise AssertionError("checkpoints must not be written")
    """,
    "fast_td3/train.py": """
        import torch
        import tqdm
        import wandb
        from fast_td3_utils import Normalizer, save_params
        from hyperparams import get_args

        SEEN = []

        def main():
            args = get_args()
            assert args.env_name.startswith("Isaac-")
            from environments.isaaclab_env import IsaacLabEnv

            envs = IsaacLabEnv(args.env_name, "cpu", args.num_envs, args.seed, action_bounds=args.action_bounds)
            actor = torch.nn.Linear(envs.num_obs, envs.num_actions)
            torch.nn.init.zeros_(actor.weight)
            torch.nn.init.zeros_(actor.bias)
            normalizer = Normalizer() if args.obs_normalization else torch.nn.Identity()
            bar = tqdm.tqdm(total=args.total_timesteps, initial=0)
            obs = envs.reset(random_start_init=False)
            for step in range(args.total_timesteps):
                following, rewards, dones, infos = envs.step(torch.full((args.num_envs, envs.num_actions), 3.0))
                last = torch.where(dones[:, None] > 0, infos["observations"]["raw"]["obs"], following)
                SEEN.append((obs, rewards, dones, infos["time_outs"], last))
                obs = following
                with torch.no_grad():
                    actor.weight.fill_(0.01 * (step + 1))
                if step > 0 and step % args.save_interval == 0:
                    save_params(step, actor, None, None, normalizer, None, args, "models/x.pt")
                bar.update(1)
    """,
    "fast_td3/environments/__init__.py": "",
    "fast_td3/environments/isaaclab_env.py": "import isaaclab_is_not_here",
}
FLASH_SAC = {
    "flash_rl/__init__.py": "",
    "flash_rl/agents.py": """
        import gymnasium as gym
        import jax.numpy as jnp
        import numpy as np
        import torch

        ARRAYS = (np.ndarray, jnp.ndarray, gym.spaces.Space[int])

        class Actor(torch.nn.Module):
            def __init__(self, width):
                super().__init__()
                self.gain = torch.nn.Parameter(torch.tensor(0.0))
                self.width = width

            def get_mean_and_std(self, observations, training):
                assert not training
                return self.gain * observations[:, : self.width], 1.0

        class Network:
            def __init__(self, network):
                self.network = network

        class Agent:
            def __init__(self, observation_space, action_space, env_info, cfg):
                assert env_info["actor_observation_size"] == observation_space.shape[-1:]
                self._actor = Network(Actor(action_space.shape[-1]))
                self._update_step = 0

            def update(self):
                self._update_step += 1
                self._actor.network.gain.data += 0.01

        def create_agent(observation_space, action_space, env_info, cfg):
            return Agent(observation_space, action_space, env_info, cfg)
    """,
    "flash_rl/envs/__init__.py": "import isaaclab_is_not_here",
    "flash_rl/evaluation.py": "import gymnasium.vector",
    "flash_rl/common.py": "import tensorboard_is_not_here",
    "train.py": """
        import tqdm
        from flash_rl.agents import create_agent
        from flash_rl.common import create_logger
        from flash_rl.envs import create_envs
        from flash_rl.evaluation import evaluate, record_video

        SEEN, TOLD = [], []

        def run(args):
            TOLD.extend(args.overrides)
            env, eval_env, record_env = create_envs(env_type="isaaclab")
            _, info = env.reset()
            agent = create_agent(
                observation_space=env.observation_space, action_space=env.action_space, env_info=info, cfg=None
            )
            logger = create_logger(None)
            logger.update_metric(**evaluate(agent, eval_env, 1, ""), **record_video(agent, record_env, 1, ""))
            logger.log_metric(step=0)
            logger.reset()
            obs, _ = env.reset()
            for _ in tqdm.tqdm(range(int(1e6)), smoothing=0.1):
                following, rewards, ends, time_outs, info = env.step(env.action_space.sample())
                SEEN.append((obs, rewards, ends, time_outs, info["final_obs"]))
                obs = following
                agent.update()
            env.close()
    """,
}


def make_checkout(folder: Path, name: str, files: dict[str, str]) -> Path:
    """Write a stand-in for the checkout of a peer and commit it; returns its folder."""
    path = folder / name
    for file, text in files.items():
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        indent = len(text) - len(text.lstrip()) - 1
        (path / file).write_text("\n".join(line[indent:] for line in text.strip("\n").splitlines()) + "\n")
    git = ["git", "-C", str(path), "-c", "user.name=x", "-c", "user.email=x@localhost"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    return path


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Path]:
    """Checkouts of both; what their drivers import is forgotten afterwards."""
    make_checkout(tmp_path / "peers", "FastTD3", FAST_TD3)
    make_checkout(tmp_path / "peers", "FlashSAC", FLASH_SAC)
    modules, path = dict(sys.modules), list(sys.path)
    yield tmp_path / "peers"
    sys.path[:] = path
    for name in set(sys.modules) - set(modules):
        module = sys.modules[name]
        ours = getattr(module, "__spec__", None) is None  # stood in or replaced; a library that came in must stay
        if ours or str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


def train(
    name: str, peers: Path, env: VecEnv, tmp_path: Path, num_snapshots: int = 3, env_steps: int = 240, **settings: Any
) -> Recorder:
    driver = {"FastTD3": fast_td3, "FlashSAC": flash_sac}[name]
    run = Recorder(tmp_path / "snapshots", BudgetCfg(max_env_steps=env_steps), num_snapshots, "cpu")
    driver.train(find_checkout(name, peers), env, run, settings, seed=0)
    return run


def check_transitions(seen: list[tuple[Any, ...]], env: PredictableEnv) -> None:
    """Whatever ended or not, the true next observation is the next step of the same episode of the same env."""
    ended = timed_out = 0
    for obs, _, dones, time_outs, following in seen:
        obs, dones, time_outs, following = (torch.as_tensor(each) for each in (obs, dones, time_outs, following))
        assert torch.equal(following, obs + torch.tensor([0.0, 1.0, 0.0]))
        ended, timed_out = ended + int((dones > 0).sum()), timed_out + int(time_outs.sum())
        assert torch.equal(dones > 0, following[:, 1] >= env.lengths)
        assert torch.equal(time_outs > 0, (dones > 0) & (following[:, 2] % 2 == 1))
    assert ended > timed_out > 10


def test_fast_td3_sees_true_last_observations_and_clamped_actions(peers: Path, tmp_path: Path) -> None:
    env = PredictableEnv(num_envs=8)
    run = train("FastTD3", peers, env, tmp_path, save_interval=1, num_updates=3, total_timesteps=1000)
    script = sys.modules["fast_td3_train"]
    check_transitions(script.SEEN, env)
    assert torch.equal(env.last_actions, torch.ones(8, 2))
    assert len(script.SEEN) == 240 / 8
    snapshots = load_snapshots(tmp_path / "snapshots")
    assert [each.env_steps for each in snapshots] == [80, 160, 240]
    # 2 steps before the learning starts and the step of its start are without updates
    assert [each.updates for each in snapshots] == [3 * (10 - 3), 3 * (20 - 3), 3 * (30 - 3)]
    assert run.env_steps == 240
    obs = torch.tensor([[1.0, 2.0, 3.0], [400.0, 0.0, 0.0]])
    # weights after 10 and after 30 steps, behind the normaliser, and never beyond what an action may be
    for snapshot, weight in ((snapshots[0], 0.1), (snapshots[2], 0.3)):
        actions = load_torchscript(tmp_path / "snapshots" / snapshot.file)(obs)
        torch.testing.assert_close(actions, torch.tensor([[0.6 * weight] * 2, [1.0] * 2]))


def test_fast_td3_without_normaliser(peers: Path, tmp_path: Path) -> None:
    train("FastTD3", peers, PredictableEnv(num_envs=8), tmp_path, 1, save_interval=1, obs_normalization=False)
    (snapshot,) = load_snapshots(tmp_path / "snapshots")
    actions = load_torchscript(tmp_path / "snapshots" / snapshot.file)(torch.tensor([[0.0, 1.0, 1.0]]))
    torch.testing.assert_close(actions, torch.tensor([[0.6, 0.6]]))


def test_fast_td3_refuses_settings(peers: Path, tmp_path: Path) -> None:
    env = PredictableEnv(num_envs=8)
    with pytest.raises(ConfigurationError, match="num_update=3 is no setting of FastTD3"):
        train("FastTD3", peers, env, tmp_path, num_update=3)
    with pytest.raises(ConfigurationError, match="num_envs=3 of FastTD3 is set by the flags"):
        train("FastTD3", peers, env, tmp_path, num_envs=3)


def test_flash_sac_sees_true_last_observations(peers: Path, tmp_path: Path) -> None:
    env = PredictableEnv(num_envs=8)
    view = flash_sac.FlashSACEnv(env, Recorder(tmp_path, BudgetCfg(max_env_steps=1), 1, "cpu"), 0)
    obs, _ = view.reset()
    assert obs.dtype == np.float32
    assert len(np.unique(obs[:, 1])) == 1, "the first observations are those of a reset"
    assert len(env.episode_length_buf.unique()) > 1, "and the episodes begin spread out"
    run = train("FlashSAC", peers, PredictableEnv(num_envs=8, lengths=[4] * 8), tmp_path, **{"agent.use_amp": False})
    script = sys.modules["flash_sac_train"]
    for obs, _, ends, time_outs, following in script.SEEN[8:]:
        # away from the start, where lengths were spread: never the first observation of the next episode
        assert np.array_equal(following[:, [0, 2]], obs[:, [0, 2]])
        assert np.array_equal(following[:, 1], obs[:, 1] + 1)
        assert np.array_equal(ends | time_outs, following[:, 1] >= 4)
    assert [each.updates for each in load_snapshots(tmp_path / "snapshots")] == [10, 20, 30]
    assert run.env_steps == 240
    assert {"agent.use_amp=false", "num_train_envs=8", "seed=0", "agent.device_type=cpu"} <= set(script.TOLD)
    assert "logging_per_interaction_step=null" in script.TOLD
    last = load_snapshots(tmp_path / "snapshots")[-1]
    actions = load_torchscript(tmp_path / "snapshots" / last.file)(torch.tensor([[1.0, -1.0, 0.0]]))
    torch.testing.assert_close(actions, torch.tanh(torch.tensor([[0.3, -0.3]])))


def test_flash_sac_refuses_what_flags_set(peers: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="seed=3 of FlashSAC is set by the flags"):
        flash_sac.make_overrides({"seed": 3}, flash_sac.FlashSACEnv(PredictableEnv(), None, 0), 0)  # pyright: ignore


def test_a_loop_that_ends_before_its_budget_is_no_result(peers: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"loop ended after .* s and 160 env steps, before its budget"):
        train("FastTD3", peers, PredictableEnv(num_envs=8), tmp_path, save_interval=1, total_timesteps=20)
    assert not (tmp_path / "snapshots" / recorder.SNAPSHOTS).exists()
    with pytest.raises(ConfigurationError, match="before the first update"):
        train("FastTD3", peers, PredictableEnv(num_envs=8), tmp_path / "b", env_steps=8)


def test_the_clock_leaves_out_the_writing_of_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def export(*_: Any, **__: Any) -> None:
        nonlocal now
        now += 50.0

    monkeypatch.setattr(recorder.time, "perf_counter", lambda: now)
    monkeypatch.setattr(recorder, "export_torchscript", export)
    run = Recorder(tmp_path, BudgetCfg(max_seconds=10.0), 4, "cpu")
    assert run.wall_time == 0.0
    run.before_step()
    for _ in range(2):  # several are due at 6 s, when there is a policy at last: one is taken
        now += 3.0
        run.before_step()
    run.follow(torch.nn.Linear(1, 1), 1, lambda: 7)
    run.before_step()
    run.before_step()
    assert [(each.wall_time, each.updates) for each in run.snapshots] == [(6.0, 7)]
    now += 4.5
    with pytest.raises(recorder.BudgetSpent):
        run.before_step()
    assert [each.wall_time for each in run.snapshots] == [6.0, 10.5]


def test_checkouts_are_found_or_refused(peers: Path, tmp_path: Path) -> None:
    found = find_checkout("FastTD3", peers)
    assert found.sources == peers.resolve() / "FastTD3" / "fast_td3"
    assert found.describe().startswith(f"https://github.com/younggyoseo/FastTD3 at {found.commit} (its driver")
    (found.sources / "train.py").write_text("changed = True")
    assert "with changes to its code" in find_checkout("FastTD3", peers).describe()
    assert checkouts.Checkout("FastTD3", peers, PEERS["FastTD3"].commit, False).describe().endswith("839944d7")
    for name, folder, message in (
        ("FastTD4", peers, "Did you mean FastTD3"),
        ("FastTD3", None, "git clone https://github.com/younggyoseo/FastTD3"),
        ("FastTD3", tmp_path, "holds no fast_td3/"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            find_checkout(name, folder)
    (tmp_path / "copy" / "FastTD3" / "fast_td3").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="is no git checkout"):
        find_checkout("FastTD3", tmp_path / "copy")
    (peers / "FastTD3" / "FlashSAC" / "flash_rl").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="belongs to the git repository"):
        find_checkout("FlashSAC", peers / "FastTD3")
    with pytest.raises(ConfigurationError, match="is missing"):
        checkouts.import_file("x", tmp_path / "x.py")


def test_only_what_is_absent_is_stood_in_for(peers: Path) -> None:
    contents: dict[str, dict[str, Any]] = {"wave": {"open": None}, "nowhere": {}, "nowhere.inner": {"x": 1}}
    assert stand_in(contents) == ["nowhere"]
    assert stand_in(contents) == [], "once is enough"
    assert "wave" not in sys.modules
    assert sys.modules["nowhere"].inner.x == 1
    assert list(without_progress(range(2), smoothing=0.1)) == [0, 1]
    without_progress(total=3).set_description("x")
    with pytest.raises(NotImplementedError, match="tyro is not installed"):
        refuse("tyro")()


STUDY = """
title: Tiny
question: Does the whole chain run?
seeds: [0]
budget: {max_env_steps: 1600}
flags: {task: Myriad-PointMaze-Maze-Goal, num_envs: 8}
overrides: {env.episode_steps: 20}
cases:
  short: {label: short one, budget: {max_env_steps: 800}}
  long: {overrides: {env.episode_steps: 25}}
variants:
  ppo:
    flags: {algorithm: ppo}
    overrides: {agent.num_steps_per_env: 10, agent.runner.save_interval: 2}
    in_case: {long: {agent.num_learning_epochs: 2, agent.num_mini_batches: 1}}
  theirs: {label: somebody's, peer: FastTD3, overrides: {save_interval: 1}}
reference: ppo
evaluation: {kind: task, episodes_per_head: 8, num_checkpoints: 2, curve_episodes: 4}
metrics: {length_mean: length, cost/updates: updates, cost/env_steps: env steps}
curves: {length_mean: length}
curve_axes: [wall_time]
threshold_of_reference: 0.5
"""


@pytest.fixture
def run_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the study above with the processes of its cells in this one."""

    def call(words: list[str], folder: Path, cores: list[int], log: str) -> None:
        entry = {"main": main, "cell": cell.main, "study_cell": study_cell.main}[words[0].rsplit(".", 1)[1]]
        assert entry(words[1:]) == 0

    monkeypatch.setattr(study_cells, "_call", call)

    def run(*words: str, text: str = STUDY) -> int:
        (tmp_path / "tiny.yaml").write_text(text)
        arguments = [str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "out"), *words]
        return command.run(parser_of("study").parse_args(arguments))

    return run


def test_whole_chain_with_a_peer(
    peers: Path, tmp_path: Path, run_study: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError, match="none of these cells can be run here"):
        run_study("--only", "theirs")
    assert not (tmp_path / "out" / "study.md").exists()
    assert run_study("--minutes", "1e-9", "--peers", str(peers)) == 0
    assert "4 cells are left" in capsys.readouterr().out
    assert run_study() == 0
    assert "2 cells of others' learners are left out: --peers" in capsys.readouterr().out
    assert run_study("--peers", str(peers)) == 0
    summary = json.loads((tmp_path / "out" / "study.json").read_text())
    assert not summary["missing"]
    rows = {(row["case"], row["variant"]): row for row in summary["rows"]}
    steps = {key: row["metrics"]["cost/env_steps"]["mean"] for key, row in rows.items()}
    assert steps == {("short", "ppo"): 800, ("short", "theirs"): 800, ("long", "ppo"): 1600, ("long", "theirs"): 1600}
    # 5 epochs of 4 minibatches in 10 iterations; in the other case 2 of 1 in 20; the peer's from its third step on
    assert rows["short", "ppo"]["metrics"]["cost/updates"]["mean"] == 10 * 5 * 4
    assert rows["long", "ppo"]["metrics"]["cost/updates"]["mean"] == 20 * 2
    assert rows["short", "theirs"]["metrics"]["cost/updates"]["mean"] == 2 * (100 - 3)
    theirs = next(r for r in summary["results"] if r["id"] == "theirs-long-seed0")
    assert [point["env_steps"] for point in theirs["curve"]] == [800, 1600]
    # nobody comes to the goal, so that episodes last as long as they may: all are at half of that from the first on
    assert rows["long", "theirs"]["crossing"]["level"] == 12.5
    assert rows["long", "theirs"]["crossing"]["reached"] == 1
    page = (tmp_path / "out" / "study.md").read_text()
    assert "- others' code: https://github.com/younggyoseo/FastTD3 at " in page
    assert "- budget of each run: short one: max_env_steps 800; long: max_env_steps 1,600" in page
    assert "First evaluation with length >= 12.5 (50 % of what *ppo* reaches)" in page
    assert "| variant | runs that reached it | env steps | seconds |" in page


def test_a_peers_cell_is_made_again_where_its_settings_change(
    peers: Path, tmp_path: Path, run_study: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(study_cells, "_run_peer", lambda work, folder: made.append(folder.name) or {"metrics": {}})
    options = ("--peers", str(peers), "--only", "theirs")
    run_study(*options)
    run_study(*options)
    assert made == ["theirs-short-seed0", "theirs-long-seed0"]
    run_study(*options, text=STUDY.replace("{save_interval: 1}", "{save_interval: 2}"))
    assert len(made) == 4
    moved = peers.rename(tmp_path / "elsewhere")
    run_study("--peers", str(moved), "--only", "theirs", text=STUDY.replace("{save_interval: 1}", "{save_interval: 2}"))
    assert len(made) == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("peer: FastTD3", "peer: FastTD3, untrained: true", "trains one policy on a task, by itself"),
        ("in_case: {long:", "in_case: {lang:", "in_case of variant 'ppo': 'lang'. Did you mean long"),
        ("reference: ppo", "threshold: 3.0", "threshold_of_reference=0.5 needs a reference"),
        ("curves: {length_mean", "curves: {return_best", "its metric 'return_best' among the metrics"),
    ],
)
def test_wrong_peers_cases_and_thresholds_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in STUDY
    (tmp_path / "tiny.yaml").write_text(STUDY.replace(old, new))
    with pytest.raises(ConfigurationError, match=message):
        load_study(tmp_path / "tiny.yaml")


def test_peers_of_a_study_are_resolved_before_anything_starts(peers: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(STUDY)
    study = load_study(tmp_path / "tiny.yaml")
    assert resolve_checkouts(study, None) == {}
    assert list(resolve_checkouts(study, peers)) == ["FastTD3"]
    with pytest.raises(ConfigurationError, match="holds no fast_td3/"):
        resolve_checkouts(study, tmp_path)
    study.variants["theirs"].peer = "SlowTD3"
    with pytest.raises(ConfigurationError, match="peer='SlowTD3' of study tiny is unknown"):
        resolve_checkouts(study, None)
    del study.variants["theirs"]
    with pytest.raises(ConfigurationError, match="trains by our own code alone"):
        resolve_checkouts(study, peers)


def test_end2end_is_a_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(command, "run", lambda args: asked.append(args) or 0)
    assert main(["benchmark", "end2end", "--quick", "--minutes", "5", "--peers", str(tmp_path)]) == 0
    (args,) = asked
    assert (args.name, args.scale, args.num_seeds, args.minutes, args.peers) == ("end2end", 0.05, 1, 5.0, tmp_path)
    assert args.out.name == "end2end_quick", "a trial must not pass for the study"
