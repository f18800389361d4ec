"""Which observations Isaac Lab cannot give at the end of an episode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from myriad_lab.errors import ConfigurationError


def check_final_obs(task_id: str, env_cfg: Any) -> None:
    """Refuse a manager-based task whose final observations would be wrong.

    ``compute_final_obs`` reads the observation terms once more before the reset, without advancing histories and
    delays (``ManagerBasedRLEnv.step``, ``ObservationManager.compute`` of Isaac Lab 3.0.0): a term with a history or a
    delay then repeats the step before, the last frame of the episode is missing. Modifiers with a memory (filters,
    integrators) advance twice on such steps, for every env.

    Raises:
        ConfigurationError: Naming the terms and what to set.
    """
    stale, twice = [], []
    for group, term, cfg, history in _terms(env_cfg):
        if history or cfg.delay_max_lag:
            stale.append(f"{group}.{term}")
        if any(_has_memory(modifier) for modifier in cfg.modifiers or ()):
            twice.append(f"{group}.{term}")
    if stale:
        raise ConfigurationError(
            f"{task_id}: the final observations of {', '.join(stale)} would repeat the step before, since Isaac Lab "
            "does not advance histories and delays for them; set env.observations.GROUP.history_length=0 of each of "
            "these groups and, of each term with a delay, delay_max_lag=0"
        )
    if twice:
        raise ConfigurationError(
            f"{task_id}: the modifiers of {', '.join(twice)} have a memory, which Isaac Lab advances twice on every "
            "step with a final observation; leave them out with env.observations.GROUP.TERM.modifiers=null"
        )


def _terms(env_cfg: Any) -> Iterator[tuple[str, str, Any, int]]:
    """Yield group, name, configuration and history of every observation term; a direct task has none."""
    from isaaclab.managers import ObservationGroupCfg, ObservationTermCfg

    observations = getattr(env_cfg, "observations", None)
    groups = {} if observations is None else vars(observations)
    for group, group_cfg in groups.items():
        if not isinstance(group_cfg, ObservationGroupCfg):
            continue
        shared = group_cfg.history_length  # where it is set, it replaces that of the terms
        for term, cfg in vars(group_cfg).items():
            if isinstance(cfg, ObservationTermCfg):
                yield group, term, cfg, cfg.history_length if shared is None else shared


def _has_memory(modifier: Any) -> bool:
    """Return whether a modifier is a class, whose instances remember, and no function."""
    if isinstance(modifier.func, str):
        return modifier.func.split(":")[-1][:1].isupper()
    return isinstance(modifier.func, type)
