"""The model of docs/scaling.md: messages by hand, the trend of its totals, and constants read from a record."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from myriad_lab.cli.benchmarks.line import BenchmarkLine
from myriad_lab.errors import ConfigurationError

DOCS = Path(__file__).parents[2] / "docs"
CPU_RECORD = DOCS / "performance" / "cpu.json"


@pytest.fixture(scope="module")
def model() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling_model", DOCS / "examples" / "scaling_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def write_record(path: Path, benchmark: str, lines: list[BenchmarkLine], **machine: int) -> Path:
    result: dict[str, Any] = {"benchmark": benchmark, "case": "all", "lines": [asdict(line) for line in lines]}
    path.write_text(json.dumps({"machine": machine, "device": "cpu", "quick": False, "results": [result]}))
    return path


def test_messages_by_hand(model: ModuleType) -> None:
    size = 1.25e6
    assert model.reduce_seconds(size, 1, model.PAPER) == 0.0
    # one machine: 4.4 us and 14 hops of 0.52 us; every byte up and down the tree
    assert model.reduce_seconds(size, 8, model.PAPER) == pytest.approx(11.68e-6 + 2 * size / 370e9)
    # 8 machines: 14 times the 0.42 us by which a hop is slower, 3 levels of 5 us up and down
    expected = 11.68e-6 + 5.88e-6 + 30e-6 + 2 * size / 45e9
    assert model.reduce_seconds(size, 64, model.PAPER) == pytest.approx(expected)
    # 56 hops within machines, 7 of which are those of the first, and 7 between machines
    expected = 6.89e-6 + 49 * 0.85e-6 + 7 * 2.7e-6 + size / 45e9
    assert model.gather_seconds(size, 64, model.PAPER) == pytest.approx(expected)


def test_more_gpus_are_faster_but_not_for_nothing(model: ModuleType) -> None:
    physics = model.PAPER.physics["light"]
    for job in (model.Pretraining(), model.Finetuning(), model.Finetuning(rows=4096)):
        totals = {gpus: sum(job.seconds(gpus, physics, model.PAPER).values()) for gpus in (8, 64, 128, 512)}
        assert sorted(totals.values(), reverse=True) == list(totals.values())
        busy = [gpus * seconds for gpus, seconds in totals.items()]
        assert sorted(busy) == busy  # GPU seconds of the same work


def test_a_single_step_has_no_value_function_and_one_message(model: ModuleType) -> None:
    once, often = model.Pretraining(epochs=1), model.Pretraining(epochs=4)
    assert once.value == (0, 0)
    assert often.value[0] == once.actor[0] + 512  # it sees the elapsed time as well
    physics = model.PAPER.physics["legged"]
    gradients = [job.seconds(64, physics, model.PAPER)["gradients"] for job in (once, often)]
    sums = 20 * model.reduce_seconds(4, 64, model.PAPER)
    trunks = [4 * job.actor[0] + 4 * job.value[0] for job in (once, often)]
    assert gradients[0] == pytest.approx(sums + model.reduce_seconds(trunks[0], 64, model.PAPER))
    assert gradients[1] == pytest.approx(sums + 32 * model.reduce_seconds(trunks[1], 64, model.PAPER))


def test_latency_and_rate_are_the_line_through_two_sizes(model: ModuleType, tmp_path: Path) -> None:
    sizes = {"1 number": 1e-3 + 4 / 1e9, "0.63 MB, trunk": 1e-3 + 0.63e6 / 1e9}
    name = "all-reduce in one message, 2 ranks"
    lines = [BenchmarkLine(name, size, seconds, seconds) for size, seconds in sizes.items()]
    measured = model.Measured(write_record(tmp_path / "record.json", "ranks", lines, cores=2, threads=2))
    assert measured.cost("ranks", name) == pytest.approx((1e-3, 1e9))
    assert [measured.slower(ranks) for ranks in (1, 2, 4)] == [2.0, 2.0, 4.0]
    backwards = [BenchmarkLine(name, size, 1.0, 1.0) for size in sizes]
    measured = model.Measured(write_record(tmp_path / "flat.json", "ranks", backwards))
    with pytest.raises(ConfigurationError, match=r"all-reduce in one message.* need two sizes"):
        measured.cost("ranks", name)


@pytest.mark.parametrize(
    ("benchmark", "start"),
    [
        ("env", "env step, Myriad-PointMaze-Maze"),
        ("population", "population update, fp32, 4096 envs"),
        ("ranks", "all-gather, 2 ranks"),
        ("ranks", "rollout and update, 4 epochs, 2 ranks"),
    ],
)
def test_what_a_record_lacks_is_named(model: ModuleType, tmp_path: Path, benchmark: str, start: str) -> None:
    record = json.loads(CPU_RECORD.read_text())
    for result in record["results"]:
        result["lines"] = [line for line in result["lines"] if line["name"] != start]
    path = tmp_path / "part.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigurationError, match=f"lacks '{start}'.*benchmark.py {benchmark} --device cpu"):
        model.main(["--json", str(path)])


def test_messages_of_a_single_gpu_are_those_on_paper(model: ModuleType, tmp_path: Path) -> None:
    record = json.loads(CPU_RECORD.read_text())
    for result in record["results"]:
        result["lines"] = [line for line in result["lines"] if not line["name"].startswith("all-")]
    path = tmp_path / "single.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigurationError, match="--messages paper"):
        model.Measured(path).constants()
    constants = model.Measured(path).constants(paper_messages=True)
    assert (constants.reduce, constants.gather) == (model.PAPER.reduce, model.PAPER.gather)
    assert constants.act != model.PAPER.act


def test_the_record_of_a_cpu_is_predicted(model: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """The iterations of the record are no constants of the model; it tells them to a factor of two and a half."""
    model.main(["--json", str(CPU_RECORD)])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(what, ranks) for what, ranks, *_ in rows] == [(w, n) for w in ("one step", "4 epochs") for n in "12"]
    assert all(0.4 < float(ratio) < 2.5 for *_, ratio in rows)


def test_the_tables_have_a_row_for_each_machine(model: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    model.main([])
    printed = capsys.readouterr().out
    assert printed.count("\n512 | ") == printed.count("GPUs | ") == 10
    assert "all pairs of 6.0e+07 particles in 8 features: 756 GPU seconds" in printed


def test_a_record_of_a_gpu_makes_the_tables(
    model: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads(CPU_RECORD.read_text()) | {"device": "cuda:0"}
    for result in record["results"]:
        for line in result["lines"]:
            line["name"] = line["name"].replace(", 4096 envs", ", 65536 envs")  # the size that a GPU is asked for
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(record))
    model.main(["--json", str(path)])
    assert capsys.readouterr().out.count("\n512 | ") == 10
    assert model.Measured(path).slower(2) == 1.0  # each rank has a GPU of its own
    legged = model.Measured(path).constants().physics["legged"]
    assert legged == model.Measured(CPU_RECORD).cost("env", "env step, Myriad-Ant on mujoco_warp")
