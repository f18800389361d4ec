"""What a run that goes on may not change: refused before anything is built or written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myriad_lab.cli.configuration import flatten
from myriad_lab.cli.env_plan import ISAACLAB
from myriad_lab.cli.run_cfg import RunCfg
from myriad_lab.errors import CheckpointError, ConfigurationError

if TYPE_CHECKING:
    from myriad_lab.cli.plan import TrainPlan


def check_begun(resume: Any, run: RunCfg, flags: Mapping[str, Any]) -> None:
    """Refuse flags that say otherwise than how the run of a bundle began.

    Args:
        resume: The bundle to go on with.
        run: The flags of the run, those of the bundle included.
        flags: Those that were given.

    Raises:
        CheckpointError: For another task, backend, algorithm, number of policies or kind of device.
        ConfigurationError: For another seed, place or name.
    """
    _check_same(resume, run)
    _check_place(resume, flags)
    _check_device_kind(resume, run)


def check_kept(plan: TrainPlan) -> None:
    """Refuse another map or goal than that of the resumed run, and other networks than those it keeps.

    Raises:
        ConfigurationError: Naming the setting.
    """
    config, ours = plan.resume.manifest.config, plan.config()
    for section, starts, what in (
        ("agent", ("actor.", "actor_hidden_dims", "critic.", "critic_hidden_dims", "activation"), "keeps its networks"),
        ("agent", ("normalize_returns",), "critics that learnt their values so"),
        ("env", ("arena", "goal"), "keeps its map and its goal; --portfolio starts another run from it"),
        ("isaaclab", ("physics", "presets", "features", "action_bound"), "goes on with its simulator and features"),
    ):
        kept = flatten(config.get(section, {}))
        for key, value in flatten(ours.get(section, {})).items():
            if key.startswith(starts) and kept.get(key, value) != value:
                raise ConfigurationError(
                    f"{section}.{key}={value}: the run to go on with has {kept[key]} and {what}; leave it out"
                )


def _check_same(resume: Any, run: RunCfg) -> None:
    """Refuse to go on with another task, algorithm or number of policies, whose other settings would not fit either."""
    manifest = resume.manifest
    # successive halving leaves fewer heads in the bundle than the run began with
    began = manifest.config.get("run", {}).get("num_policies", manifest.num_policies)
    same = (
        ("task", manifest.task),
        ("backend", manifest.backend),
        ("algorithm", manifest.algorithm),
        ("num_policies", began),
    )
    for name, ours in same:
        if getattr(run, name) not in (None, ours):
            raise CheckpointError(
                f"{resume.path} cannot be resumed with another {name}: {ours} in the bundle, {getattr(run, name)} "
                f"asked for; leave --{name} out to go on with it, or start from it with --portfolio"
            )


def _check_place(resume: Any, flags: Mapping[str, Any]) -> None:
    """Refuse another seed, and another place or name for a run that goes on in its own folder."""
    settings = resume.manifest.config.get("run", {})
    given = {"seed": (flags.get("seed"), settings.get("seed"))}
    if resume.path.parent.name == "checkpoints":
        given |= {name: (flags.get(name), settings.get(name)) for name in ("experiment_name", "run_name")}
        root = flags.get("runs_root")
        if root is not None and Path(root).resolve() not in resume.path.resolve().parents:
            given["runs_root"] = (root, settings.get("runs_root"))
    for name, (asked, kept) in given.items():
        if asked is not None and kept is not None and asked != kept:
            raise ConfigurationError(
                f"--{name} {asked}: {resume.path} goes on where and as it began, with {name}={kept!r}; leave it out"
            )


def _check_device_kind(resume: Any, run: RunCfg) -> None:
    """Refuse to go on on another kind of device, whose random numbers are others."""
    began = resume.manifest.config.get("run", {}).get("device", run.device)
    # the one run without generators of its own, over an env without a snapshot
    free = run.algorithm == "ppo" and run.backend == ISAACLAB
    if run.device.partition(":")[0] != began.partition(":")[0] and not free:
        raise CheckpointError(
            f"--device {run.device}: {resume.path} was trained on {began}, and its generators of random numbers cannot "
            "go on on another kind of device; leave it out, or start from the bundle with --portfolio"
        )
