from __future__ import annotations

import io
import json
import sys

import pytest

from myriad_lab.errors import ConfigurationError
from myriad_lab.monitor.console import Console
from myriad_lab.monitor.logger import JsonLines, make_loggers


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_can_be_read_while_the_run_goes_on(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    sink = JsonLines(path)
    sink.log({"Loss/a": 1.5, "Loss/b": float("nan")}, 0)
    assert read(path) == [{"iteration": 0, "Loss/a": 1.5, "Loss/b": None}]


def test_resumed_file_has_each_iteration_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path)
    for i in range(5):
        sink.log({"x": float(i)}, i)
    with path.open("a") as file:
        file.write('{"iteration": 5, "x"')  # killed in the middle of a line
    again = JsonLines(path)
    again.rewind(3)
    again.log({"x": 30.0}, 3)
    assert [(row["iteration"], row["x"]) for row in read(path)] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0)]


def test_rewinding_before_anything_was_written_is_fine(tmp_path):
    JsonLines(tmp_path / "metrics.jsonl").rewind(0)
    assert not (tmp_path / "metrics.jsonl").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


METRICS = {"Population/coverage": 0.25, "Population/entropy_pool": 3.5, "Perf/env_steps_per_second": 123456.0}


def test_terminal_has_one_live_line_and_a_block():
    stream = Terminal()
    console = Console(total_iterations=3, stream=stream)
    for i in range(3):
        console.show(METRICS, i)
    console.close()
    text = stream.getvalue()
    assert text.count("\r") == 3
    assert "iteration 3/3  coverage 0.25  entropy 3.5  steps/s 123,456" in text
    assert text.count("    Population/coverage ") == 2  # the first iteration and the last
    assert text.endswith("\n")


def test_a_pipe_gets_lines_only_now_and_then():
    stream = io.StringIO()
    console = Console(total_iterations=100, stream=stream)
    for i in range(50):
        console.show(METRICS, i)
    assert "\r" not in stream.getvalue()
    assert stream.getvalue().count("iteration ") == 1


def test_loggers_by_name(tmp_path):
    kinds = [type(sink).__name__ for sink in make_loggers(["console", "none"], tmp_path)]
    assert kinds == ["JsonLines", "ConsoleLogger"]
    assert make_loggers("none", None) == []
    with pytest.raises(ConfigurationError, match="tensorboard"):
        make_loggers("tensorbord", tmp_path)
    with pytest.raises(ConfigurationError, match="run folder"):
        make_loggers("tensorboard", None)


@pytest.mark.parametrize(("name", "extra"), [("wandb", "wandb"), ("tensorboard", "viz")])
def test_missing_package_is_named(tmp_path, monkeypatch, name, extra):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=rf"myriad-lab\[{extra}\]"):
        make_loggers(name, tmp_path)


def test_tensorboard_holds_the_scalars(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = make_loggers("tensorboard", tmp_path)[1]
    for i in range(3):
        sink.log({"Population/coverage": 0.1 * i}, i)
    sink.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("Population/coverage")] == [0, 1, 2]
