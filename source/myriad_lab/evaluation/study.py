"""A study: a grid of training commands at an equal budget, and the results of its cells on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from myriad_lab.errors import ConfigurationError, nearest
from myriad_lab.portfolio.atomic import read_json

T = TypeVar("T")


@dataclass
class BudgetCfg:
    """What every training run of a study may use; at least one of the two is set."""

    max_env_steps: int | None = None
    """Env steps summed over all envs."""
    max_seconds: float | None = None
    """Wall-clock of training [s]."""

    def scaled(self, scale: float) -> BudgetCfg:
        """Return the budget times ``scale``, for trying a study out."""
        steps = None if self.max_env_steps is None else max(1, round(self.max_env_steps * scale))
        return BudgetCfg(steps, None if self.max_seconds is None else self.max_seconds * scale)


@dataclass
class VariantCfg:
    """One way of training: flags of ``myriad train`` and Hydra overrides on top of those of the study."""

    label: str = ""
    """What tables and legends call it; the variant's name by default."""
    flags: dict[str, Any] = field(default_factory=dict)
    """Flag -> value, e.g. ``num_policies: 8``."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted key -> value, e.g. ``agent.k: 5``."""
    portfolio: str = ""
    """Prerequisite whose bundle (same seed) starts this variant, passed as ``--portfolio``; its samples and seconds are
    the cost of pre-training."""
    untrained: bool = False
    """Evaluate the freshly initialised population that the flags describe: one iteration is run to build it, and its
    weights are drawn anew."""
    budget: BudgetCfg | None = None
    """Budget of its own, only for prerequisites."""
    in_case: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Case -> overrides on top of those above, for tasks that ask for other settings."""
    peer: str = ""
    """Public learner that trains this variant by its own code, from a checkout, instead of ``myriad train``, e.g.
    ``FastTD3``; overrides are its own settings then, but for ``env.`` and ``isaaclab.``."""


@dataclass
class CaseCfg:
    """One setting that all variants are tried in, e.g. a goal."""

    label: str = ""
    """What tables call it."""
    flags: dict[str, Any] = field(default_factory=dict)
    """Flag -> value, e.g. ``task: Myriad-PointMaze-Cave``."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted key -> value."""
    budget: BudgetCfg | None = None
    """Budget of each variant in this case; that of the study by default."""
    goal_percentile: float | None = None
    """Put the goal at this percentile of the geodesic distances of the reachable cells."""


@dataclass
class EvaluationCfg:
    """The final evaluation of a cell, on a fresh env, from its bundle."""

    kind: str = "exploration"
    """``exploration`` (entropies, coverage, diversity) or ``task`` (success and return)."""
    seed: int = 10_007
    """Seed of the fresh env, the same for all cells."""
    num_envs: int = 512
    """Envs of the exploration rollout, the same for all m."""
    pool_size: int = 16_384
    """Particles in the pool of all heads, the same for all m."""
    k: int = 50
    """Neighbours of the entropy estimate, the same for all m."""
    episodes_per_head: int = 256
    """Deterministic episodes per head of a task evaluation."""
    num_checkpoints: int = 0
    """Checkpoints evaluated for a learning curve besides the last, evenly spaced; 0 takes the curve from training."""
    curve_episodes: int = 64
    """Deterministic episodes per head at those checkpoints."""
    device: str = "cpu"
    """Device of the fresh env and of the policies."""


@dataclass
class StudyCfg:
    """A study as written in ``config/study/<name>.yaml``."""

    name: str
    """Name of the study."""
    title: str
    """Headline of its page."""
    question: str
    """What it asks, in a sentence or two."""
    variants: dict[str, VariantCfg]
    """Ways of training that are compared."""
    seeds: list[int]
    """Seeds; each variant is trained once with each."""
    budget: BudgetCfg
    """Budget of each variant."""
    evaluation: EvaluationCfg
    """Final evaluation of each cell."""
    flags: dict[str, Any] = field(default_factory=dict)
    """Flags shared by all variants and prerequisites."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Overrides shared by all variants."""
    prerequisites: dict[str, VariantCfg] = field(default_factory=dict)
    """Pre-training that variants start from, once per seed."""
    cases: dict[str, CaseCfg] = field(default_factory=lambda: {"": CaseCfg()})
    """Settings each variant is tried in."""
    reference: str = ""
    """Variant that the others are compared with, seed by seed."""
    metrics: dict[str, str] = field(default_factory=dict)
    """Metric of a cell -> heading of its column."""
    curves: dict[str, str] = field(default_factory=dict)
    """Metric of a learning curve -> label of its axis."""
    curve_axes: list[str] = field(default_factory=lambda: ["env_steps"])
    """Horizontal axes of the curves: ``env_steps``, ``wall_time``."""
    threshold: float | None = None
    """Level of the first curve whose first crossing is tabulated."""
    threshold_of_reference: float | None = None
    """The same, as a share of what the reference reaches in that case: of its mean of the metric that the first curve
    shows. Instead of ``threshold``."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where names do not resolve or values are out of range."""
        for name, variant in [*self.variants.items(), *self.prerequisites.items()]:
            needed = variant.portfolio
            if needed and needed not in self.prerequisites:
                raise ConfigurationError(
                    f"variant {name!r} needs the prerequisite {needed!r}. {nearest(needed, self.prerequisites)}"
                )
        if self.reference and self.reference not in self.variants:
            raise ConfigurationError(f"reference {self.reference!r}: {nearest(self.reference, self.variants)}")
        self._check_cases_and_thresholds()
        if self.evaluation.kind not in ("exploration", "task"):
            raise ConfigurationError(f"evaluation.kind={self.evaluation.kind!r} must be 'exploration' or 'task'.")
        if not self.seeds or not self.variants:
            raise ConfigurationError(f"study {self.name!r} needs at least one seed and one variant.")
        bare = [n for n, v in self.prerequisites.items() if v.budget is None]
        if bare or (self.budget.max_env_steps is None and self.budget.max_seconds is None):
            raise ConfigurationError(f"give a budget (max_env_steps or max_seconds) to {bare or 'the study'}.")

    def budget_of(self, cell: Cell) -> BudgetCfg:
        """Return the budget of a cell: a prerequisite's own, the case's, or the study's."""
        own = self.prerequisites[cell.variant].budget if cell.is_prerequisite else self.cases[cell.case].budget
        return own or self.budget

    def _check_cases_and_thresholds(self) -> None:
        for name, variant in self.variants.items():
            unknown = next((case for case in variant.in_case if case not in self.cases), None)
            if unknown is not None:
                raise ConfigurationError(f"in_case of variant {name!r}: {unknown!r}. {nearest(unknown, self.cases)}")
            if variant.peer and (variant.portfolio or variant.untrained or self.evaluation.kind != "task"):
                raise ConfigurationError(
                    f"variant {name!r}: {variant.peer} trains one policy on a task, by itself; it takes no portfolio, "
                    "and needs evaluation.kind=task"
                )
        share = self.threshold_of_reference
        if share is None:
            return
        key = next(iter(self.curves), "")
        if self.threshold is not None or not self.reference or key not in self.metrics:
            raise ConfigurationError(
                f"threshold_of_reference={share} needs a reference, its metric {key!r} among the metrics, and no "
                "threshold beside it"
            )


@dataclass(frozen=True)
class Cell:
    """One training run of a study."""

    variant: str
    case: str
    seed: int
    needs: tuple[str, ...] = ()
    """Ids of the cells that must be finished first."""
    is_prerequisite: bool = False

    @property
    def id(self) -> str:
        """Name of the cell and of its folder."""
        return (
            "-".join(filter(None, ("pre" if self.is_prerequisite else "", self.variant, self.case)))
            + f"-seed{self.seed}"
        )


def load_study(path: str | Path) -> StudyCfg:
    """Read and validate a study.

    Raises:
        ConfigurationError: Where the file is missing, has an unknown key or does not validate.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        names = [p.stem for p in path.parent.glob("*.yaml")]
        raise ConfigurationError(f"study {path.stem!r} is unknown. {nearest(path.stem, names)}")
    raw = {"name": path.stem, **yaml.safe_load(path.read_text())}
    nested = {"budget": BudgetCfg, "evaluation": EvaluationCfg}
    for key, cls in nested.items():
        raw[key] = _build(cls, raw.get(key, {}), key)
    for key in ("variants", "prerequisites"):
        raw[key] = {name: _entry(VariantCfg, value or {}, f"{key}.{name}") for name, value in raw.get(key, {}).items()}
    if "cases" in raw:
        raw["cases"] = {name: _entry(CaseCfg, value or {}, f"cases.{name}") for name, value in raw["cases"].items()}
    study = _build(StudyCfg, raw, "study")
    study.validate()
    return study


def make_cells(study: StudyCfg) -> list[Cell]:
    """Return all cells, prerequisites first, then seed by seed so that an interrupted study is balanced."""
    cells = [Cell(name, "", seed, is_prerequisite=True) for seed in study.seeds for name in study.prerequisites]
    for seed in study.seeds:
        for case in study.cases:
            for name, variant in study.variants.items():
                needs = (f"pre-{variant.portfolio}-seed{seed}",) if variant.portfolio else ()
                cells.append(Cell(name, case, seed, needs))
    return cells


def cell_settings(
    study: StudyCfg, cell: Cell, case_overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return flags (without budget and portfolio) and overrides of a cell: study's, case's, variant's, the later wins.

    Args:
        study: The study.
        cell: The cell.
        case_overrides: Overrides of the case with its goal resolved.
    """
    variant = (study.prerequisites if cell.is_prerequisite else study.variants)[cell.variant]
    case_flags = {} if cell.is_prerequisite else study.cases[cell.case].flags
    shared = {} if cell.is_prerequisite else study.overrides
    overrides = {**shared, **case_overrides, **variant.overrides, **variant.in_case.get(cell.case, {})}
    return {**study.flags, **case_flags, **variant.flags, "seed": cell.seed}, overrides


def train_arguments(study: StudyCfg, cell: Cell, case_overrides: Mapping[str, Any], portfolio: str = "") -> list[str]:
    """Return the arguments of ``myriad train`` for a cell.

    Args:
        study: The study.
        cell: The cell.
        case_overrides: Overrides of the case with its goal resolved.
        portfolio: Bundle to start from, where the variant asks for one.
    """
    variant = (study.prerequisites if cell.is_prerequisite else study.variants)[cell.variant]
    flags, overrides = cell_settings(study, cell, case_overrides)
    if portfolio:
        flags["portfolio"] = portfolio
    if variant.untrained:
        flags["max_iterations"] = 1
    else:
        flags |= {name: value for name, value in asdict(study.budget_of(cell)).items() if value is not None}
    arguments = [text for name, value in flags.items() for text in _flag(name, value)]
    return arguments + override_arguments(overrides)


def override_arguments(overrides: Mapping[str, Any]) -> list[str]:
    """Return overrides as they are written on a command line."""
    return [f"{key}={_hydra(value)}" for key, value in overrides.items()]


def signature(settings: Any) -> str:
    """Return a fingerprint of what a result depends on; a stored result with another one is out of date."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a cell, ``None`` where it was never run."""
    path = folder / "result.json"
    return read_json(path) if path.is_file() else None


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    return [f"--{name}", str(value)]


def _hydra(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, separators=(",", ":")) if isinstance(value, list) else str(value)


def _entry(cls: type[T], raw: dict[str, Any], where: str) -> T:
    """Build a variant or a case, whose budget is a part of its own."""
    if raw.get("budget") is not None:
        raw = {**raw, "budget": _build(BudgetCfg, raw["budget"], f"{where}.budget")}
    return _build(cls, raw, where)


def _build(cls: type[T], raw: Mapping[str, Any], where: str) -> T:
    known = [f.name for f in fields(cls)]  # pyright: ignore[reportArgumentType]
    for key in raw:
        if key not in known:
            raise ConfigurationError(f"unknown key {key!r} in {where}. {nearest(key, known)}")
    try:
        return cls(**raw)
    except TypeError as error:
        raise ConfigurationError(f"{where}: {error}") from error
