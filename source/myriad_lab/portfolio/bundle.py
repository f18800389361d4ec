"""Portfolio bundles: save and load a population with everything needed to use it or to go on training it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from myriad_lab.errors import CheckpointError, ConfigurationError, nearest
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from myriad_lab.portfolio.atomic import recover, write_folder
from myriad_lab.portfolio.compatibility import check_resume, check_seed
from myriad_lab.portfolio.manifest import Manifest
from myriad_lab.portfolio.plain_state import plain_state
from myriad_lab.portfolio.run_folder import resolve_checkpoint

__all__ = [
    "Bundle",
    "check_resume",
    "check_seed",
    "describe_network",
    "load_bundle",
    "resolve_checkpoint",
    "save_bundle",
    "seed_actor",
    "seed_heads",
]

WEIGHTS = "weights.pt"
TRAIN_STATE = "train_state.pt"
REPLAY = "replay/replay.pt"
SEEDINGS = ("all", "best", "halving")
Seeding = Literal["all", "best", "halving"]


@dataclass
class Bundle:
    """A loaded portfolio; the training state stays on the disk until it is asked for."""

    path: Path
    """Folder of the bundle."""
    manifest: Manifest
    """What it holds and how it was made."""
    actor: PopulationActor
    """The population, in evaluation mode."""

    def load_train_state(self) -> dict[str, Any]:
        """Return optimisers, counters, generators and env state as they were saved.

        Raises:
            CheckpointError: If the bundle was saved without a training state, or the file is damaged.
        """
        return _load_tensors(
            self.path, TRAIN_STATE, self.manifest, "resume from a bundle that has one, or seed from it"
        )

    def load_replay(self) -> dict[str, Any]:
        """Return the saved replay buffer.

        Raises:
            CheckpointError: If the bundle was saved without one, or the file is damaged.
        """
        return _load_tensors(self.path, REPLAY, self.manifest, "save with the replay buffer to resume with it")

    @property
    def has_replay(self) -> bool:
        """Whether a replay buffer was saved too."""
        return REPLAY in self.manifest.files


def describe_network(actor: PopulationActor) -> dict[str, Any]:
    """Return the ``network`` entry of a manifest, from which ``load_bundle`` rebuilds the actor."""
    cfg = asdict(actor.cfg) if is_dataclass(actor.cfg) else dict(actor.cfg)
    sizes = {name: int(getattr(actor, name)) for name in ("num_obs", "num_actions", "num_policies")}
    return {"class": type(actor).__name__, "cfg": cfg, **sizes}


def save_bundle(
    path: str | Path,
    actor: PopulationActor,
    manifest: Manifest,
    train_state: Mapping[str, Any] | None = None,
    replay: Mapping[str, Any] | None = None,
) -> Path:
    """Write a bundle; whatever happens meanwhile, ``path`` is the old bundle, the new one, or not there.

    Args:
        path: Folder of the bundle, replaced if it exists.
        actor: The population.
        manifest: Written with the network's description and the file sizes filled in.
        train_state: Tensors, arrays and plain containers; needed to resume.
        replay: The same for the replay buffer.

    Raises:
        CheckpointError: If a weight is not finite, if a state holds something else than tensors, arrays and plain
            containers, or if the disk is full.
    """
    path = Path(path)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in actor.state_dict().items()}
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path} not written: {name} holds NaN or infinity; the previous checkpoint stands")
    parts = {WEIGHTS: plain_state(weights, "weights")}
    if train_state is not None:
        parts[TRAIN_STATE] = plain_state(train_state)
    if replay is not None:
        parts[REPLAY] = plain_state(replay, "replay")

    def fill(folder: Path) -> None:
        for name, state in parts.items():
            (folder / name).parent.mkdir(exist_ok=True)
            torch.save(state, folder / name)
        sizes = {name: (folder / name).stat().st_size for name in parts}
        replace(manifest, network=describe_network(actor), num_policies=actor.num_policies, files=sizes).save(folder)

    try:
        write_folder(path, fill)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise CheckpointError(f"{path} not written: {error}; the previous checkpoint stands") from error
    return path


def load_bundle(path: str | Path, device: torch.device | str = "cpu") -> Bundle:
    """Load a bundle folder.

    Raises:
        CheckpointError: If it is missing, truncated, of a newer schema or of an unknown network; names the file.
    """
    path = Path(path)
    recover(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist; expected the folder of a bundle, with manifest.json inside")
    manifest = Manifest.load(path)
    weights = _load_tensors(path, WEIGHTS, manifest, "the bundle is damaged")
    actor = _build_actor(manifest, path)
    try:
        actor.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path / WEIGHTS} does not fit the network of its manifest: {error}") from error
    return Bundle(path, manifest, actor.to(device).eval())


def seed_heads(
    available: int, num_policies: int, seeding: Seeding = "all", scores: Sequence[float] | None = None
) -> list[int]:
    """Return which head of a portfolio starts each of ``num_policies`` new policies.

    ``all`` and ``halving`` take every head equally often, or the ``num_policies`` best where there are fewer places
    than heads; ``best`` takes the best head everywhere.

    Args:
        available: Heads in the portfolio.
        num_policies: Policies to seed.
        seeding: ``all``, ``best`` or ``halving``.
        scores: One per head, larger is better, e.g. the zero-shot returns.

    Raises:
        ConfigurationError: If the seeding is unknown, scores are missing or do not fit, or the numbers do not divide.
    """
    if seeding not in SEEDINGS:
        raise ConfigurationError(f"seeding={seeding!r} is unknown. {nearest(seeding, SEEDINGS)}")
    if scores is not None and len(scores) != available:
        raise ConfigurationError(f"{len(scores)} scores for {available} heads; give one per head")
    ranked = None if scores is None else sorted(range(available), key=lambda i: -scores[i])
    if seeding == "best":
        if ranked is None:
            raise ConfigurationError("seeding='best' needs a score per head; evaluate the portfolio first")
        return [ranked[0]] * num_policies
    if num_policies % available == 0:
        return [i // (num_policies // available) for i in range(num_policies)]
    if num_policies < available:
        if ranked is None:
            raise ConfigurationError(
                f"num_policies={num_policies} is less than the {available} heads of the portfolio; "
                "give a score per head, or take all of them"
            )
        return sorted(ranked[:num_policies])
    raise ConfigurationError(
        f"num_policies={num_policies} is not a multiple of the {available} heads of the portfolio; "
        f"use {available * round(num_policies / available)}"
    )


def seed_actor(
    bundle: Bundle, num_policies: int, seeding: Seeding = "all", scores: Sequence[float] | None = None
) -> PopulationActor:
    """Return a population of ``num_policies`` made of the heads that ``seed_heads`` chooses."""
    return bundle.actor.select(seed_heads(bundle.actor.num_policies, num_policies, seeding, scores))


def _build_actor(manifest: Manifest, path: Path) -> PopulationActor:
    network = manifest.network
    builders: dict[str, Callable[..., PopulationActor]] = {PopulationActor.__name__: PopulationActor}
    try:
        builder = builders[network["class"]]
        cfg = PopulationActorCfg(**network["cfg"])
        # The initial weights are overwritten; drawing them must not move the global generator.
        with torch.random.fork_rng(devices=[]):
            return builder(network["num_obs"], network["num_actions"], network["num_policies"], cfg)
    except (KeyError, TypeError, ConfigurationError) as error:
        raise CheckpointError(
            f"{path / 'manifest.json'} describes a network that this Myriad Lab cannot build: {error}"
        ) from error


def _load_tensors(path: Path, name: str, manifest: Manifest, mend: str) -> dict[str, Any]:
    file = path / name
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; {mend}")
    expected = manifest.files.get(name)
    actual = file.stat().st_size
    if expected is not None and actual != expected:
        raise CheckpointError(f"{file} is truncated: {actual} bytes, {expected} expected; take another checkpoint")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError or zip errors for damaged files
        raise CheckpointError(f"{file} is damaged ({type(error).__name__}); take another checkpoint") from error
