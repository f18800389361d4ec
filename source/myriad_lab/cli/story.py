"""``myriad story``: pre-train, finetune, evaluate, report, export and verify, each stage once (``make run``)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myriad_lab.cli.arguments import non_empty, positive_int, refuse_overrides
from myriad_lab.errors import ConfigurationError

if TYPE_CHECKING:
    from myriad_lab.cli.story_state import StoryState
    from myriad_lab.portfolio.bundle import Bundle


STAGES = ("pretrain", "explorers", "goal", "finetune", "specialists", "video", "report", "export")
ANT_STAGES = ("ant", "ant video")
COVERAGE = "Population/coverage"
SIZES = ("backend", "device", "num_envs", "max_iterations")
"""Flags of ``myriad train`` that the story passes on to its trainings."""


@dataclass
class StageCfg:
    """One training of the story."""

    preset: str = ""
    """Preset of the group ``experiment``."""
    flags: dict[str, Any] = field(default_factory=dict)
    """Flags of ``myriad train`` on top of it."""
    overrides: list[str] = field(default_factory=list)
    """Overrides on top of it."""


@dataclass
class StoryCfg:
    """A story; its presets are ``config/story/``."""

    pretrain: StageCfg = field(default_factory=StageCfg)
    """Reward-free pre-training of the population."""
    finetune: StageCfg = field(default_factory=StageCfg)
    """Finetuning of the portfolio, or of its best head, for a far goal."""
    ant: StageCfg = field(default_factory=StageCfg)
    """Pre-training of a second robot, shown on video; none without a preset."""
    goal_percentile: float = 80.0
    """Percentile of geodesic distance among the reachable cells at which the goal is; farther if chance meets it."""
    random_episodes: int = 1000
    """Episodes of random actions, none of which may meet the goal."""
    evaluation_episodes: int = 256
    """Deterministic episodes per head."""
    evaluation_pool: int = 16_384
    """Particles in the pool of the entropy estimates."""
    device: str = "cpu"
    """Where everything but the exported files is computed."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a value is out of range."""
        if not 0.0 < self.goal_percentile <= 100.0:
            raise ConfigurationError(f"goal_percentile={self.goal_percentile}; expected a number in (0, 100]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``myriad story``."""
    parser.add_argument("name", nargs="?", default="point", help="point, ant or quick (default: point)")
    parser.add_argument(
        "--runs_root", type=non_empty, default="runs", help="where run folders are made (default: runs)"
    )
    parser.add_argument("--fresh", action="store_true", help="put what was done aside and start over")
    parser.add_argument("--backend", type=non_empty, help="simulator of both trainings, e.g. mujoco_warp")
    parser.add_argument("--device", type=non_empty, help="where everything runs (default: that of the backend)")
    parser.add_argument("--num_envs", type=positive_int, help="envs of both trainings, e.g. 65536")
    parser.add_argument("--max_iterations", type=positive_int, help="iterations of each training, to see that it works")


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Tell the story; returns 130 where a signal interrupted it."""
    from myriad_lab.cli.story_sizes import resized
    from myriad_lab.cli.story_state import StoryInterruptedError, put_aside

    refuse_overrides("story", overrides)
    given = {name: value for name in SIZES if (value := getattr(args, name)) is not None}
    cfg = load_story(args.name)
    if given:
        cfg = resized(cfg, given)
    root = Path(args.runs_root) / "_".join(["story", args.name, *map(str, given.values())]).replace(":", "")
    if args.fresh:
        put_aside(root)
    try:
        lines = story(cfg, root)
    except StoryInterruptedError as interrupted:
        print(f"interrupted; what was done is saved, the same command goes on ({interrupted})")
        return 130
    print("\n" + "\n".join(lines))
    return 0


def load_story(name: str) -> StoryCfg:
    """Return the story ``config/story/<name>.yaml``.

    Raises:
        ConfigurationError: If there is none of that name, it has an unknown key, or a value is out of range.
    """
    from myriad_lab.cli.configuration import compose, read_preset

    cfg: StoryCfg = compose(StoryCfg(), [read_preset("story", name)], f"story/{name}")
    cfg.validate()
    return cfg


def story(cfg: StoryCfg, root: Path) -> list[str]:
    """Do the stages that are not done yet and return the summary as lines of text."""
    from myriad_lab.cli.story_sizes import memory_ahead
    from myriad_lab.cli.story_state import StoryState
    from myriad_lab.cli.train import settle_torch

    state = StoryState(root, [*STAGES, *(ANT_STAGES if cfg.ant.preset else ())])
    settle_torch()
    if not state.begun:
        print("\n".join(memory_ahead(cfg)), flush=True)
    pretrained = _train(state, "pretrain", "pre-train a portfolio of explorers, without reward", cfg.pretrain)
    explorers = _evaluate(state, "explorers", "measure what the portfolio covers", pretrained, cfg)
    seeded = {"portfolio": pretrained["checkpoint"]}
    goal = _goal(state, cfg, seeded)
    aim = f"env.goal=[{goal['goal'][0]},{goal['goal'][1]}]"
    finetuned = _train(state, "finetune", f"finetune for the goal {tuple(goal['goal'])}", cfg.finetune, seeded, [aim])
    specialists = _evaluate(state, "specialists", "measure success", finetuned, cfg)
    videos = _video(state, [pretrained, finetuned], cfg.device)
    pages = _report(state, [pretrained, finetuned], [explorers, specialists, videos])
    exported = _export(state, finetuned, specialists)
    ant = _ant(state, cfg.ant) if cfg.ant.preset else None
    return summary(state, pretrained, explorers, goal, finetuned, specialists, pages, videos, exported, ant)


def summary(
    state: StoryState,
    pretrained: dict[str, Any],
    explorers: dict[str, Any],
    goal: dict[str, Any],
    finetuned: dict[str, Any],
    specialists: dict[str, Any],
    pages: dict[str, Any],
    videos: dict[str, Any],
    exported: dict[str, Any],
    ant: dict[str, Any] | None,
) -> list[str]:
    """Return the numbers and where everything is."""
    spread, best = explorers["portfolio"], specialists["best"]
    lines = [
        f"The story took {state.seconds() / 60:.1f} minutes.",
        "",
        f"{pretrained['task']}, {len(explorers['heads'])} policies, {pretrained['env_steps']:,} env steps",
        f"  coverage of the reachable cells, one batch   {pretrained['coverage_before']:.2f} before, "
        f"{pretrained['coverage_after']:.2f} after pre-training",
        f"  diversity                                    {_interval(spread['diversity'])} nats, "
        f"{_interval(spread['diversity_normalised'])} of the most possible",
        f"  entropy of the pool                          {_interval(spread['entropy_pool'])} nats",
        f"{finetuned['task']}, goal at {goal['goal']} m: percentile {goal['percentile']:.0f} of geodesic distance,",
        f"  met by none of {goal['random_episodes']} episodes of random actions",
        f"  success of head {best['head']}, chosen on other episodes    {_interval(best['success'])}",
        f"  success, mean of all heads                   {_interval(specialists['portfolio']['success'])}",
        f"  ONNX against torch                           largest difference {exported['error']:.2g} "
        f"on {exported['rows']} observations",
    ]
    shown = [*videos["videos"]]
    reports = [*pages["pages"]]
    if ant is not None:
        lines += [
            f"{ant['task']}, {ant['num_policies']} policies, {ant['env_steps']:,} env steps",
            f"  coverage of the reachable cells, one batch   {ant['coverage_before']:.3f} before, "
            f"{ant['coverage_after']:.3f} after",
        ]
        shown += ant["videos"]
        reports += ant["pages"]
    places = [("report", reports), ("video", shown), ("ONNX", [exported["onnx"]])]
    return [*lines, "", *[f"{kind:<7} {path}" for kind, paths in places for path in paths]]


def _train(
    state: StoryState,
    name: str,
    title: str,
    cfg: StageCfg,
    flags: dict[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Train, or go on with a training that was interrupted."""
    from myriad_lab.cli.configuration import load_preset
    from myriad_lab.cli.story_state import signature

    given = {**cfg.flags, **(flags or {})}
    words = [f"experiment={cfg.preset}", *cfg.overrides, *overrides]
    inputs = {"preset": load_preset("experiment", cfg.preset), "flags": given, "overrides": words}
    run_name = f"{name}-{signature(inputs)}"

    def work() -> dict[str, Any]:
        place = {"experiment_name": state.root.name, "runs_root": str(state.root.parent), "run_name": run_name}
        return _do_training(state, run_name, {**given, **place}, words)

    return state.stage(name, title, inputs, work)


def _do_training(state: StoryState, run_name: str, flags: dict[str, Any], words: list[str]) -> dict[str, Any]:
    from myriad_lab.cli.story_state import StoryInterruptedError
    from myriad_lab.cli.train import train
    from myriad_lab.portfolio.manifest import Manifest
    from myriad_lab.portfolio.run_folder import RunFolder

    begun = state.run_of(run_name)
    if begun is not None:
        print(f"going on with {begun.path}", flush=True)
        flags, words = {"checkpoint": str(begun.path), "runs_root": flags["runs_root"]}, []
    result = train(flags, words)
    if result.interrupted:
        raise StoryInterruptedError(str(result.folder))
    manifest = Manifest.load(result.checkpoint)
    coverages = [row[COVERAGE] for row in RunFolder(result.folder).read_metrics() if COVERAGE in row]
    return {
        "folder": str(result.folder.resolve()),
        "checkpoint": str(result.checkpoint.resolve()),
        "task": manifest.task,
        "num_policies": manifest.num_policies,
        "env_steps": result.env_steps,
        "wall_time": result.wall_time,
        "coverage_before": coverages[0] if coverages else None,
        "coverage_after": coverages[-1] if coverages else None,
    }


def _evaluate(state: StoryState, name: str, title: str, trained: dict[str, Any], cfg: StoryCfg) -> dict[str, Any]:
    from myriad_lab.cli.evaluate import EvaluateCfg, evaluate

    settings: dict[str, Any] = {"episodes": cfg.evaluation_episodes, "pool_size": cfg.evaluation_pool}
    settings["device"] = cfg.device

    def work() -> dict[str, Any]:
        result, _ = evaluate(_open(trained), EvaluateCfg(**settings))
        best = result["held_out_best"] or result["best_head"]
        return {"portfolio": result["portfolio"], "best": best, "heads": [row["head"] for row in result["heads"]]}

    return state.stage(name, title, {"trained": trained, **settings}, work)


def _goal(state: StoryState, cfg: StoryCfg, seeded: dict[str, Any]) -> dict[str, Any]:
    from myriad_lab.cli.goal import choose_goal
    from myriad_lab.cli.plan import make_plan

    stage = cfg.finetune
    plan = make_plan({**stage.flags, **seeded}, [f"experiment={stage.preset}", *stage.overrides])
    asked = {"percentile": cfg.goal_percentile, "episodes": cfg.random_episodes}
    inputs = {"task": plan.run.task, "backend": plan.run.backend, "values": plan.env.values, **asked}

    def work() -> dict[str, Any]:
        return asdict(choose_goal(plan, **asked))

    return state.stage("goal", "choose a far goal that chance does not meet", inputs, work)


def _video(state: StoryState, runs: Sequence[dict[str, Any]], device: str) -> dict[str, Any]:
    def work() -> dict[str, Any]:
        return {"videos": [_record(trained, device) for trained in runs]}

    return state.stage("video", "record videos", {"runs": list(runs)}, work)


def _record(trained: dict[str, Any], device: str = "cpu") -> str:
    from myriad_lab.cli.play import PlayCfg, record

    return str(record(_open(trained), PlayCfg(device=device)))


def _ant(state: StoryState, cfg: StageCfg) -> dict[str, Any]:
    from myriad_lab.cli.report import report

    trained = _train(state, "ant", "pre-train ants in the maze", cfg)

    def work() -> dict[str, Any]:
        video = _record(trained)
        return {"videos": [video], "pages": [str(report(trained["folder"]))]}

    shown = state.stage("ant video", "show the ants", {"trained": trained}, work)
    return {**trained, **shown}


def _report(state: StoryState, runs: Sequence[dict[str, Any]], inputs: Sequence[Any]) -> dict[str, Any]:
    from myriad_lab.cli.report import report

    def work() -> dict[str, Any]:
        return {"pages": [str(report(trained["folder"])) for trained in runs]}

    return state.stage("report", "write the reports", {"runs": list(runs), "inputs": list(inputs)}, work)


def _export(state: StoryState, trained: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    from myriad_lab.cli.export import export, summary

    head = str(measured["best"]["head"])

    def work() -> dict[str, Any]:
        exported = export(_open(trained), head)
        print("\n".join(summary(exported)))
        parity = exported.parity
        return {"onnx": str(exported.folder / "policy.onnx"), "error": parity.onnx_max_abs_error, "rows": parity.rows}

    return state.stage("export", f"export head {head} and verify the files", {"trained": trained, "head": head}, work)


def _open(trained: dict[str, Any]) -> Bundle:
    from myriad_lab.portfolio.bundle import load_bundle

    return load_bundle(trained["checkpoint"])


def _interval(value: Any) -> str:
    """Return a mean with its interval, or a plain number."""
    if isinstance(value, dict):
        return f"{value['mean']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"
    return f"{value:.3g}"
