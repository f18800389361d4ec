"""The environment that `make isaaclab` makes: what refuses to be made, and what must be in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from myriad_lab.cli.doctor_isaaclab import check_isaaclab

HERE = Path(__file__).parent
REQUIREMENTS = [line for line in (HERE / "requirements.txt").read_text().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("content", [None, "exit 1"], ids=["absent", "too new"])
def test_without_a_python_that_fits_it_says_which_and_makes_nothing(tmp_path: Path, content: str | None) -> None:
    python = tmp_path / "python"
    if content is not None:
        python.write_text(f"#!/bin/sh\n{content}\n")
        python.chmod(0o755)
    done = subprocess.run(
        [HERE / "install.sh", tmp_path / "venv"],
        env=os.environ | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "needs Python 3.12 (3.11 works too, off-label)" in done.stderr
    assert f"PYTHON=/path/to/python3.12 {HERE / 'install.sh'} {tmp_path / 'venv'}" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_every_version_is_exact() -> None:
    exact = re.compile(r"[\w.-]+==[\w.]+(; python_version [<>=]+ .*)?")
    assert [line for line in REQUIREMENTS if not exact.fullmatch(line)] == []
    for name in ("isaaclab==3.0.0", "newton==1.6.1", "rsl-rl-lib==5.5.1"):
        assert name in REQUIREMENTS


@pytest.mark.isaaclab
def test_the_pins_of_isaac_lab_hold_where_its_packages_are_there() -> None:
    from packaging.requirements import Requirement

    parsed = [Requirement(line) for line in metadata.requires("isaaclab") or ()]
    moved = []
    for requirement in parsed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": "ovphysx"}):
            continue
        found = [package.version for package in metadata.distributions(name=requirement.name)]
        moved += [requirement.name for version in found if not requirement.specifier.contains(version)]
    # Python 3.11 is off-label, and so is the torch beside it
    assert moved == (["torch"] if sys.version_info < (3, 12) else [])


@pytest.mark.isaaclab
def test_the_doctor_finds_both_engines_and_the_local_assets() -> None:
    told = {finding.what: finding for finding in check_isaaclab()}
    assert {what for what, finding in told.items() if finding.state != "ok"} == {"Isaac Lab: Kit"}
    assert told["Isaac Lab: Kit"].state == "missing"
    assert "newton 1.6.1" in told["Isaac Lab: Newton"].detail
    assert "ovphysx 0.6.4" in told["Isaac Lab: PhysX"].detail
    assert Path(told["Isaac Lab: assets"].detail).is_dir()


@pytest.mark.isaaclab
def test_the_assets_hold_what_isaac_lab_looks_up_in_them() -> None:
    from isaaclab.sim.spawners.from_files import GroundPlaneCfg
    from isaaclab_assets.robots.ant import ANT_CFG
    from pxr import Usd, UsdGeom

    ground = Usd.Stage.Open(GroundPlaneCfg().usd_path)
    root = ground.GetDefaultPrim().GetPath()
    assert ground.GetPrimAtPath(f"{root}/Environment").GetAttribute("xformOp:scale").IsValid()
    mesh = UsdGeom.PrimvarsAPI(ground.GetPrimAtPath(f"{root}/Environment/Geometry"))
    assert len(mesh.GetPrimvar("st").Get()) == 4
    assert "Plane" in [prim.GetTypeName() for prim in ground.Traverse()]
    ant = Usd.Stage.Open(ANT_CFG.spawn.usd_path)
    joints = {prim.GetName() for prim in ant.Traverse() if prim.GetTypeName() == "PhysicsRevoluteJoint"}
    assert len(joints) == 8
    assert all(any(re.fullmatch(name, joint) for joint in joints) for name in ANT_CFG.init_state.joint_pos)
