"""What Isaac Lab and pip read of the package before anything of it runs."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTENSION = tomllib.loads((ROOT / "extension.toml").read_text())


def test_the_modules_are_where_it_says() -> None:
    modules = EXTENSION["python"]["module"]
    assert [module["name"] for module in modules] == ["myriad_lab"]
    assert all((ROOT / module["path"] / module["name"] / "__init__.py").is_file() for module in modules)


def test_no_entry_is_left_empty() -> None:
    package = EXTENSION["package"]
    assert all(package.values())
    assert (ROOT / package["readme"]).is_file()
