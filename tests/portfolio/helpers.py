"""Small populations, specs and manifests for the tests of bundles."""

from __future__ import annotations

from typing import Any

import torch

from myriad_lab.envs.contract import ActionSpec, EnvSpec, TermSpec
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from myriad_lab.portfolio.bundle import describe_network
from myriad_lab.portfolio.manifest import Manifest

TASK = "Myriad-PointMaze-Maze"


def make_spec(joint_vel: int = 3, scale: float = 1.0, steps: int = 200, task: str = TASK) -> EnvSpec:
    policy = (TermSpec("base_pos", (2,), "m"), TermSpec("joint_vel", (joint_vel,), "rad/s"))
    return EnvSpec(
        task=task,
        observations={"policy": policy, "features": (TermSpec("base_pos", (2,), "m"),)},
        action=ActionSpec(("x", "y"), "velocity", "m/s", (scale, scale), (0.0, 0.0)),
        control_period=0.1,
        max_episode_length=steps,
    )


def make_actor(num_policies: int = 4, seed: int = 0, **cfg: Any) -> PopulationActor:
    settings = {"trunk": [16, 8], "adapter_dim": 8, "adapter_rank": 2, "obs_normalization": True, **cfg}
    generator = torch.Generator().manual_seed(seed)
    actor = PopulationActor(5, 2, num_policies, PopulationActorCfg(**settings), generator=generator)
    if settings["obs_normalization"]:
        actor.normalizer.update(torch.randn(64, 5, generator=generator) * 3.0 + 1.0)
    return actor.eval()


def make_manifest(actor: PopulationActor, iteration: int = 1, **changes: Any) -> Manifest:
    settings: dict[str, Any] = {
        "task": TASK,
        "algorithm": "kmyriad",
        "spec": make_spec().to_dict(),
        "network": describe_network(actor),
        "num_policies": actor.num_policies,
        "num_envs": 8,
        "iteration": iteration,
        "best_metric": {"name": "Population/coverage", "mode": "max"},
        **changes,
    }
    return Manifest(**settings)
