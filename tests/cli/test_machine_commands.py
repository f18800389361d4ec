"""``myriad doctor`` and ``myriad benchmark``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from myriad_lab.cli import doctor
from myriad_lab.cli.machine import hardware
from myriad_lab.cli.main import main
from myriad_lab.envs.cores import usable_cores
from myriad_lab.envs.mujoco.engine import resolve_num_threads


def test_doctor_finds_nothing_broken_where_the_tests_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"matplotlib": "viz"})  # The others take seconds to import.
    assert main(["doctor"]) == 0
    lines = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert {lines[name] for name in (*doctor.CORE, "python", "processor", "tasks")} == {"ok"}
    assert lines["rendering"] in ("ok", "missing")


def test_doctor_tells_what_is_broken_and_how_to_mend_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "CORE", ("no_such_package",))
    monkeypatch.setattr(doctor, "EXTRAS", {"no_such_extra": "viz"})
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_packages,))
    assert main(["doctor"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert any("no_such_package" in line and "broken" in line and "pip install myriad-lab" in line for line in told)
    assert any("no_such_extra" in line and "missing" in line and "myriad-lab[viz]" in line for line in told)


@pytest.mark.parametrize(
    "content",
    [
        "raise ImportError('libmujoco.so.3 not found')",
        "raise OSError('a cut libmujoco.so')",
        "__version__ = '4.0.0'",
    ],
    ids=["raises", "library", "half"],
)
def test_doctor_gives_its_table_where_mujoco_is_broken(tmp_path: Path, content: str) -> None:
    (tmp_path / "mujoco.py").write_text(content)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from myriad_lab.cli import doctor\n"
        "doctor.CORE, doctor.EXTRAS = ('mujoco',), {}\n"
        "from myriad_lab.cli.main import main\n"
        "sys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert lines["mujoco"].split()[1] == "broken"
    assert "pip install --force-reinstall --no-deps mujoco" in lines["mujoco"]
    assert lines["rendering"].split()[1] == "broken"
    assert lines["tasks"].split()[1] == "ok"


def test_cores_are_counted_where_the_system_lists_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = usable_cores()
    assert cores == sorted(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == list(range(os.cpu_count() or 1))
    assert hardware()["cores"] == os.cpu_count()
    assert doctor.check_python()[1].detail.endswith(f", {os.cpu_count()} cores")
    assert resolve_num_threads(None) == os.cpu_count()


def test_benchmark_prints_and_writes_its_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lines.json"
    assert main(["benchmark", "replay", "--quick", "--json", str(path)]) == 0
    told = capsys.readouterr().out
    assert "floor [ms]" in told
    assert f"written: {path}" in told
    stored = json.loads(path.read_text())
    assert stored["quick"] is True
    assert stored["machine"]["cpu"]
    assert stored["machine"]["mujoco"]
    assert {result["benchmark"] for result in stored["results"]} == {"replay"}
    for line in stored["results"][0]["lines"]:
        assert line["p95_s"] >= line["measured_s"] > 0
        assert line["floor_s"] > 0
        assert line["name"] in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["benchmark", "nkn"], "nkn"),
        (["benchmark", "knn", "--device", "cuda:99"], "device='cuda:99' is not there"),
        (["doctor", "env.goal=1"], "doctor takes no overrides"),
    ],
)
def test_mistakes_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
