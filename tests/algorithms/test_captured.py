"""What a CUDA graph asks of an update: the same memory every time; and the order of warm-up, capture and replay."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from test_host_waits import make, steps

import myriad_lab.algorithms.pql as pql_module
from myriad_lab.algorithms.captured import WARM_UPS, CapturedUpdate
from myriad_lab.networks.q_ensemble import QEnsembleCfg
from tape import TapedUpdate


def memory(value: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """Yield the address of every tensor that an algorithm holds."""
    if isinstance(value, torch.Tensor):
        yield path, value.data_ptr()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from memory(item, f"{path}.{key if isinstance(key, str) else type(key).__name__}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from memory(item, f"{path}[{i}]")


def addresses(pql: Any) -> dict[str, int]:
    optimizers = [pql.actor_optimizer.state, pql.critic_optimizer.state]
    moments = [list(state.values()) for state in optimizers]
    modules = [list(m.parameters()) + list(m.buffers()) for m in pql._modules().values()]
    scale = pql.return_scale._tensors()
    return dict(memory({"moments": moments, "modules": modules, "replay": pql.replay._tensors(), "scale": scale}))


def test_an_update_finds_everything_where_the_one_before_it_did() -> None:
    pql = make("pql", "cpu", normalize_returns=True)
    seen = []
    for _ in range(3):
        for step in steps(6, "cpu"):
            pql.observe(step)
        assert pql.update()
        seen.append(addresses(pql))
    assert len(seen[0]) > 40
    assert seen[0] == seen[1] == seen[2]


def test_a_learner_that_nobody_holds_is_gone_at_once() -> None:
    pql = make("pql", "cpu")
    for step in steps(12, "cpu"):
        pql.observe(step)
    assert pql.update()
    kept = weakref.ref(pql.replay)
    gc.disable()  # pressure on the memory of a GPU does not ask for it
    try:
        del pql
        assert kept() is None
    finally:
        gc.enable()


class FakeGraph:
    """Records a function and does it again at every replay."""

    def __init__(self) -> None:
        self.generators: list[torch.Generator] = []
        self.replays = 0

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    def replay(self) -> None:
        self.replays += 1


def test_warm_ups_are_updates_a_capture_is_none_and_metrics_are_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    events, graphs = [], []
    static = torch.zeros(3)

    class Stream:
        def __init__(self, *_: Any) -> None:
            pass

        def wait_stream(self, other: Any) -> None:
            pass

    @contextmanager
    def capture(graph: FakeGraph, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert isinstance(stream, Stream)
        assert capture_error_mode == "thread_local"
        graphs.append(graph)
        events.append("capture")
        yield
        events.append("captured")

    @contextmanager
    def nothing(*_: Any) -> Iterator[None]:
        yield

    def update() -> torch.Tensor:
        events.append("update")
        return static

    fakes = {"CUDAGraph": FakeGraph, "graph": capture, "device": nothing, "stream": nothing, "Stream": Stream}
    for name, fake in {**fakes, "current_stream": Stream}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    generator = torch.Generator()
    captured = CapturedUpdate(update, generator, graphs=True)
    results = [captured() for _ in range(WARM_UPS + 4)]
    assert events == ["update"] * WARM_UPS + ["capture", "update", "captured"]
    assert (len(graphs), graphs[0].replays, graphs[0].generators) == (1, 4, [generator])
    assert all(result.data_ptr() != static.data_ptr() for result in results[WARM_UPS:])


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("settings", [{}, {"mixed_precision": True}, {"critic": QEnsembleCfg(kind="scalar")}], ids=str)
def test_an_update_done_again_without_python_is_the_update(
    settings: dict[str, Any], apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make("pql", "cpu", **settings)
    monkeypatch.setattr(pql_module, "CapturedUpdate", TapedUpdate)
    taped = make("pql", "cpu", **settings)
    for pql in (plain, taped):
        if apart:  # as where the replay memory is on another device
            pql.rows.draws = torch.Generator().manual_seed(3)
        for _ in range(10):
            for step in steps(6, "cpu"):
                pql.observe(step)
            pql.update()
    assert all(update.tape is not None for update in (taped._captured_critics, taped._captured_policies))
    for before, after in ((plain.critic, taped.critic), (plain.actor, taped.actor)):
        assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # of the compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler
@pytest.mark.parametrize(
    "settings", [{}, {"mixed_precision": True}, {"compile": True}, {"compile": True, "mixed_precision": True}], ids=str
)
def test_a_replayed_update_is_the_update(settings: dict[str, Any]) -> None:
    # scalar critics: those of categorical ones add up their atoms in any order, which bfloat16 would show
    common = {"compile": False, "mixed_precision": False, "critic": QEnsembleCfg(kind="scalar"), **settings}
    plain, captured = (make("pql", "cuda", **common) for _ in "ab")
    plain._captured_critics._graphs = plain._captured_policies._graphs = False
    for pql in (plain, captured):
        for _ in range(10):
            for step in steps(6, "cuda"):
                pql.observe(step)
            pql.update()
    assert captured._captured_critics._graph is not None
    for a, b in zip(plain.critic.parameters(), captured.critic.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(plain.actor.parameters(), captured.actor.parameters(), strict=True):
        torch.testing.assert_close(a, b)
