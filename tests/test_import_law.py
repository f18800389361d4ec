"""The import law: which folder of the package may import which, read from the syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "source" / "myriad_lab"

LEARNING_LEG = ("functional", "networks", "storage", "algorithms")
SIMULATION_LEG = ("envs", "tasks")
FOLDERS = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}

# What each folder may import, beside itself and `errors`.
LAW: dict[str, set[str]] = {
    **{folder: set(LEARNING_LEG[:rank]) for rank, folder in enumerate(LEARNING_LEG)},
    **{folder: set(SIMULATION_LEG[:rank]) for rank, folder in enumerate(SIMULATION_LEG)},
    "distributed": {"functional"},
    "monitor": set(),
    "portfolio": {"functional", "networks"},
    "evaluation": {"functional", "networks", "portfolio"},
    "export": {"functional", "networks", "portfolio"},
    # a runner answers to RSL-RL's export_policy_to_jit and export_policy_to_onnx, hence "export", which knows no runner
    "runners": {*LEARNING_LEG, *SIMULATION_LEG, "portfolio", "distributed", "monitor", "export"},
    "cli": FOLDERS,
}


def imported_folders(tree: ast.AST, module: tuple[str, ...]) -> set[str]:
    """Return the folders of myriad_lab that a module imports anywhere: inside functions and type checks, too.

    ``module`` is the path of the package that holds the file, e.g. ``("myriad_lab", "runners")``.
    """
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module[: len(module) - node.level + 1] if node.level else ()
            start = ".".join((*base, *([node.module] if node.module else [])))
            names += [f"{start}.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "myriad_lab" and len(part) > 1 and part[1] in FOLDERS}


def violations(folder: str, text: str, module: tuple[str, ...]) -> set[str]:
    """Return the folders that ``text``, a file of ``folder``, imports against the law."""
    return imported_folders(ast.parse(text), module) - LAW[folder] - {folder}


def test_every_folder_has_its_law() -> None:
    assert set(LAW) == FOLDERS


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_folder_obeys(folder: str) -> None:
    found = {
        str(path.relative_to(SOURCE)): sorted(broken)
        for path in sorted((SOURCE / folder).rglob("*.py"))
        if (broken := violations(folder, path.read_text(), ("myriad_lab", *path.relative_to(SOURCE).parts[:-1])))
    }
    assert not found


def test_top_level_modules_import_no_folder() -> None:
    for path in SOURCE.glob("*.py"):
        assert not imported_folders(ast.parse(path.read_text()), ("myriad_lab",)), path.name


@pytest.mark.parametrize(
    ("folder", "line", "broken"),
    [
        ("algorithms", "from myriad_lab.envs.contract import VecEnv", {"envs"}),
        ("algorithms", "def f():\n    import myriad_lab.envs.contract", {"envs"}),
        ("envs", "from myriad_lab import tasks", {"tasks"}),
        ("envs", "from ..networks.mlp import MLP", {"networks"}),
        ("networks", "from myriad_lab.storage.replay import ReplayBuffer", {"storage"}),
        ("evaluation", "from myriad_lab.algorithms import kmyriad", {"algorithms"}),
        ("runners", "from myriad_lab.cli.main import main", {"cli"}),
        ("storage", "from myriad_lab.networks.mlp import MLP\nfrom myriad_lab.errors import nearest", set()),
        ("tasks", "from myriad_lab.envs.arena import Arena\nfrom .registry import get", set()),
    ],
)
def test_the_law_catches(folder: str, line: str, broken: set[str]) -> None:
    assert violations(folder, line, ("myriad_lab", folder)) == broken
