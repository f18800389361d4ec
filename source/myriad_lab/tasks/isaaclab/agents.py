"""RSL-RL's PPO for our tasks: the configuration that Isaac Lab's ``train --rl_library rsl_rl`` takes."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from isaaclab.utils import configclass
from isaaclab_rl.rsl_rl import RslRlMLPModelCfg, RslRlOnPolicyRunnerCfg, RslRlPpoAlgorithmCfg

from myriad_lab.tasks.isaaclab import cfg_name, task_ids
from myriad_lab.tasks.registry import get


@configclass
class _RunnerCfg(RslRlOnPolicyRunnerCfg):
    save_interval = 50
    experiment_name = "myriad"
    obs_groups: dict[str, list[str]] = field(default_factory=lambda: {"actor": ["policy"], "critic": ["critic"]})


@configclass
class PpoRunnerCfg(_RunnerCfg):
    """PPO as it is commonly set for legged robots; actions outside [-1, 1] are clamped by the env."""

    num_steps_per_env = 32
    max_iterations = 1000
    actor = RslRlMLPModelCfg(
        hidden_dims=[256, 128, 64],
        activation="elu",
        obs_normalization=True,
        distribution_cfg=RslRlMLPModelCfg.GaussianDistributionCfg(init_std=1.0),
    )
    critic = RslRlMLPModelCfg(hidden_dims=[256, 128, 64], activation="elu", obs_normalization=True)
    algorithm = RslRlPpoAlgorithmCfg(
        value_loss_coef=1.0,
        use_clipped_value_loss=True,
        clip_param=0.2,
        entropy_coef=0.0,
        num_learning_epochs=5,
        num_mini_batches=4,
        learning_rate=5.0e-4,
        schedule="adaptive",
        gamma=0.99,
        lam=0.95,
        desired_kl=0.01,
        max_grad_norm=1.0,
    )


@configclass
class KMyriadAlgorithmCfg:
    """K-Myriad in RSL-RL's runner."""

    class_name: str = "myriad_lab.runners.rsl_rl_kmyriad:RslRlKMyriad"
    num_policies: int = 8
    """Policies of the population; divides the number of envs."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of ``KMyriadCfg`` by name, e.g. ``agent.algorithm.settings.k=30``."""


@configclass
class KMyriadRunnerCfg(_RunnerCfg):
    """A population in Isaac Lab's launcher, ``--agent rsl_rl_kmyriad_cfg_entry_point env.compute_final_obs=true``."""

    num_steps_per_env = 0
    max_iterations = 200
    algorithm: KMyriadAlgorithmCfg = KMyriadAlgorithmCfg()


def _define(task_id: str, kind: str, base: type) -> type:
    """Return the configuration of a task: the name of its folder of runs is its own, and how long an episode is."""
    values: dict[str, Any] = {"experiment_name": task_id.lower().replace("-", "_")}
    if base is KMyriadRunnerCfg:
        values["num_steps_per_env"] = int(get(task_id).cfg.episode_steps)
    body = {"__module__": __name__, "__doc__": f"{kind} on {task_id}.", "__annotations__": dict.fromkeys(values, Any)}
    return configclass(type(cfg_name(task_id, kind), (base,), {**body, **values}))


for _kind, _base in (("PpoRunnerCfg", PpoRunnerCfg), ("KMyriadRunnerCfg", KMyriadRunnerCfg)):
    globals().update({cfg_name(task_id, _kind): _define(task_id, _kind, _base) for task_id in task_ids()})
