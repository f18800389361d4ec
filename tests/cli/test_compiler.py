"""What Triton needs is looked for before a run on a GPU, not found missing after its first rollout."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from myriad_lab.cli import compiler
from myriad_lab.cli.compiler import check_compiler
from myriad_lab.errors import ConfigurationError


@pytest.fixture
def complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have gcc and, in the folder that is returned, Python's headers."""
    (tmp_path / "Python.h").touch()
    for name in ("CC", "CPATH", "C_INCLUDE_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(compiler.shutil, "which", lambda name: "/usr/bin/gcc" if name == "gcc" else None)
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    return tmp_path


def test_a_compiler_and_headers_are_enough(complete: Path) -> None:
    check_compiler()


def test_no_compiler(complete: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"no C compiler: install one .* variable CC"):
        check_compiler()
    monkeypatch.setenv("CC", "/opt/cc")
    check_compiler()


def test_no_headers(complete: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (complete / "Python.h").unlink()
    with pytest.raises(ConfigurationError, match=r"Python\.h is not there: install the headers"):
        check_compiler()
    (complete / "elsewhere").mkdir()
    (complete / "elsewhere" / "Python.h").touch()
    monkeypatch.setenv("CPATH", f"/nowhere:{complete / 'elsewhere'}")
    check_compiler()
