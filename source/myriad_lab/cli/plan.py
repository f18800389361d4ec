"""What a training run will be, found out and checked before anything is built or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from myriad_lab.algorithms.pql_parts import check_squash
from myriad_lab.cli import algorithms
from myriad_lab.cli.compiler import check_compiler
from myriad_lab.cli.configuration import SECTIONS, compose, flatten, list_presets, load_preset, parse_overrides
from myriad_lab.cli.env_plan import ISAACLAB, EnvPlan, plan_env
from myriad_lab.cli.plan_resume import check_begun, check_kept
from myriad_lab.cli.run_cfg import RunCfg, check_choices
from myriad_lab.envs.isaaclab.cfg import CAMERAS
from myriad_lab.errors import ConfigurationError

Layer = dict[str, dict[str, Any]]
"""Section (``run``, ``env``, ``agent``) -> dotted key -> value."""
UNBOUNDED = 1_000_000
"""``max_iterations`` of a run that only a budget of env steps or seconds ends."""


@dataclass
class TrainPlan:
    """A training run whose every setting is known and checked."""

    run: RunCfg
    """The flags; ``backend``, ``num_envs``, ``num_policies``, ``max_iterations`` and ``experiment_name`` are set."""
    env: EnvPlan
    """The env."""
    agent_cfg: Any
    """Configuration of the algorithm and, as ``runner``, of the loop around it."""
    resume: Any = None
    """Bundle to go on with."""
    seed_from: Any = None
    """Bundle to start the policies from."""

    def config(self) -> dict[str, Any]:
        """Return the sections as plain containers, for the manifest and the run folder."""
        sections = {"run": asdict(self.run), "env": self.env.config, "agent": asdict(self.agent_cfg)}
        if self.env.isaaclab is None:
            return sections
        # What somebody looked through is no property of what was trained.
        lasting = {key: v for key, v in asdict(self.env.isaaclab).items() if key not in ("viz", "play_mode")}
        return sections | {"isaaclab": lasting}


def make_plan(flags: Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainPlan:
    """Find out what ``myriad train`` will do, and check it.

    Args:
        flags: Field of ``RunCfg`` -> value, for the flags that were given.
        overrides: Overrides ``env.*``, ``agent.*`` and choices of presets.

    Raises:
        ConfigurationError: Whatever is wrong with the settings, with the value, what is expected and how to mend it.
        CheckpointError: If the checkpoint or the portfolio is missing, damaged or does not fit.
    """
    parsed = parse_overrides(overrides)
    root = flags.get("runs_root") or RunCfg.runs_root
    resume = _load(flags["checkpoint"], root, flags.get("task")) if flags.get("checkpoint") else None
    layers = [*make_layers(flags, parsed.groups, resume), _sections(parsed.values)]
    run = _compose_run(layers)
    if resume is not None:
        check_begun(resume, run, flags)
    env = _plan_env(run, layers)
    _check_device(run, flags)
    run.backend = env.backend
    agent_cfg = _compose_section(algorithms.AGENTS[run.algorithm](), layers, "agent")
    seed_from = _load(run.portfolio, root) if run.portfolio else None
    _fill_sizes(run, env, seed_from)
    plan = TrainPlan(run, env, agent_cfg, resume, seed_from)
    _check_seeding(plan, flags.get("seeding"), layers[-1].get("agent", {}))
    _check(plan)
    return plan


def make_env_plan(flags: Mapping[str, Any], overrides: Sequence[str] = ()) -> tuple[RunCfg, EnvPlan]:
    """Return the flags, presets included, and the env of a new run, whatever will train in it.

    Raises:
        ConfigurationError: If there is no such task, or a field of its configuration is wrong.
    """
    parsed = parse_overrides(overrides)
    layers = [*make_layers(flags, parsed.groups), _sections(parsed.values)]
    run = _compose_run(layers)
    return run, _plan_env(run, layers)


def make_task(flags: Mapping[str, Any], overrides: Sequence[str] = ()) -> Any:
    """Return the task, not bound to envs, that a new run with these flags and overrides would train in.

    Raises:
        ConfigurationError: If there is none, or a field of its configuration is wrong.
    """
    return make_env_plan(flags, overrides)[1].task


def make_layers(flags: Mapping[str, Any], groups: Mapping[str, str], resume: Any = None) -> list[Layer]:
    """Return the layers under the overrides: presets, or what a resumed run was made with; then the flags.

    Raises:
        ConfigurationError: If a preset is unknown, or chosen for a resumed run.
    """
    given: Layer = {"run": dict(flags)}
    if resume is not None:
        for group, name in groups.items():
            raise ConfigurationError(
                f"{group}={name}: presets are chosen where a run begins, and {resume.path} goes on with its own "
                "settings; leave it out and give what shall differ as flags, env.KEY=VALUE and agent.KEY=VALUE"
            )
        config = resume.manifest.config
        kept: Layer = {section: flatten(config.get(section, {})) for section in SECTIONS}
        for name in ("checkpoint", "portfolio", "viz", "distributed"):
            kept["run"].pop(name, None)
        return [kept, given]
    experiment = _preset("experiment", groups["experiment"]) if "experiment" in groups else {}
    asked = {**experiment.get("run", {}), **flags}
    names = {
        "agent": groups.get("agent") or str(asked.get("algorithm", RunCfg.algorithm)),
        "task": groups.get("task") or _task_preset(str(asked.get("task", ""))),
        "backend": groups.get("backend") or str(asked.get("backend", "")),
        "logger": groups.get("logger") or str(asked.get("logger", "")),
    }
    layers = []
    if "agent" in groups:
        _check_agent_preset(names["agent"], str(asked.get("algorithm", RunCfg.algorithm)))
    for group, name in names.items():
        if group in groups or name in list_presets(group):
            layers.append(_preset(group, name))
    if asked.get("portfolio"):  # its heads say how many policies there are, unless somebody asks for another number
        layers = [{**layer, "run": {**layer.get("run", {}), "num_policies": None}} for layer in layers]
    return [*layers, experiment, given]


def _compose_section(defaults: Any, layers: Sequence[Layer], section: str) -> Any:
    return compose(defaults, [layer.get(section, {}) for layer in layers], section)


def _compose_run(layers: Sequence[Layer]) -> RunCfg:
    run: RunCfg = _compose_section(RunCfg(), layers, "run")
    check_choices(run)
    if not run.task:
        raise ConfigurationError("no task: give --task, see `myriad list_tasks`, or a preset with experiment=NAME")
    return run


def _preset(group: str, name: str) -> Layer:
    return {section: flatten(values or {}) for section, values in load_preset(group, name).items()}


def _check_agent_preset(name: str, algorithm: str) -> None:
    """Refuse a preset of another algorithm than the run's; presets are called ALGORITHM or ALGORITHM_VARIANT."""
    owner = name.split("_")[0]
    if name in list_presets("agent") and owner != algorithm:
        raise ConfigurationError(
            f"agent={name} belongs to --algorithm {owner}, and the algorithm here is {algorithm}; "
            f"add --algorithm {owner}, or leave the preset out"
        )


def _task_preset(task: str) -> str:
    """Return the preset named by the longest beginning of the task id, e.g. ``antmaze`` of Myriad-AntMaze-Maze."""
    own = task.lower().startswith("myriad-")  # a task of another package is known by its whole name alone
    parts = task.lower().removeprefix("myriad-").split("-") if own else [task.lower()]
    names = ["-".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in names if name in list_presets("task")), "")


def _sections(values: Mapping[str, Any]) -> Layer:
    layer: Layer = {}
    for key, value in values.items():
        section, rest = key.split(".", 1)
        layer.setdefault(section, {}).update(flatten({rest: value}))
    return layer


def _plan_env(run: RunCfg, layers: Sequence[Layer]) -> EnvPlan:
    values, isaaclab = ([layer.get(section, {}) for layer in layers] for section in ("env", "isaaclab"))
    # A film of Isaac Lab is what a viewer shows; this one needs no display.
    shown = run.viz or ("newton_gl" if run.video and run.backend == ISAACLAB else None)
    if run.viz and run.video and not set(run.viz.split(",")) & set(CAMERAS):
        raise ConfigurationError(f"--video: the viewer {run.viz} gives no pictures; add newton_gl to --viz")
    viewers = {"viz": shown} if shown else {}
    return plan_env(run.task, run.backend, values, [*isaaclab, viewers], asked=isaaclab[-1])


def _fill_sizes(run: RunCfg, env: EnvPlan, seed_from: Any) -> None:
    """Set the sizes that neither flags nor presets gave."""
    if run.num_policies is None:
        run.num_policies = 1
        if seed_from is not None and run.seeding != "best" and run.algorithm != "ppo":
            run.num_policies = int(seed_from.manifest.num_policies)
    run.num_envs = env.default_num_envs if run.num_envs is None else run.num_envs
    run.experiment_name = run.experiment_name or f"{run.task.lower()}_{run.algorithm}"
    if run.max_iterations is None:
        run.max_iterations = UNBOUNDED if run.max_env_steps or run.max_seconds else 200


def _load(selector: Any, root: str, task: str | None = None) -> Any:
    """Load a bundle; ``latest`` and ``best`` look at the runs of ``task``, of every task if it is not given."""
    from myriad_lab.portfolio.bundle import load_bundle, resolve_checkpoint

    return load_bundle(resolve_checkpoint(str(selector), root, task))


def _check(plan: TrainPlan) -> None:
    """Check what several settings decide together."""
    from myriad_lab.monitor.logger import check_package
    from myriad_lab.networks.population import check_population
    from myriad_lab.portfolio.atomic import check_writable

    run = plan.run
    assert run.num_envs is not None
    assert run.num_policies is not None
    assert run.experiment_name is not None
    assert run.max_iterations is not None
    check_package(run.logger)
    check_population(run.num_envs, run.num_policies)
    seeded = plan.seed_from is not None or plan.resume is not None  # a resumed run knows by itself
    algorithms.check(run.algorithm, plan.agent_cfg, plan.env, run.num_envs, run.num_policies, seeded)
    if run.deterministic and run.algorithm == "pql" and plan.agent_cfg.runner.mode == "parallel":
        raise ConfigurationError(
            "--deterministic with agent.runner.mode=parallel: who comes first decides what its processes learn from; "
            "take agent.runner.mode=interleaved, or leave the flag out"
        )
    if run.seeding == "halving":
        if run.algorithm != "pql":
            raise ConfigurationError(f"seeding=halving works with --algorithm pql, not with {run.algorithm}")
        known = None if run.max_iterations == UNBOUNDED else run.max_iterations
        algorithms.plan_halving(plan.agent_cfg, run.num_policies, known)
    if plan.resume is None:
        check_writable(Path(run.runs_root) / run.experiment_name)
    else:
        check_kept(plan)


def _check_device(run: RunCfg, flags: Mapping[str, Any]) -> None:
    """Refuse a device that is not there or lacks what our kernels need; says who asked for it, if not the user."""
    from myriad_lab.tasks.registry import check_device

    try:
        if check_device(run.device).type == "cuda" and run.algorithm != "ppo":
            check_compiler()
    except ConfigurationError as error:
        if flags.get("device"):
            raise
        whose = "the run to go on with" if flags.get("checkpoint") else f"the preset of backend {run.backend}"
        raise ConfigurationError(f"{error}; it comes from {whose}, --device chooses another") from error


def _check_seeding(plan: TrainPlan, seeding: str | None, asked: Mapping[str, Any]) -> None:
    """Refuse what was asked for (not what a preset says) and a portfolio, or its absence, leaves without effect."""
    run, bundle = plan.run, plan.seed_from
    if plan.resume is not None and seeding is not None:
        began = plan.resume.manifest.config.get("run", {}).get("seeding", seeding)
        if seeding != began:
            raise ConfigurationError(
                f"--seeding {seeding}: {plan.resume.path} began with --seeding {began} and goes on with its heads; "
                "leave it out"
            )
    if run.algorithm == "ppo" and plan.resume is None:  # a run that goes on knows by itself how it began
        _check_noise(bundle is not None, asked)
    if bundle is None:
        if seeding == "best" and plan.resume is None:
            raise ConfigurationError(
                "--seeding best chooses a head of a portfolio; add --portfolio RUN, or leave it out"
            )
        return
    if run.algorithm == "ppo" and seeding not in (None, "best"):
        raise ConfigurationError(
            f"--seeding {seeding}: ppo trains one policy, which starts from the best head of a portfolio; leave it out"
        )
    network = flatten(bundle.manifest.network["cfg"])
    if run.algorithm == "pql":
        check_squash(network["squash"])
    for key, value in flatten(asdict(plan.agent_cfg)).items():
        name = key.removeprefix("actor.")
        if key in asked and key.startswith(("actor.", "actor_hidden_dims")) and network.get(name) != value:
            raise ConfigurationError(
                f"agent.{key}={value}: the policies come from {bundle.path}, whose networks they keep; leave it out"
            )


def _check_noise(from_head: bool, asked: Mapping[str, Any]) -> None:
    """Refuse the setting of PPO's noise that belongs to the other kind of start."""
    key, start = ("init_std", "a head, which brings its noise") if from_head else ("min_log_std", "nothing")
    if key in asked:
        raise ConfigurationError(f"agent.{key}={asked[key]} has no effect where ppo starts from {start}; leave it out")


def given_flags(args: Any) -> dict[str, Any]:
    """Return the flags that were given, out of parsed arguments."""
    given = {spec.name: getattr(args, spec.name) for spec in fields(RunCfg)}
    return {name: value for name, value in given.items() if value is not None}
