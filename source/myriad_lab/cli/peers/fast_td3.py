"""FastTD3 (Seo et al., arXiv 2505.22642) by its own ``train.py``, unmodified, on our envs.

The script is told that it trains a task of Isaac Lab, and where it imports its Isaac Lab adapter it finds ours, which
differs in one thing: the observations at the end of an episode are the true ones. Of what the script writes, its
checkpoints alone are caught, for they bring the networks.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from myriad_lab.cli.peers.checkouts import (
    Checkout,
    import_file,
    refuse,
    replace_module,
    stand_in,
    without_progress,
)
from myriad_lab.cli.peers.recorder import BudgetSpent, RecordedEnv, Recorder
from myriad_lab.envs.contract import VecEnv
from myriad_lab.errors import ConfigurationError, nearest

STAND_INS = {"wandb": {}, "tqdm": {"tqdm": without_progress}, "tyro": {"cli": refuse("tyro")}}
"""Packages that show progress and read command lines."""
DEFAULTS = {"total_timesteps": 10**9, "save_interval": 20, "use_wandb": False, "eval_interval": 0, "render_interval": 0}
"""No end but the budget; networks are handed over early; nothing is shown, evaluated or sent on the way."""


class Policy(nn.Module):
    """Normaliser and actor as they act without noise."""

    def __init__(self, normalizer: nn.Module, actor: nn.Module) -> None:
        super().__init__()
        self.normalizer, self.actor = normalizer, actor

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Return actions (b, num_actions) in [-1, 1]."""
        plain = isinstance(self.normalizer, nn.Identity)
        return self.actor(obs if plain else self.normalizer(obs, update=False)).clamp(-1.0, 1.0)


class FastTD3Env(RecordedEnv):
    """Our env with the interface of FastTD3's Isaac Lab adapter."""

    asymmetric_obs = False
    num_privileged_obs = 0

    def reset(self, random_start_init: bool = True) -> torch.Tensor:
        """Start new episodes and return observations (num_envs, num_obs)."""
        return self.begin(random_start_init)

    def step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Return observations, rewards, dones (long) and what the script reads of the ends of episodes."""
        obs, rewards, extras, following = self.advance(actions)
        dones = (extras["terminated"] | extras["time_outs"]).long()
        last = {"obs": following, "critic_obs": None}
        return obs, rewards, dones, {"time_outs": extras["time_outs"], "observations": {"critic": None, "raw": last}}


def train(checkout: Checkout, env: VecEnv, recorder: Recorder, settings: Mapping[str, Any], seed: int) -> None:
    """Train until the budget is spent.

    Args:
        checkout: The code.
        env: The env; gives final observations.
        recorder: Gets the policy as soon as there is one, and ends the run.
        settings: Fields of FastTD3's ``IsaacLabArgs``.
        seed: Of the run.

    Raises:
        ConfigurationError: If a setting is unknown, or the loop ends before the budget.
    """
    stand_in(STAND_INS)
    sys.path.insert(0, str(checkout.sources))
    hyperparams = import_file("hyperparams", checkout.sources / "hyperparams.py")
    args = make_args(hyperparams, settings, env, seed)
    utils = import_file("fast_td3_utils", checkout.sources / "fast_td3_utils.py")
    view = FastTD3Env(env, recorder)

    def updates() -> int:
        steps = recorder.env_steps // env.num_envs - args.learning_starts - 1
        return max(0, steps) * args.num_updates

    def hand_over(
        _: int, actor: nn.Module, critic: nn.Module, target: nn.Module, normalizer: nn.Module, *__: Any
    ) -> None:
        recorder.follow(Policy(normalizer, actor), view.num_obs, updates)

    vars(utils)["save_params"] = hand_over
    vars(hyperparams)["get_args"] = lambda: args
    replace_module("environments", __path__=[str(checkout.sources / "environments")])
    replace_module("environments.isaaclab_env", IsaacLabEnv=lambda *_, **__: view)
    script = import_file("fast_td3_train", checkout.sources / "train.py")
    with contextlib.suppress(BudgetSpent):
        script.main()
    recorder.close()


def make_args(hyperparams: Any, settings: Mapping[str, Any], env: VecEnv, seed: int) -> Any:
    """Return FastTD3's settings for tasks of Isaac Lab with ours on top.

    Raises:
        ConfigurationError: If a setting is unknown, or not for a study to choose.
    """
    device = torch.device(env.device)
    fixed = {
        "env_name": f"Isaac-{env.spec.task}",  # the beginning is how the script chooses its adapter
        "num_envs": env.num_envs,
        "seed": seed,
        "cuda": device.type == "cuda",
        "device_rank": device.index or 0,
    }
    known = [f.name for f in fields(hyperparams.IsaacLabArgs)]
    for key, value in settings.items():
        if key in fixed:
            raise ConfigurationError(f"{key}={value} of FastTD3 is set by the flags of the study; leave it out")
        if key not in known:
            raise ConfigurationError(f"{key}={value} is no setting of FastTD3. {nearest(key, known)}")
    return hyperparams.IsaacLabArgs(**{**DEFAULTS, **settings, **fixed})
