"""A story on another backend, device or number of envs, and what follows from these; the memory that a story takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from myriad_lab.cli.story import StageCfg, StoryCfg

MINIBATCH_ROWS = 2**20
"""Most rows of a minibatch of pre-training; more envs mean more minibatches, not larger ones."""
STEPS_KEPT = 128
"""Env steps of each env that the replay memory keeps at least."""
BATCH_ROWS = 8192
"""Most rows of a batch of one head."""
WITHOUT_PORTFOLIO = ("agent.prior_fraction=0", "agent.prior_bootstrap=false", "agent.prior_weight=0")
"""Overrides of finetuning as long as there is no portfolio to follow."""


def resized(cfg: StoryCfg, given: Mapping[str, Any]) -> StoryCfg:
    """Return the story with flags for both of its trainings; the second robot is left out.

    What presets for hundreds of envs say would not do for tens of thousands: the rollout is cut into more minibatches,
    the replay memory keeps enough steps of each env, and a batch has a row for every second env of a head, up to the
    8192 rows of PQL (arXiv 2307.12983).

    Args:
        cfg: The story.
        given: Flags of ``myriad train``: ``backend``, ``device``, ``num_envs``, ``max_iterations``.

    Raises:
        ConfigurationError: If the task has no such backend, the device is not there, or the numbers do not fit.
    """
    from myriad_lab.cli.plan import make_plan

    pretrain, finetune = (replace(stage, flags={**stage.flags, **given}) for stage in (cfg.pretrain, cfg.finetune))
    plan = make_plan(pretrain.flags, [f"experiment={pretrain.preset}", *pretrain.overrides])
    if "num_envs" in given:
        num_envs, num_policies = given["num_envs"], plan.run.num_policies or 1
        best_alone = _preset(finetune, "run").get("seeding") == "best"
        envs_per_head = num_envs if best_alone else num_envs // num_policies
        minibatches = math.ceil(num_envs * plan.env.episode_steps / MINIBATCH_ROWS)
        pretrain = _at_least(pretrain, "kmyriad", {"num_minibatches": minibatches})
        rows = min(BATCH_ROWS, envs_per_head // 2)
        finetune = _at_least(finetune, "pql", {"replay_capacity": STEPS_KEPT * num_envs, "batch_size": rows})
    return replace(cfg, pretrain=pretrain, finetune=finetune, ant=StageCfg(), device=plan.run.device)


def memory_ahead(cfg: StoryCfg) -> list[str]:
    """Return what each training of a story will hold, as lines of text, before the first has begun.

    What does not fit into the last one is not to be found out hours later.
    """
    from myriad_lab.cli.memory import memory_lines
    from myriad_lab.cli.plan import make_plan

    def told(name: str, stage: StageCfg, *more: str) -> list[str]:
        plan = make_plan(stage.flags, [f"experiment={stage.preset}", *stage.overrides, *more])
        return [f"{name}: {line}" if number == 0 else line for number, line in enumerate(memory_lines(plan))]

    lines = told("pretrain", cfg.pretrain) + told("finetune", cfg.finetune, *WITHOUT_PORTFOLIO)
    return lines + (told("ant", cfg.ant) if cfg.ant.preset else [])


def _at_least(stage: StageCfg, algorithm: str, least: Mapping[str, int]) -> StageCfg:
    """Raise settings of the algorithm to ``least``, unless the story itself names them."""
    from myriad_lab.cli.algorithms import AGENTS

    known = {**asdict(AGENTS[algorithm]()), **_preset(stage, "agent")}
    words = [f"agent.{key}={value}" for key, value in least.items() if value > known[key]]
    return replace(stage, overrides=[*words, *stage.overrides])


def _preset(stage: StageCfg, section: str) -> dict[str, Any]:
    from myriad_lab.cli.configuration import load_preset

    return load_preset("experiment", stage.preset).get(section) or {}
