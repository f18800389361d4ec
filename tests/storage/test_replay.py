"""Every sampled row is predicted from a stream whose observation *is* (env, step, episode)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from myriad_lab.errors import CheckpointError, ConfigurationError
from myriad_lab.storage import replay
from myriad_lab.storage.replay import ReplayBuffer
from myriad_lab.storage.replay_batch import ReplayBatch

N_STEP, GAMMA = 3, 0.9
NUM_ENVS, NUM_POLICIES = 6, 3


class Stream:
    """Steps of envs with scheduled ends; remembers everything, so that any window can be predicted.

    The observation is (env, global step, episode); the true last observation of an episode has 1000 added to its step,
    so a bootstrap from a reset observation cannot be mistaken for it.
    """

    def __init__(self, schedule: dict[tuple[int, int], str], num_envs: int = NUM_ENVS) -> None:
        self.schedule, self.num_envs, self.step_index = schedule, num_envs, 0
        self.episodes = torch.zeros(num_envs)

    def kind(self, step: int, env: int) -> str:
        return self.schedule.get((step, env), "go")

    def row(self, step: int, episodes: torch.Tensor, final: bool = False) -> torch.Tensor:
        time = torch.full((self.num_envs,), step + (1000.0 if final else 0.0))
        return torch.stack([torch.arange(self.num_envs, dtype=torch.float32), time, episodes], dim=1)

    def advance(self) -> dict:
        step = self.step_index
        kinds = [self.kind(step, env) for env in range(self.num_envs)]
        is_kind = {k: torch.tensor([kind == k for kind in kinds]) for k in ("terminal", "time_out", "invalid")}
        obs, final = self.row(step, self.episodes), self.row(step + 1, self.episodes, final=True)
        done = is_kind["terminal"] | is_kind["time_out"] | is_kind["invalid"]
        self.episodes = self.episodes + done
        self.step_index += 1
        rewards = torch.where(is_kind["invalid"], math.nan, obs[:, 1] + 0.01 * obs[:, 0])
        return {
            "obs": {"policy": obs, "critic": obs[:, :2]},
            "actions": obs[:, :2] / 100.0,
            "rewards": rewards,
            "terminated": is_kind["terminal"],
            "time_outs": is_kind["time_out"] | is_kind["invalid"],
            "next_obs": {"policy": (after := self.row(step + 1, self.episodes)), "critic": after[:, :2]},
            "final_obs": {"policy": torch.where(done[:, None], final, math.nan), "critic": final[:, :2]},
            "valid": ~is_kind["invalid"],
        }


def fill(buffer: ReplayBuffer, schedule: dict, steps: int) -> Stream:
    stream = Stream(schedule)
    for _ in range(steps):
        buffer.write(**stream.advance())
    return stream


def make(capacity: int = 50, ends_before: int = 0, **kwargs) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, NUM_ENVS, NUM_POLICIES, {"policy": 3, "critic": 2}, 2, **kwargs)
    buffer._tickets_issued.fill_(ends_before)
    return buffer


def check_row(stream: Stream, batch: ReplayBatch, at: tuple[int, int], newest: int) -> tuple[int, int]:
    """Check one row against the schedule; return its env and step."""
    env, step, episode = (int(x) for x in batch.obs["policy"][at])
    assert int(batch.env_ids[at]) == env
    assert batch.actions[at].tolist() == pytest.approx([env / 100, step / 100])
    if stream.kind(step, env) == "invalid":
        assert float(batch.weights[at]) == 0.0
        assert int(batch.steps[at]) == 0
        return env, step
    length, reward, end = 0, 0.0, "go"
    while length < N_STEP and step + length <= newest and end == "go":
        kind = stream.kind(step + length, env)
        if kind == "invalid":
            break
        reward += GAMMA**length * (step + length + 0.01 * env)
        length, end = length + 1, kind
    assert int(batch.steps[at]) == length
    assert float(batch.rewards[at]) == pytest.approx(reward, rel=1e-5)
    assert float(batch.discounts[at]) == pytest.approx(0.0 if end == "terminal" else GAMMA**length)
    expected = [env, step + length + (1000 if end != "go" else 0), episode]
    assert batch.next_obs["policy"][at].tolist() == expected
    assert batch.next_obs["critic"][at].tolist() == expected[:2]
    assert float(batch.weights[at]) == 1.0
    return env, step


SCHEDULE = {
    (4, 0): "terminal", (5, 1): "time_out", (9, 1): "time_out", (7, 2): "invalid", (10, 3): "time_out",
    (10, 4): "terminal", (11, 4): "terminal", (12, 5): "invalid", (13, 5): "time_out", (19, 0): "time_out",
    (19, 1): "terminal", (19, 2): "invalid",
}  # fmt: skip


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("capacity", "oldest", "ends_before"),
    [(50, 0, 0), (8, 12, 0), (50, 0, 2**31 - 4)],
    ids=["not full", "wrapped", "after two billion ends of episodes"],
)
def test_every_row_is_predicted(own: bool, capacity: int, oldest: int, ends_before: int) -> None:
    buffer = make(capacity, ends_before)
    stream = fill(buffer, SCHEDULE, 20)
    generator = torch.Generator().manual_seed(0)
    batch = buffer.sample(600, generator, own_fraction=float(own), n_step=N_STEP, gamma=GAMMA)
    seen = set()
    for policy in range(NUM_POLICIES):
        for i in range(600):
            env, step = check_row(stream, batch, (policy, i), newest=19)
            seen.add((env, step))
            assert not own or env // 2 == policy
    assert seen == {(env, step) for env in range(NUM_ENVS) for step in range(oldest, 20)}
    assert len(set(batch.env_ids[0].tolist())) == (2 if own else NUM_ENVS)


def test_mixed_sample_has_the_share_of_own_rows() -> None:
    buffer = make()
    fill(buffer, {}, 10)
    batch = buffer.sample(4000, torch.Generator().manual_seed(0), own_fraction=0.5)
    own = batch.env_ids // (NUM_ENVS // NUM_POLICIES) == torch.arange(NUM_POLICIES).unsqueeze(1)
    # half by choice, and a third of the pooled half
    assert own.float().mean().item() == pytest.approx(0.5 + 0.5 / 3, abs=0.02)


def test_a_cut_is_never_crossed() -> None:
    buffer = make()
    stream = fill(buffer, {}, 5)
    buffer.cut()
    stream.step_index, stream.episodes = 100, stream.episodes + 1
    for _ in range(3):
        buffer.write(**stream.advance())
    batch = buffer.sample(500, torch.Generator().manual_seed(0), n_step=N_STEP, gamma=GAMMA)
    starts, ends = batch.obs["policy"][..., 1], batch.next_obs["policy"][..., 1]
    usable = batch.weights > 0
    # the last step before the cut lost its successor: it is left out, and windows before it stop in front of it
    assert set(starts[usable].tolist()) == {0.0, 1.0, 2.0, 3.0, 100.0, 101.0, 102.0}
    assert bool(((starts < 50) == (ends < 50))[usable].all())
    assert float(ends[usable & (starts < 50)].max()) == 4.0


def test_time_outs_whose_final_observation_was_overwritten_get_no_weight() -> None:
    schedule = {(step, env): "time_out" for step in range(20) for env in range(NUM_ENVS)}
    buffer = make(final_capacity=2 * NUM_ENVS)
    fill(buffer, schedule, 20)
    batch = buffer.sample(400, torch.Generator().manual_seed(0), n_step=N_STEP, gamma=GAMMA)
    recent = batch.obs["policy"][..., 1] >= 18
    assert torch.equal(batch.weights > 0, recent)
    assert bool((batch.next_obs["policy"][..., 1][recent] > 1000).all())


def test_nothing_unwritten_is_sampled_and_memory_is_poisoned() -> None:
    buffer = make(7)
    assert all(bool(memory.isnan().all()) for memory in buffer._obs.values())
    stream = Stream(SCHEDULE)
    for _ in range(30):
        buffer.write(**stream.advance())
        batch = buffer.sample(64, torch.Generator().manual_seed(1), n_step=N_STEP)
        for tensor in (batch.obs["policy"], batch.next_obs["policy"], batch.rewards, batch.actions):
            assert bool(torch.isfinite(tensor).all())


def test_a_reader_beside_the_writer_sees_nothing_unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process samples at any moment of a write, also between the publication of head and of size."""
    buffer, stream, generator = make(7), Stream(SCHEDULE), torch.Generator().manual_seed(1)
    buffer.write(**stream.advance())
    publish, looks = torch.Tensor.fill_, []

    def publish_and_look(tensor: torch.Tensor, value: float) -> torch.Tensor:
        publish(tensor, value)
        batch = buffer.sample(256, generator, n_step=N_STEP)
        looks.append(bool(torch.isfinite(torch.cat([batch.obs["policy"], batch.next_obs["policy"]])).all()))
        return tensor

    monkeypatch.setattr(torch.Tensor, "fill_", publish_and_look)
    for _ in range(20):
        buffer.write(**stream.advance())
    assert len(looks) >= 2 * 20
    assert all(looks)


class EndsMeanwhile(TorchDispatchMode):
    """Counts another end of an episode after every operation, as a writer in another process might."""

    def __init__(self, buffer: ReplayBuffer) -> None:
        super().__init__()
        self.issued = buffer._tickets_issued

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.issued.add_(1)
        return out


def test_ends_of_episodes_during_a_sample_move_no_last_observation() -> None:
    buffer = make(final_capacity=1000)
    stream = fill(buffer, SCHEDULE, 20)
    with EndsMeanwhile(buffer):
        batch = buffer.sample(300, torch.Generator().manual_seed(0), n_step=N_STEP, gamma=GAMMA)
    for policy in range(NUM_POLICIES):
        for i in range(300):
            check_row(stream, batch, (policy, i), newest=19)


@pytest.mark.parametrize("steps", [0, 5, 30], ids=["empty", "not full", "wrapped"])
@pytest.mark.parametrize(("slots_before", "slots_after"), [(0, 0), (0, 5), (5, 0)])
def test_state_dict_continues_bit_exactly(steps: int, slots_before: int, slots_after: int) -> None:
    first, second = make(8, guard_slots=slots_before), make(8, guard_slots=slots_after)
    stream = fill(first, SCHEDULE, steps)
    state = first.state_dict()
    assert len(state["ring/actions"]) == min(steps, 8)
    second.load_state_dict(state)
    for _ in range(3):
        step = stream.advance()
        first.write(**step)
        second.write(**step)
    a, b = (x.sample(50, torch.Generator().manual_seed(2), n_step=N_STEP) for x in (first, second))
    assert torch.equal(a.obs["policy"], b.obs["policy"])
    assert torch.equal(a.next_obs["policy"], b.next_obs["policy"])
    assert torch.equal(a.rewards, b.rewards)


@pytest.mark.parametrize("rows", [2, 5, 9])
@pytest.mark.parametrize("guard_slots", [0, 3])
@pytest.mark.parametrize("ends_before", [0, 2**31 - 18 * NUM_ENVS])
def test_a_side_table_of_another_size_keeps_what_is_still_there(rows: int, guard_slots: int, ends_before: int) -> None:
    schedule = {(step, env): "time_out" for step in range(30) for env in range(NUM_ENVS)}
    first = make(ends_before=ends_before, final_capacity=5 * NUM_ENVS)
    second = make(60, final_capacity=rows * NUM_ENVS, guard_slots=guard_slots)
    stream = fill(first, schedule, 20)
    second.load_state_dict(first.state_dict())
    for written in (0, 1, 2):
        batch = second.sample(600, torch.Generator().manual_seed(0))
        start, end = batch.obs["policy"][..., 1], batch.next_obs["policy"][..., 1]
        usable = batch.weights > 0
        oldest = max(15, 20 + written - rows)
        assert set(start[usable].tolist()) == set(range(oldest, 20 + written))
        assert torch.equal(end[usable], start[usable] + 1001.0)
        second.write(**stream.advance())


def test_fewer_heads_have_more_envs_each() -> None:
    buffer = make()
    fill(buffer, {}, 4)
    buffer.regroup(2)
    batch = buffer.sample(300, torch.Generator().manual_seed(0))
    envs = batch.obs["policy"][..., 0].long()
    assert [set(row.tolist()) for row in envs] == [{0, 1, 2}, {3, 4, 5}]
    for count in (0, 4):
        with pytest.raises(ConfigurationError, match=f"{count} heads do not divide num_envs=6"):
            buffer.regroup(count)


def test_bad_input_is_refused_with_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match="num_envs=6, num_policies=4"):
        ReplayBuffer(5, 6, 4, {"policy": 3}, 2)
    buffer = make()
    step = Stream({}).advance()
    with pytest.raises(ConfigurationError, match="final_obs=True"):
        buffer.write(**{**step, "final_obs": None})
    with pytest.raises(ConfigurationError, match="shape"):
        buffer.write(**{**step, "actions": torch.zeros(NUM_ENVS, 3)})
    with pytest.raises(CheckpointError, match=r"ring/obs/policy should be \(-1, 6, 3\), and is \(1, 6, 4\)"):
        make().load_state_dict(ReplayBuffer(8, 6, 3, {"policy": 4, "critic": 2}, 2).state_dict())


def test_a_memory_that_holds_more_than_another_keeps_is_refused() -> None:
    first = make(20)
    fill(first, {}, 12)
    with pytest.raises(CheckpointError, match="holds 12 steps, not 10: raise replay_capacity"):
        make(10, guard_slots=20).load_state_dict(first.state_dict())
    make(12).load_state_dict(first.state_dict())


def test_size_is_announced_before_allocation(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        buffer = make(20, guard_slots=3)
    # groups and actions are views of one tensor
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in buffer._tensors().values() if t.ndim}
    held = sum(storage.nbytes() for storage in storages.values())
    assert buffer.num_bytes == held
    assert f"{held / 2**20:.1f} MiB, {held / 120:.0f} B per transition" in caplog.text


def test_half_precision_is_three_times_smaller_than_two_copies_in_single() -> None:
    """The Unitree G1 on flat ground (123 observations, 37 actions) takes FastTD3 1152 B per transition."""
    two_copies = 4 * (2 * 123 + 37 + 1) + 2 * 8
    assert two_copies == 1152
    buffer = ReplayBuffer(200, 64, 1, {"policy": 123}, 37, dtype=torch.bfloat16)
    assert two_copies > 3.0 * buffer.bytes_per_transition


def test_half_precision_rounds_observations_and_actions_and_nothing_else() -> None:
    single, half = make(8), make(8, dtype=torch.bfloat16)
    for buffer in (single, half):
        fill(buffer, SCHEDULE, 20)
    a, b = (
        buffer.sample(200, torch.Generator().manual_seed(0), n_step=N_STEP, gamma=GAMMA) for buffer in (single, half)
    )
    rounded = a.map(lambda x: x.bfloat16().float() if x.is_floating_point() else x)
    for name in ("policy", "critic"):
        assert torch.equal(b.obs[name], rounded.obs[name])
        assert torch.equal(b.next_obs[name], rounded.next_obs[name])
    assert torch.equal(b.actions, rounded.actions)
    for name in ("rewards", "discounts", "steps", "weights"):
        assert torch.equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("block_bytes", [1, 24, 2**20])
def test_a_ring_is_unrolled_in_blocks(block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_BLOCK_BYTES", block_bytes)
    ring = torch.arange(7).repeat(2, 1).T
    for first in (-3, 0, 5):
        for count in range(8):
            slots = torch.full((count, 2), -1)
            replay._unroll(ring, first, slots)
            assert slots[:, 0].tolist() == [(first + i) % 7 for i in range(count)]
