"""FlashSAC (Holiday Robotics, arXiv 2604.04539) by its own ``train.py``, unmodified, on our envs.

The script finds our env where it makes its envs, no evaluation and no logger: policies are evaluated afterwards, like
those of everybody else. Its loop keeps transitions in NumPy, and so does our adapter.
"""

from __future__ import annotations

import contextlib
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from myriad_lab.cli.peers.checkouts import Checkout, import_file, replace_module, stand_in, without_progress
from myriad_lab.cli.peers.recorder import BudgetSpent, RecordedEnv, Recorder
from myriad_lab.envs.contract import VecEnv
from myriad_lab.errors import ConfigurationError

T = TypeVar("T")


class _Space(Generic[T]):
    """Name of ``gymnasium.spaces.Space``, which is annotated with and nothing else."""


STAND_INS: dict[str, dict[str, Any]] = {
    "tqdm": {"tqdm": without_progress},
    "gymnasium": {},
    "gymnasium.spaces": {"Space": _Space},
    "jax": {},
    "jax.numpy": {"ndarray": np.ndarray},
}
"""A progress bar, and packages whose types are named."""
FOREVER = 10**15
"""Env steps after which the loop would end by itself."""
DEFAULTS = {"agent.learning_rate_warmup_step": 0, "agent.learning_rate_decay_step": FOREVER}
"""The script spreads its schedule over the env steps of the loop; a study names the updates that its budget allows."""
QUIET = ("evaluation", "metrics", "recording", "logging", "save_checkpoint", "save_buffer")
"""What the script would do every so many steps."""


@dataclass(frozen=True)
class Box:
    """A space of rows in [-1, 1], or of observations: shape and type are all that is read of it."""

    shape: tuple[int, int]
    """(num_envs, width)."""
    generator: np.random.Generator
    """Draws the samples."""
    dtype: Any = field(default=np.float32)
    """Type of the entries."""

    def sample(self) -> np.ndarray:
        """Return uniform rows in [-1, 1]."""
        return self.generator.uniform(-1.0, 1.0, self.shape).astype(self.dtype)


class Policy(nn.Module):
    """The actor as it acts without noise: the tanh of its mean."""

    def __init__(self, actor: nn.Module) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Return actions (b, num_actions) in [-1, 1]."""
        # by the class: on the instance the method may have been replaced by a compiled one
        mean, _ = type(self.actor).get_mean_and_std(self.actor, obs, False)  # pyright: ignore
        return torch.tanh(mean)


class FlashSACEnv(RecordedEnv):
    """Our env with the interface of FlashSAC's Isaac Lab adapter: arrays in and out."""

    def __init__(self, env: VecEnv, recorder: Recorder, seed: int) -> None:
        super().__init__(env, recorder)
        generator = np.random.default_rng(seed)
        self.observation_space = Box((self.num_envs, self.num_obs), generator)
        self.action_space = Box((self.num_envs, self.num_actions), generator)

    def reset(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes."""
        return _array(self.begin()), {"actor_observation_size": (self.num_obs,), "asymmetric_obs": False}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Return observations, rewards, ends, time-outs and the true last observations."""
        obs, rewards, extras, following = self.advance(torch.as_tensor(actions))
        ends = _array(extras["terminated"]), _array(extras["time_outs"])
        return _array(obs), _array(rewards), *ends, {"final_obs": _array(following)}

    def close(self) -> None:
        """Leave the env to whoever made it."""


class NoLogger:
    """Stands where the script keeps its logger."""

    def update_metric(self, **_: Any) -> None:
        """Keep nothing."""

    def log_metric(self, step: int) -> None:
        """Write nothing."""

    def reset(self) -> None:
        """Forget nothing."""


def train(checkout: Checkout, env: VecEnv, recorder: Recorder, settings: Mapping[str, Any], seed: int) -> None:
    """Train until the budget is spent.

    Args:
        checkout: The code.
        env: The env; gives final observations.
        recorder: Gets the policy as soon as there is one, and ends the run.
        settings: Dotted keys of FlashSAC's configuration, e.g. ``agent.sample_batch_size``.
        seed: Of the run.

    Raises:
        ConfigurationError: If a setting is set by us, or the loop ends before the budget.
    """
    stand_in(STAND_INS)
    sys.path.insert(0, str(checkout.path))
    view = FlashSACEnv(env, recorder, seed)
    replace_module("flash_rl.envs", create_envs=lambda **_: (view, view, view))
    replace_module("flash_rl.evaluation", evaluate=lambda *_: {}, record_video=lambda *_: {})
    replace_module("flash_rl.common", create_logger=lambda _: NoLogger())
    script = import_file("flash_sac_train", checkout.path / "train.py")
    make_agent = script.create_agent

    def create_agent(**arguments: Any) -> Any:
        agent = make_agent(**arguments)
        actor = agent._actor.network
        recorder.follow(Policy(getattr(actor, "_orig_mod", actor)), view.num_obs, lambda: agent._update_step)
        return agent

    vars(script)["create_agent"] = create_agent
    overrides = make_overrides(settings, view, seed)
    with contextlib.suppress(BudgetSpent):
        script.run(Namespace(config_path="./configs", config_name="flashSAC_base", overrides=overrides))
    recorder.close()


def make_overrides(settings: Mapping[str, Any], env: FlashSACEnv, seed: int) -> list[str]:
    """Return the overrides of FlashSAC's configuration: the run's, then the settings.

    Raises:
        ConfigurationError: If a setting is not for a study to choose.
    """
    device = str(env.device)
    fixed = {
        "seed": seed,
        "env": "isaaclab",
        "num_train_envs": env.num_envs,
        "num_env_steps": FOREVER,
        **{f"{name}_per_interaction_step": "null" for name in QUIET},
        "agent.device_type": device,
        "agent.buffer_device_type": device,
    }
    for key, value in settings.items():
        if key in fixed:
            raise ConfigurationError(f"{key}={value} of FlashSAC is set by the flags of the study; leave it out")
    # FlashSAC's own composition refuses keys that it does not know
    return [f"{key}={_text(value)}" for key, value in {**DEFAULTS, **fixed, **settings}.items()]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _array(rows: torch.Tensor) -> np.ndarray:
    """Return a copy: what the env gives may live on a GPU, or be its own."""
    return rows.detach().to("cpu", copy=True).numpy()
