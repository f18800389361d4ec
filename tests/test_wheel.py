"""The wheel, built from the source distribution and installed like any other package, works in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed and return what it printed."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel, by way of the sdist, from a copy of what git would take: no leftovers of a build get in."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    names = ("source", "config", "setup.py", "pyproject.toml", "extension.toml", "README.md", "LICENSE")
    names += ("MANIFEST.in", "constraints.txt")
    run("cp", "-r", *[ROOT / name for name in names], copy, cwd=ROOT)
    run("find", copy, "-name", "*.egg-info", "-prune", "-exec", "rm", "-r", "{}", "+", cwd=ROOT)
    run(sys.executable, "-m", "build", "--outdir", out, copy, cwd=out)
    (found,) = out.glob("myriad_lab-*.whl")
    return found


def test_the_wheel_holds_code_presets_and_models(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "source"
    wanted = {str(path.relative_to(source)) for path in source.rglob("*.py")}
    wanted |= {str(path.relative_to(source)) for path in source.rglob("*.xml")}
    wanted |= {f"myriad_lab/{path.relative_to(ROOT)}" for path in (ROOT / "config").rglob("*.yaml")}
    assert any(name.endswith(".yaml") for name in wanted)
    assert wanted <= held
    assert not [name for name in held if name.startswith("tests/")]
    # nothing of anybody else's gets in: all that is held is code, presets, models, and what pip writes of itself
    info = {name for name in held if ".dist-info/" in name}
    assert {Path(name).suffix or Path(name).name for name in held - info} == {".py", ".typed", ".xml", ".yaml"}
    assert [Path(name).name for name in info if "licenses" in name] == ["LICENSE"]


def test_the_command_works_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    venv, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    python = venv / "bin" / "python"
    # the packages it depends on come from this environment, the package itself does not
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=empty).strip()
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel, cwd=empty)
    here = run(sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=empty).strip()
    (Path(site) / "dependencies.pth").write_text(here + "\n")
    where = run(python, "-c", "import myriad_lab; print(myriad_lab.__file__)", cwd=empty).strip()
    assert Path(where).is_relative_to(site)
    listed = run(python, "-m", "myriad_lab.cli.main", "list_tasks", cwd=empty)
    assert "Myriad-PointMaze-Maze" in listed
    presets = "from myriad_lab.cli.configuration import list_presets; print(list_presets('experiment'))"
    assert "pointmaze" in run(python, "-c", presets, cwd=empty)
    assert (Path(site) / "bin" / "myriad").is_file()
    assert not list(empty.iterdir())
