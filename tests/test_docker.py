"""What can be told of the images without a Docker engine: all that they name is there, and they accept no licence."""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile.*"))
COMPOSE_FILES = sorted(DOCKER.glob("docker-compose*.yaml"))
MADE_BY_THE_IMAGE = {"runs", ".venv"}
SHIPPED = (
    ".ci", "Makefile", "MANIFEST.in", "README.md", "config", "constraints.txt", "docker", "docs", "extension.toml",
    "pyproject.toml", "scripts", "setup.py", "source", "tests", "typings",
)  # fmt: skip
by_name = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


def instructions(text: str) -> list[tuple[str, str]]:
    """Split a Dockerfile into (instruction, the rest of its logical line)."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(None, 1)[1].strip()) for line in joined]


def of_kind(path: Path, *kinds: str) -> list[str]:
    return [rest for kind, rest in instructions(path.read_text()) if kind in kinds]


def words(path: Path) -> list[str]:
    """Return the words of everything that the image runs, when it is built or started."""
    return [word for line in of_kind(path, "RUN", "CMD", "ENTRYPOINT") for word in shlex.split(line.strip("[]"))]


def repository_paths(path: Path) -> Iterator[str]:
    """Yield the paths in the words of an image that are files or folders of the repository."""
    (home,) = of_kind(path, "WORKDIR")
    for word in words(path):
        if word.startswith(home):
            yield word.removeprefix(home).lstrip("/") or "."
        elif re.fullmatch(r"[\w.-][\w./-]*\.(txt|toml|py|sh|yaml)", word):
            yield word


def ignored(name: str) -> bool:
    patterns = (ROOT / ".dockerignore").read_text().split()
    return any(fnmatch.fnmatch(name, pattern.removeprefix("**/")) for pattern in patterns)


def test_the_images_are_those_that_are_told_of() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.isaacsim", "Dockerfile.kitless"]
    told = (DOCKER / "README.md").read_text()
    assert all(path.name in told for path in (*DOCKERFILES, *COMPOSE_FILES))


@by_name
def test_what_is_copied_is_there(path: Path) -> None:
    copied = [word for line in of_kind(path, "COPY") for word in line.split()[:-1] if not word.startswith("--")]
    assert "." in copied
    assert [name for name in copied if not (ROOT / name).exists() or ignored(name)] == []


def test_the_images_hold_the_repository_and_nothing_of_a_working_tree() -> None:
    assert [name for name in SHIPPED if ignored(name) or not (ROOT / name).exists()] == []
    assert all(ignored(name) for name in (".git", ".venv", ".venv-isaaclab", "runs", "__pycache__", "a.egg-info"))


@by_name
def test_what_is_run_is_there(path: Path) -> None:
    found = set(repository_paths(path))
    assert found
    assert {name for name in found - MADE_BY_THE_IMAGE if not (ROOT / name).exists()} == set()
    text = " ".join(words(path))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake,? ([a-z-]+)", text)) <= targets
    extras = re.findall(r'^        "(\w+)": ', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert {name for group in re.findall(r"\.\[([\w,]+)\]", text) for name in group.split(",")} <= set(extras)
    for module in re.findall(r"-m (myriad_lab[\w.]*)", text):
        assert (ROOT / "source" / f"{module.replace('.', '/')}.py").is_file()


@by_name
def test_nobody_is_root(path: Path) -> None:
    assert of_kind(path, "USER")[-1] not in ("root", "0", "0:0")
    assert all("--chown=" in line for line in of_kind(path, "COPY"))


def test_the_versions_are_those_that_are_tested() -> None:
    kitless = DOCKER / "Dockerfile.kitless"
    (version,) = [line.partition("=")[2] for line in of_kind(kitless, "ARG") if line.startswith("ISAACLAB=")]
    assert f"isaaclab=={version}" in (ROOT / "tests" / "isaaclab" / "requirements.txt").read_text().split()
    assert "BASE=python:3.12-slim-bookworm" in of_kind(kitless, "ARG")
    assert "BASE=python:3.11-slim-bookworm" in of_kind(DOCKER / "Dockerfile.cpu", "ARG")


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda path: path.name)
def test_compose_names_what_is_there(path: Path) -> None:
    compose = yaml.safe_load(path.read_text())
    for service in compose["services"].values():
        build = service["build"]
        assert (DOCKER / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        declared = {line.partition("=")[0] for line in of_kind(ROOT / build["dockerfile"], "ARG")}
        assert set(build.get("args", {})) <= declared
        mounted = [volume.split(":", 1) for volume in service.get("volumes", ())]
        assert {source for source, _ in mounted} <= {"../runs", *compose.get("volumes", {})}
        (home,) = of_kind(ROOT / build["dockerfile"], "WORKDIR")
        assert [target for source, target in mounted if source == "../runs"] in ([], [f"{home}/runs"])


def test_every_image_has_its_service() -> None:
    services = [name for path in COMPOSE_FILES for name in yaml.safe_load(path.read_text())["services"]]
    assert sorted(services) == ["cpu", "isaacsim", "kitless"]


def test_the_licence_is_accepted_by_nobody_but_the_user() -> None:
    accepted = re.compile(r"(EULA|CONSENT)\w*['\"]?\s*[=:]\s*['\"]?(y|yes|1|true|all)\b", re.IGNORECASE)
    assert accepted.search('ENV ACCEPT_EULA="Y"')
    files = [path for path in (*DOCKER.iterdir(), ROOT / "Makefile", ROOT / ".ci" / "run") if path.is_file()]
    assert [path.name for path in files if accepted.search(path.read_text())] == []
    assert not [path.name for path in DOCKERFILES if "EULA" in "".join(of_kind(path, "ENV", "ARG", "RUN"))]
    isaacsim = yaml.safe_load((DOCKER / "docker-compose.isaacsim.yaml").read_text())["services"]["isaacsim"]
    assert re.fullmatch(r"\$\{ACCEPT_EULA:\?.*licence.*\}", isaacsim["environment"]["ACCEPT_EULA"])
    assert "EULA" not in (DOCKER / "docker-compose.yaml").read_text()
