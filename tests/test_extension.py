"""What Isaac Lab, Kit and pip read of the package before anything of it runs."""

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


def test_both_places_hold_the_same_file() -> None:
    assert (ROOT / "config" / "extension.toml").read_text() == (ROOT / "extension.toml").read_text()


def test_every_key_is_of_the_kind_that_the_readers_take() -> None:
    # `toml`, which Isaac Lab 2.3 reads with, knows no mixed arrays; Kit takes a version of three numbers.
    package = EXTENSION["package"]
    assert {type(value) for name, value in package.items() if name != "keywords"} == {str}
    assert {type(word) for word in package["keywords"]} == {str}
    assert [part.isdigit() for part in package["version"].split(".")] == [True] * 3
    assert set(EXTENSION["dependencies"]) == {"isaaclab", "isaaclab_assets", "isaaclab_rl", "isaaclab_tasks"}
    assert all(value == {} for value in EXTENSION["dependencies"].values())
    assert set(EXTENSION) == {"package", "dependencies", "python"}
