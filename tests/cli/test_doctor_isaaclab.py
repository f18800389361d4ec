"""What ``myriad doctor`` says of Isaac Lab, over the metadata of packages that are not there."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest
import torch

from myriad_lab.cli import doctor
from myriad_lab.cli.doctor_isaaclab import check_isaaclab

ISAACLAB = """
numpy>=2
torch==2.11.0
warp-lang==1.17.0
usd-exchange==3.0.1
rsl-rl-lib==5.5.1
newton[sim]==1.6.1
ovphysx==0.6.4.72118723; extra == "ovphysx"
ovstage==0.2.1.385922; extra == "ovphysx"
isaacsim[all,extscache]==6.2.0.0; extra == "isaacsim"
"""
NEWTON = """
mujoco-warp~=3.12.0; extra == "sim"
mujoco~=3.12.0; extra == "sim"
usd-core>=25.5; extra == "importers"
"""
WHOLE = {
    "isaaclab": "3.0.0", "numpy": "2.4.6", "warp_lang": "1.17.0", "usd_exchange": "3.0.1", "rsl_rl_lib": "5.5.1",
    "newton": "1.6.1", "mujoco_warp": "3.12.0", "mujoco": "3.12.4", "ovphysx": "0.6.4.72118723",
    "ovstage": "0.2.1.385922", "isaacsim": "6.2.0.0",
}  # fmt: skip


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be the machine that Isaac Lab is made for."""
    monkeypatch.setattr(platform, "python_version", lambda: "3.12.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("ISAACSIM_ASSET_ROOT", raising=False)


def look(folder: Path, **versions: str | None) -> dict[str, tuple[str, str]]:
    """Lay out the metadata of a whole Isaac Lab with some versions changed (None: left out), and ask the doctor."""
    requires = {"isaaclab": ISAACLAB, "newton": NEWTON}
    for name, version in (WHOLE | versions).items():
        if version is not None:
            place = folder / f"{name}-{version}.dist-info"
            place.mkdir()
            lines = [f"Name: {name}", f"Version: {version}", "Metadata-Version: 2.1"]
            lines += ["Requires-Python: <3.13,>=3.12"] if name == "isaaclab" else []
            lines += [f"Requires-Dist: {line}" for line in requires.get(name, "").split("\n") if line]
            (place / "METADATA").write_text("\n".join(lines) + "\n\n")
    found = check_isaaclab([str(folder)])
    assert len({finding.what for finding in found}) == len(found)
    return {finding.what.removeprefix("Isaac Lab: "): (finding.state, finding.detail) for finding in found}


def test_a_whole_isaac_lab_is_told_with_its_versions(tmp_path: Path) -> None:
    told = look(tmp_path)
    assert {state for state, _ in told.values()} == {"ok"}
    assert told["Newton"][1] == "warp-lang 1.17.0, newton 1.6.1, mujoco-warp 3.12.0, mujoco 3.12.4"
    assert told["PhysX"][1] == "ovphysx 0.6.4.72118723, ovstage 0.2.1.385922"
    assert list(told) == ["Isaac Lab", "Python", "numpy", "rsl-rl", "Newton", "PhysX", "Kit", "USD", "assets"]


def test_none_at_all_is_missing_and_never_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = look(tmp_path, **dict.fromkeys(WHOLE))
    assert list(told) == ["Isaac Lab"]
    state, detail = told["Isaac Lab"]
    assert state == "missing"
    assert "myriad-lab[isaaclab]" in detail
    assert "make isaaclab" in detail
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert doctor.check_isaaclab()[0].state == "missing"


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("2.3.2.post1", "Isaac Lab 2.3 is not supported yet"),
        ("0.54.2", "Isaac Lab 2.3 is not supported yet"),
        ("6.1.16", "not supported"),
    ],
)
def test_another_line_is_refused_with_the_one_that_works(tmp_path: Path, version: str, told: str) -> None:
    found = look(tmp_path, isaaclab=version)
    assert list(found) == ["Isaac Lab"]
    state, detail = found["Isaac Lab"]
    assert state == "broken"
    assert detail.startswith(f"{version}: {told}; 3.0 runs without Kit: pip install 'myriad-lab[isaaclab]'")


def test_a_later_one_says_what_is_tested(tmp_path: Path) -> None:
    assert look(tmp_path, isaaclab="3.0.1")["Isaac Lab"] == ("ok", "3.0.1 (tested with 3.0.0)")
    (tmp_path / "later").mkdir()
    state, detail = look(tmp_path / "later", isaaclab="3.1.0")["Isaac Lab"]
    assert (state, detail.startswith("3.1.0: not supported; 3.0 runs")) == ("broken", True)


@pytest.mark.parametrize(
    ("versions", "part", "mend"),
    [
        ({"mujoco": "4.0.0"}, "Newton", "mujoco is 4.0.0: pip install --no-deps 'mujoco~=3.12.0'"),
        ({"warp_lang": "1.19.0"}, "Newton", "warp-lang is 1.19.0: pip install --no-deps 'warp-lang==1.17.0'"),
        ({"newton": None}, "Newton", "newton is not installed: pip install --no-deps 'newton==1.6.1'"),
        ({"rsl_rl_lib": "3.1.2"}, "rsl-rl", "rsl-rl-lib is 3.1.2: pip install --no-deps 'rsl-rl-lib==5.5.1'"),
        ({"numpy": "1.26.4"}, "numpy", "numpy is 1.26.4: pip install --no-deps 'numpy>=2'"),
        ({"ovstage": "0.3.0"}, "PhysX", "ovstage is 0.3.0: pip install --no-deps 'ovstage==0.2.1.385922'"),
        ({"isaacsim": "5.1.0.0"}, "Kit", "isaacsim is 5.1.0.0: pip install --no-deps 'isaacsim==6.2.0.0'"),
        ({"usd_core": "26.5"}, "USD", "pip uninstall usd-core, then pip install --force-reinstall --no-deps usd-exc"),
        ({"usd_exchange": None}, "USD", "usd-exchange is not installed: pip install"),
    ],
)
def test_what_moved_a_pin_is_broken_with_its_mend(tmp_path: Path, versions: dict, part: str, mend: str) -> None:
    told = look(tmp_path, **versions)
    assert {name for name, (state, _) in told.items() if state != "ok"} == {part}
    state, detail = told[part]
    assert state == "broken"
    assert mend in detail


@pytest.mark.parametrize(
    ("absent", "part", "extra"),
    [(("ovphysx", "ovstage"), "PhysX", "isaaclab"), (("isaacsim",), "Kit", "isaacsim")],
)
def test_an_engine_that_is_not_there_is_missing(tmp_path: Path, absent: tuple, part: str, extra: str) -> None:
    told = look(tmp_path, **dict.fromkeys(absent))
    assert told.pop(part) == ("missing", f"pip install 'myriad-lab[{extra}]'")
    assert {state for state, _ in told.values()} == {"ok"}


def test_physx_says_where_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = look(tmp_path)
    assert "without CUDA it runs on the CPU" in told["PhysX"][1]
    assert "CUDA" not in told["Newton"][1]


@pytest.mark.parametrize(("version", "state", "told"), [("3.11.7", "ok", "off-label"), ("3.13.0", "broken", "3.12")])
def test_another_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, state: str, told: str) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: version)
    found = look(tmp_path)["Python"]
    assert found[0] == state
    assert found[1].startswith(version)
    assert told in found[1]


def test_the_assets_are_there_or_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages, root = tmp_path / "packages", tmp_path / "assets"
    packages.mkdir()
    assert "NVIDIA's server" in look(packages)["assets"][1]
    for value, state in [(str(root), "broken"), ("https://example.org/Assets", "ok"), (str(tmp_path), "ok")]:
        (tmp_path / "Isaac").mkdir(exist_ok=True)
        monkeypatch.setenv("ISAACSIM_ASSET_ROOT", value)
        found = {finding.what: finding for finding in check_isaaclab([str(packages)])}["Isaac Lab: assets"]
        assert (found.state, value in found.detail) == (state, True)
