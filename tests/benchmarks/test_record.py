"""The record of a benchmark: it grows case by case, and a second call goes on with it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from myriad_lab.cli import benchmark as command
from myriad_lab.cli.benchmarks.line import BenchmarkLine, Case
from myriad_lab.cli.benchmarks.record import Record, read_record
from myriad_lab.cli.main import main
from myriad_lab.errors import ConfigurationError
from myriad_lab.portfolio.atomic import read_json

MACHINE = {"cpu": "a processor", "gpu": "none", "torch": "2.13.0"}
LINE = BenchmarkLine("work, S", "8 rows", 2e-3, 3e-3, 1e-3, "bytes", 4e-3, "plain", 5_000_000, 8.0, "rows", "fine")


def test_what_is_recorded_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "lines.json"
    record = Record(MACHINE, "cpu", False, path)
    assert record.lines("learner", "S") is None
    record.add("learner", "S", [LINE])
    again = Record(MACHINE, "cpu", False, path)
    assert again.lines("learner", "S") == [LINE]
    assert again.lines("replay", "S") is None
    assert read_record(path) == again.content()
    result = json.loads(path.read_text())["results"][0]
    assert result["load"] >= 0
    assert result["at"].endswith("+00:00")


@pytest.mark.parametrize(
    ("machine", "device", "quick", "message"),
    [
        ({**MACHINE, "torch": "2.14.0"}, "cpu", False, "torch '2.13.0' there, '2.14.0' here"),
        ({**MACHINE, "numpy": "2"}, "cpu", False, "numpy None there, '2' here"),
        (MACHINE, "cuda:0", False, "device 'cpu' there, 'cuda:0' here"),
        (MACHINE, "cpu", True, "quick False there, True here"),
    ],
)
def test_another_machine_is_refused(
    machine: dict[str, str], device: str, quick: bool, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "lines.json"
    Record(MACHINE, "cpu", False, path).add("learner", "S", [LINE])
    before = path.read_text()
    with pytest.raises(ConfigurationError, match="measured elsewhere") as refused:
        Record(machine, device, quick, path)
    assert message in str(refused.value)
    assert path.read_text() == before


class Benchmark:
    """Stands in for the modules of all benchmarks: two cases, which note that they ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.broken: type[BaseException] | None = None
        self.needs, self.needs_of_host = 0, 0
        monkeypatch.setattr(command, "BENCHMARKS", ("env", "knn"))
        modules = SimpleNamespace(import_module=lambda name: SimpleNamespace(cases=self._module(name)))
        monkeypatch.setattr(command, "importlib", modules)

    def _module(self, module: str):
        name = module.rpartition(".")[2]

        def cases(device: str, quick: bool) -> list[Case]:
            if self.broken and name == "env":
                raise ConfigurationError("the installed simulator is broken")
            return self.cases(name)

        return cases

    def cases(self, name: str) -> list[Case]:
        """Return the two cases of a benchmark."""

        def work(case: str) -> list[BenchmarkLine]:
            if self.broken and case == "knn a":
                raise self.broken("the kernel does not launch")
            self.ran.append(case)
            return [LINE]

        def case(letter: str) -> Case:
            return Case(letter, lambda: work(f"{name} {letter}"), self.needs, self.needs_of_host)

        return [case("a"), case("b")]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    return Benchmark(monkeypatch)


def test_a_second_call_measures_what_is_left(
    benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lines.json"
    clock = iter([0.0, 1.0, 59.0, 61.0, 62.0])  # at the start, and before each case
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert main(["benchmark", "all", "--minutes", "1", "--json", str(path)]) == 0
    assert benchmark.ran == ["env a", "env b"]
    assert "1 minutes are over, 2 cases are left" in capsys.readouterr().out


def test_a_full_record_is_only_shown(benchmark: Benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lines.json"
    assert main(["benchmark", "knn", "--json", str(path)]) == 0
    assert main(["benchmark", "all", "--json", str(path)]) == 0
    assert benchmark.ran == ["knn a", "knn b", "env a", "env b"]
    capsys.readouterr()
    assert main(["benchmark", "all", "--json", str(path)]) == 0
    assert len(benchmark.ran) == 4
    assert capsys.readouterr().out.count("work, S") == 4


def test_all_is_recorded_unless_it_is_only_tried(
    benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", "all", "--quick"]) == 0
    assert not list(tmp_path.iterdir())
    assert main(["benchmark", "all", "--minutes", "5"]) == 0
    assert len(read_json(tmp_path / "benchmark_cpu.json")["results"]) == 4


def test_threads_that_a_case_takes_are_given_back(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []

    def case(name: str) -> Case:
        def work() -> list[BenchmarkLine]:
            seen.append(torch.get_num_threads())
            torch.set_num_threads(seen[-1] + 1)
            return []

        return Case(name, work)

    monkeypatch.setattr(command, "_cases", lambda *_: ({"env": [case("a"), case("b")]}, []))
    try:
        assert main(["benchmark", "env"]) == 0
        assert seen == [before, before]
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("error", [RuntimeError, ConfigurationError])
def test_what_fails_does_not_stop_the_others(
    error: type[Exception], benchmark: Benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lines.json"
    benchmark.broken = error
    assert main(["benchmark", "all", "--json", str(path)]) == 1
    assert benchmark.ran == ["knn b"]
    told = capsys.readouterr()
    assert "failed, and to be tried again by the next call: env; knn, a" in told.out
    assert "the kernel does not launch" in told.err
    assert "the installed simulator is broken" in told.err
    benchmark.broken = None
    assert main(["benchmark", "all", "--json", str(path)]) == 0
    assert benchmark.ran == ["knn b", "env a", "env b", "knn a"], "after what was never tried"


def test_a_case_that_kills_the_process_is_the_last_of_the_next_call(benchmark: Benchmark, tmp_path: Path) -> None:
    path = tmp_path / "lines.json"
    benchmark.broken = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        command._measure({"knn": benchmark.cases("knn")}, Record(MACHINE, "cpu", False, path), "cpu", None)
    assert read_record(path)["unfinished"] == {"knn, a": 1}
    benchmark.broken = None
    command._measure({"knn": benchmark.cases("knn")}, Record(MACHINE, "cpu", False, path), "cpu", None)
    assert benchmark.ran == ["knn b", "knn a"]
    assert read_record(path)["unfinished"] == {}


def test_a_device_that_is_lost_ends_the_call(
    benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lines.json"
    benchmark.broken = RuntimeError
    monkeypatch.setattr(command, "_answers", lambda device: False)
    assert main(["benchmark", "knn", "--json", str(path)]) == 1
    assert "cpu is lost to this process" in capsys.readouterr().out
    assert benchmark.ran == []
    assert main(["benchmark", "knn", "--json", str(path)]) == 1
    assert benchmark.ran == ["knn b"]


def test_what_does_not_fit_is_left_out(
    benchmark: Benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.needs = 2**50
    assert main(["benchmark", "knn", "--json", str(tmp_path / "lines.json")]) == 0
    assert benchmark.ran == []
    assert "left out: it needs 1048576.0 GiB of cpu" in capsys.readouterr().out
    benchmark.needs, benchmark.needs_of_host = 0, 2**50
    assert main(["benchmark", "knn"]) == 0
    assert benchmark.ran == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["knn", "--minutes", "3"], "--minutes without --json"),
        (["knn", "--page", "x.md"], "--page belongs to"),
        (["knn", "--json", "a", "b"], "one file can be recorded to"),
        (["table"], "table needs --json"),
        (["table", "--json", "other.json", "--quick"], "table measures nothing"),
        (["all", "--quick", "--minutes", "3"], "--minutes without --json"),
        (["table", "--json", "nowhere.json"], "there is no nowhere.json"),
        (["knn", "--json", "other.json"], "other.json is no record of scripts/benchmark.py"),
        (["all", "--device", "cuda"], "device='cuda' is not there; this machine has cpu"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    arguments: list[str], message: str, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text('{"seed": 1}')
    assert main(["benchmark", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert benchmark.ran == []
