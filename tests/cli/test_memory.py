"""What is told of memory before a run is what the run then holds."""

from __future__ import annotations

import pytest

from myriad_lab.cli import memory
from myriad_lab.cli import train as train_module
from myriad_lab.cli.algorithms import Setting, make_runner
from myriad_lab.cli.memory import memory_lines, memory_of
from myriad_lab.cli.plan import make_plan
from myriad_lab.distributed.process_group import Place
from myriad_lab.errors import ConfigurationError

SMALL = {"task": "Myriad-PointMaze-Maze", "num_envs": 8, "num_policies": 2}
TINY = ["env.episode_steps=12", "agent.actor.trunk=[8]", "agent.actor.adapter_dim=8"]


@pytest.mark.parametrize(
    ("algorithm", "overrides", "what"),
    [
        ("kmyriad", ["agent.k=2"], "rollout"),
        ("pql", ["agent.replay_capacity=400"], "replay memory"),
        ("pql", ["agent.replay_capacity=400", "agent.replay_dtype=bfloat16"], "replay memory"),
    ],
)
def test_the_learner_holds_what_was_told(algorithm, overrides, what):
    plan = make_plan({**SMALL, "algorithm": algorithm}, [*TINY, *overrides])
    part = memory_of(plan)[0]
    assert part.what == what
    env = plan.env.make(8, device="cpu", seed=0)
    learner = make_runner(algorithm, Setting(env, plan.agent_cfg, "cpu", 0, 2, None, [], {})).algorithm
    env.close()
    if algorithm == "pql":
        assert part.size == learner.replay.num_bytes
    else:
        assert part.size == sum(field.nbytes for field in learner.storage._fields.values())


def test_the_update_of_a_population_is_told_beside_its_rollout(monkeypatch):
    plan = make_plan({**SMALL, "algorithm": "kmyriad"}, [*TINY, "agent.k=2"])
    rollout, update = memory_of(plan)
    assert (rollout.what, update.what) == ("rollout", "update")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    assert memory_lines(plan)[-1].endswith("it will not fit: take fewer envs or more agent.num_minibatches")
    assert "minibatches of 12 rows" in update.detail  # 12 steps of 8 envs in 8 minibatches
    paper = ["agent=kmyriad_paper", "agent.k=2"]
    assert len(memory_of(make_plan({**SMALL, "algorithm": "kmyriad"}, [*TINY, *paper]))) == 1


@pytest.mark.parametrize("algorithm", ["kmyriad", "pql"])
def test_a_rank_has_its_share(algorithm, monkeypatch):
    agent = ["agent.k=2"] if algorithm == "kmyriad" else ["agent.replay_capacity=4000"]
    plan = make_plan({**SMALL, "algorithm": algorithm}, [*TINY, *agent])
    alone, share = (sum(part.size for part in memory_of(plan, world_size)) for world_size in (1, 2))
    assert share == pytest.approx(0.5 * alone, rel=0.05)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**31)
    told = memory_lines(plan, Place(0, 2, 0, 2))
    assert told[0].endswith("before networks, each of 2 ranks:")
    assert told[-1].endswith("of 1.00 GiB that are free")


def test_the_simulator_of_a_gpu_is_told_for_all_envs():
    flags = {"task": "Myriad-Ant", "backend": "mujoco_warp", "device": "cpu", "algorithm": "pql", "num_policies": 1}
    sizes = []
    for num_envs in (16_384, 65_536):
        simulator, replay = memory_of(make_plan({**flags, "num_envs": num_envs}, ["env.capacity.njmax=64"]))
        assert (simulator.what, replay.what) == ("simulator", "replay memory")
        assert "64 constraints" in simulator.detail
        sizes.append(simulator.size)
    assert sizes[1] - sizes[0] == pytest.approx(3 * sizes[0], rel=1e-3)
    assert 0.5 * 2**30 < sizes[1] < 5 * 2**30


def test_it_is_printed_before_the_env_is_made(monkeypatch, capsys):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    plan = make_plan({**SMALL, "algorithm": "pql"}, TINY)

    def before_anything(deterministic: bool) -> None:
        raise InterruptedError

    monkeypatch.setattr(train_module, "settle_torch", before_anything)
    with pytest.raises(InterruptedError):
        train_module.train({**SMALL, "algorithm": "pql"}, TINY)
    told = capsys.readouterr().out.splitlines()
    assert told == memory_lines(plan)
    assert told[0].startswith("memory for 8 envs on cpu")
    assert "it will not fit: take fewer envs or a smaller agent.replay_capacity" in told[-1]
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    assert memory_lines(plan)[-1].endswith("GiB")


def test_a_group_that_the_critics_cannot_have_is_refused():
    plan = make_plan({**SMALL, "algorithm": "pql"}, [*TINY, "agent.critic_group=polcy"])
    with pytest.raises(ConfigurationError, match=r"critic_group='polcy' of PQL\. Did you mean policy"):
        memory_of(plan)
