"""What a command knows of its env before it is built: a task of ours on any backend, or any task of Isaac Lab."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from myriad_lab.cli.configuration import compose, flatten, keys_of
from myriad_lab.envs.shard import WHOLE, Shard
from myriad_lab.errors import ConfigurationError
from myriad_lab.tasks import registry
from myriad_lab.tasks.registry import ISAACLAB

if TYPE_CHECKING:
    from myriad_lab.envs.contract import VecEnv
    from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg

FLAG_OF = {
    "scene.num_envs": "--num_envs",
    "seed": "--seed",
    "sim.device": "--device",
    "compute_final_obs": "the algorithm, which knows what it needs",
}
"""Keys of Isaac Lab that have another place here -> that place."""
Values = Mapping[str, Any]
"""Dotted key -> value."""


@dataclass
class EnvPlan:
    """An env whose every setting is known and checked."""

    task_id: str
    """Registered id, of ours or of Isaac Lab."""
    backend: str
    """Simulator."""
    values: dict[str, Any]
    """Dotted fields of the task's configuration that differ from its defaults."""
    config: dict[str, Any]
    """The whole configuration of a task of ours, ``values`` for a task of Isaac Lab; for the manifest."""
    episode_steps: int
    """Control steps until the time-out."""
    num_features: int | None
    """Numbers that the entropy is measured on; ``None`` where only the env itself can tell."""
    default_num_envs: int
    """Batch size where none is asked for."""
    task: Any = None
    """Task of ours, not bound to envs; ``None`` for a task of Isaac Lab."""
    isaaclab: IsaacLabCfg | None = None
    """Settings of backend ``isaaclab``, ``None`` on others."""

    @property
    def one_at_a_time(self) -> bool:
        """Whether the process can have no second env beside this one."""
        return self.backend == ISAACLAB

    def make(
        self,
        num_envs: int,
        *,
        device: str,
        seed: int,
        final_obs: bool = True,
        shard: Shard = WHOLE,
        num_threads: int | None = None,
    ) -> VecEnv:
        """Build the env; arguments as for ``registry.make_env``."""
        return registry.make_env(
            self.task_id,
            backend=self.backend,
            num_envs=num_envs,
            device=device,
            seed=seed,
            final_obs=final_obs,
            overrides=self.values,
            isaaclab=self.isaaclab,
            shard=shard,
            num_threads=num_threads,
        )


def plan_env(
    task_id: str,
    backend: str | None,
    layers: Sequence[Values],
    isaaclab: Sequence[Values] = (),
    asked: Values | None = None,
) -> EnvPlan:
    """Find out which env it will be, and check its settings.

    Args:
        task_id: Registered id; ids of Isaac Lab need backend ``isaaclab``.
        backend: Simulator; the first one of the task where ``None``.
        layers: Values of ``env.*``, later ones win.
        isaaclab: Values of ``isaaclab.*``, later ones win.
        asked: Those of ``isaaclab.*`` that the user asked for.

    Raises:
        ConfigurationError: An unknown task, backend or field, or a value that the task refuses.
    """
    if backend == ISAACLAB:
        taken = next((key for layer in layers for key in layer if key in FLAG_OF), None)
        if taken is not None:
            raise ConfigurationError(f"env.{taken} is set by {FLAG_OF[taken]}; leave it out")
    elif asked:
        key, value = next(iter(asked.items()))
        raise ConfigurationError(f"isaaclab.{key}={value} has no effect without --backend isaaclab; leave it out")
    if not registry.is_registered(task_id):
        if backend == ISAACLAB:
            return _plan_foreign(task_id, layers, isaaclab)
        if task_id.startswith("Isaac"):
            raise ConfigurationError(f"{task_id} is a task of Isaac Lab; add --backend isaaclab")
    entry = registry.get(task_id)
    backend = entry.backends[0] if backend is None else backend
    if backend not in entry.backends:
        known = " and ".join(entry.backends)
        raise ConfigurationError(f"task {entry.id} has no backend {backend!r}; it runs on {known}")
    if backend == ISAACLAB:
        return _plan_ours_in_isaaclab(entry, layers, isaaclab)
    return _plan_ours(entry, backend, layers)


def own_keys(task_id: str) -> list[str]:
    """Return the dotted keys of the configuration of a task of ours, none for a task of Isaac Lab."""
    return keys_of(registry.get(task_id).cfg) if registry.is_registered(task_id) else []


def _plan_ours(entry: Any, backend: str, layers: Sequence[Values]) -> EnvPlan:
    cfg = compose(entry.cfg, layers, "env")
    task = entry.make_task(cfg)  # refuses what the fields alone cannot tell, e.g. a goal inside a wall
    before, after = flatten(asdict(entry.cfg)), flatten(asdict(cfg))
    return EnvPlan(
        task_id=entry.id,
        backend=backend,
        values={key: value for key, value in after.items() if value != before.get(key)},
        config=asdict(cfg),
        episode_steps=int(task.cfg.episode_steps),
        num_features=sum(math.prod(term.shape) for term in task.observation_terms()["features"]),
        default_num_envs=entry.default_num_envs,
        task=task,
    )


def _plan_ours_in_isaaclab(entry: Any, layers: Sequence[Values], isaaclab: Sequence[Values]) -> EnvPlan:
    """Return the plan of a task of ours: keys that it does not know are those of Isaac Lab's configuration."""
    known = own_keys(entry.id)

    def is_own(key: str) -> bool:
        return key in known or any(name.startswith(f"{key}.") for name in known)

    # ``env.task.KEY`` is how Isaac Lab's own commands call a field of the task.
    layers = [{key.removeprefix("task."): value for key, value in layer.items()} for layer in layers]
    own = [{key: value for key, value in layer.items() if is_own(key)} for layer in layers]
    plan = _plan_ours(entry, ISAACLAB, own)
    for layer in layers:
        foreign = {key: value for key, value in layer.items() if not is_own(key)}
        plan.values |= foreign
        plan.config |= foreign
    plan.isaaclab = _isaaclab_cfg(isaaclab)
    if plan.isaaclab.features:
        raise ConfigurationError(
            f"isaaclab.features={plan.isaaclab.features}: {entry.id} has features of its own, by which coverage and "
            "maps go too; leave it out"
        )
    from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg

    for key in ("action_bound", "joint_limit_actions"):
        if (value := getattr(plan.isaaclab, key)) != getattr(IsaacLabCfg, key):
            raise ConfigurationError(
                f"isaaclab.{key}={value}: the robot of {entry.id} says what its actions mean; leave it out"
            )
    _resolve(plan)
    return plan


def _plan_foreign(task_id: str, layers: Sequence[Values], isaaclab: Sequence[Values]) -> EnvPlan:
    from myriad_lab.envs.isaaclab.features import known_size

    cfg = _isaaclab_cfg(isaaclab)
    values = {key: value for layer in layers for key, value in layer.items()}
    plan = EnvPlan(task_id, ISAACLAB, values, dict(values), 0, None, 0, isaaclab=cfg)
    env_cfg = _resolve(plan)
    if hasattr(env_cfg, "possible_agents"):
        raise ConfigurationError(
            f"{task_id} has several agents ({', '.join(env_cfg.possible_agents)}), and no algorithm here trains them "
            "yet; in Python, make_isaaclab_env gives an env that keeps the agents apart"
        )
    sizes = [known_size(text) for text in cfg.features or ()]
    plan.num_features = None if None in sizes or not sizes else sum(size for size in sizes if size)
    plan.episode_steps = math.ceil(env_cfg.episode_length_s / (env_cfg.sim.dt * env_cfg.decimation))
    plan.default_num_envs = int(env_cfg.scene.num_envs)
    return plan


def _isaaclab_cfg(layers: Sequence[Values]) -> IsaacLabCfg:
    from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg

    cfg: IsaacLabCfg = compose(IsaacLabCfg(), layers, ISAACLAB)
    cfg.validate()
    return cfg


def _resolve(plan: EnvPlan) -> Any:
    """Return Isaac Lab's own configuration of the env, which refuses what it does not know."""
    from myriad_lab.tasks.isaaclab_backend import resolve

    assert plan.isaaclab is not None
    return resolve(plan.task_id, plan.isaaclab, plan.values)
