"""The budgets: sizes, annotations, docstrings, and what an import may cost."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "source" / "myriad_lab"
FILES = sorted(SOURCE.rglob("*.py"))
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_SCRIPT_LINES = 20
HEAVY = {
    "hydra", "imageio_ffmpeg", "isaaclab", "matplotlib", "mujoco", "mujoco_warp", "omegaconf", "onnx", "onnxruntime",
    "onnxscript", "scipy", "tensorboard", "viser", "wandb", "warp",
}  # fmt: skip

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def definitions(body: list[ast.stmt], prefix: str = "", public: bool = True) -> Iterator[tuple[str, Definition, bool]]:
    """Yield (dotted name, node, public) of the functions, classes and methods of a module, however nested."""
    for node in body:
        if isinstance(node, Definition):
            seen = public and not node.name.startswith("_")
            yield prefix + node.name, node, seen
            yield from definitions(node.body, f"{prefix}{node.name}.", seen and isinstance(node, ast.ClassDef))


def missing_documentation(name: str, node: Definition) -> list[str]:
    """Return what a public definition lacks: its docstring, the annotations of its arguments and of its result."""
    lacks = [] if ast.get_docstring(node) else [f"{name}: docstring"]
    if isinstance(node, ast.ClassDef):
        return lacks
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    bare = [arg.arg for arg in arguments if arg and not arg.annotation and arg.arg not in ("self", "cls")]
    return lacks + [f"{name}: type of {arg}" for arg in bare] + ([] if node.returns else [f"{name}: type of result"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_file(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "the module has no docstring"
    long, lacks = [], []
    for name, node, public in definitions(tree.body):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if not isinstance(node, ast.ClassDef) and lines > MAX_FUNCTION_LINES:
            long.append(f"{name}: {lines} lines")
        if public:
            lacks += missing_documentation(name, node)
    assert not long
    assert not lacks


def test_scripts_are_thin() -> None:
    scripts = sorted((ROOT / "scripts").glob("*.py"))
    assert scripts
    assert {
        path.name: size for path in scripts if (size := len(path.read_text().splitlines())) > MAX_SCRIPT_LINES
    } == {}


def test_every_command_has_its_script() -> None:
    from myriad_lab.cli.main import COMMANDS

    assert {path.stem for path in (ROOT / "scripts").glob("*.py")} == set(COMMANDS)


def imported_by(statement: str) -> tuple[set[str], str]:
    """Run a statement in a fresh interpreter; return the top-level modules it brought in and what it printed."""
    code = f"{statement}\nimport json, sys\nsys.stderr.write(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stderr)}, done.stdout


def test_importing_the_package_is_silent_and_light() -> None:
    modules, printed = imported_by("import myriad_lab")
    assert printed == ""
    assert "myriad_lab" in modules
    assert not modules & (HEAVY | {"torch"})


def test_no_module_starts_a_simulator_or_a_plot() -> None:
    # rsl_rl is torch code; what it imports by itself (tensordict, ...) is not ours to judge
    names = [
        ".".join(("myriad_lab", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
        for path in FILES
        if not {"mujoco", "mujoco_warp", "isaaclab"} & set(path.relative_to(SOURCE).parts)
    ]
    foreign, _ = imported_by("import rsl_rl.env, tensordict, torch")
    modules, printed = imported_by("import " + ", ".join(names))
    assert printed == ""
    assert not (modules - foreign) & HEAVY


def test_help_needs_no_torch() -> None:
    modules, _ = imported_by("from myriad_lab.cli.main import parser_of\nparser_of('train').format_help()")
    assert not modules & (HEAVY | {"torch"})


def test_the_budget_check_catches() -> None:
    tree = ast.parse("class A:\n    def f(self, x): ...\n    def _g(self, y): ...\n")
    found = [missing_documentation(name, node) for name, node, public in definitions(tree.body) if public]
    lacks = [line for lines in found for line in lines]
    assert lacks == ["A: docstring", "A.f: docstring", "A.f: type of x", "A.f: type of result"]
