"""What a record is turned into: text, Markdown, a page, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from myriad_lab.cli.benchmarks import plots
from myriad_lab.cli.benchmarks.line import BenchmarkLine
from myriad_lab.cli.benchmarks.record import Record
from myriad_lab.cli.benchmarks.tables import fill_page, machine_line, markdown_tables, text_table
from myriad_lab.cli.main import main
from myriad_lab.errors import ConfigurationError

MACHINE = {"cpu": "a processor", "gpu": "a card", "torch": "2.13.0"}


def line(name: str, rows: int, seconds: float, **rest: Any) -> BenchmarkLine:
    return BenchmarkLine(name, f"{rows} rows", seconds, 2.0 * seconds, x=rows, x_name="rows", **rest)


def record(device: str, path: Path | None = None, factor: float = 1.0) -> Record:
    record = Record(MACHINE, device, False, path)
    both = {"floor_s": factor * 1e-3, "floor": "bytes", "peer_s": factor * 4e-3, "peer": "plain"}
    for rows in (256, 1024):
        seconds = factor * rows * 1e-5
        record.add("learner", f"S {rows}", [line("critic update, S", rows, seconds, **both)])
        record.add("learner", f"M {rows}", [line("critic update, M", rows, 2 * seconds, peak_bytes=3_000_000)])
    record.add("env", "Ant", [line("env step, Ant", 64, factor, peer_s=0.5, peer="bare", note="64 env-steps/s")])
    return record


def test_text_table() -> None:
    lines = record("cpu").content()["results"][0]["lines"]
    head, _, row = text_table(lines).splitlines()
    assert head.split("  ")[0] == "what"
    cells = [cell.strip() for cell in row.split("  ") if cell.strip()]
    assert cells == [
        "critic update, S",
        "256 rows",
        "2.56",
        "5.12",
        "1.0",
        "2.56",
        "4.0",
        "0.64",
        "-",
        "bytes",
        "plain",
    ]


def test_markdown_leaves_what_was_not_measured_empty() -> None:
    table = markdown_tables([record("cpu").content()])["learner"].splitlines()
    assert table[0].startswith("| what | size | cpu: median (p95) [ms] | cpu: floor [ms] |")
    assert table[0].endswith("| cuda |")
    assert table[2] == "| critic update, S | 256 rows | 2.56 (5.12) | 1 bytes | 2.56 | 4 plain | - |  | not measured |"
    assert len(table) == 6


def test_markdown_of_two_devices() -> None:
    tables = markdown_tables([record("cpu").content(), record("cuda:0", factor=0.01).content()])
    row = tables["learner"].splitlines()[2]
    assert "2.56 (5.12)" in row
    assert "0.0256 (0.0512)" in row
    assert "not measured" not in tables["learner"]
    with pytest.raises(ConfigurationError, match="same kind of device"):
        markdown_tables([record("cpu").content()] * 2)


def test_an_empty_record_says_so() -> None:
    assert machine_line(Record(MACHINE, "cpu", False).content()).endswith("torch 2.13.0; nothing measured")


def test_a_page_is_filled_again_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, path = tmp_path / "page.md", tmp_path / "cpu.json"
    places = "".join(
        f"## {name}\n<!-- table {name} -->\n<!-- end -->\n" for name in ("machines", "env", "knn", "learner")
    )
    page.write_text(f"# Page\n{places}The end.\n".replace("knn -->\n", "knn -->\n| of an older record |\n"))
    record("cpu", path)
    assert main(["benchmark", "table", "--json", str(path), "--page", str(page)]) == 0
    once = page.read_text()
    assert "| env step, Ant | 64 rows |" in once
    assert "<!-- table knn -->\n\nNot in the records.\n" in once
    assert "older" not in once
    assert "- cpu: cpu a processor, gpu a card, torch 2.13.0; 20" in once
    assert ", commit unknown, load of the machine " in once
    assert once.endswith("The end.\n")
    assert main(["benchmark", "table", "--json", str(path), "--page", str(page)]) == 0
    assert page.read_text() == once
    capsys.readouterr()
    assert main(["benchmark", "table", "--json", str(path)]) == 0
    assert "## learner" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match="no place for the table replay"):
        fill_page(page, {"replay": "|"})
    with pytest.raises(ConfigurationError, match="there is no"):
        fill_page(tmp_path / "missing.md", {})


def test_plots_are_written_with_labelled_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or original(self, *a, **k))
    path = tmp_path / "cuda.json"
    record("cuda:0", path)
    assert main(["benchmark", "table", "--json", str(path), "--plot", str(tmp_path / "plots")]) == 0
    files = sorted((tmp_path / "plots").iterdir())
    assert [file.name for file in files] == ["env_cuda.png", "learner_cuda.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    axes = figures[0].axes[0]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("critic update", "rows", "time [ms]")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["S", "M", "measured", "floor", "peer"]
    measured = axes.get_lines()[0].get_xydata()
    assert measured is not None
    assert measured.tolist() == [[256, pytest.approx(2.56)], [1024, pytest.approx(10.24)]]
    assert "a card" in figures[0].get_suptitle()


def test_lines_without_a_size_have_no_plot(tmp_path: Path) -> None:
    record = Record(MACHINE, "cpu", False)
    record.add("knn", "a", [BenchmarkLine("k-NN", "?", 1.0, 1.0)])
    assert plots.plot(record.content(), tmp_path) == []
    assert [plots._short(value, 0) for value in (0.5, 10.0, 30.0, 2000.0)] == ["0.5", "10", "", "2000"]
