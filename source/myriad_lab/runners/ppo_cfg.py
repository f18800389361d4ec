"""Configuration of RSL-RL's PPO as Myriad Lab runs it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from myriad_lab.errors import ConfigurationError, nearest
from myriad_lab.networks.mlp import ACTIVATIONS


@dataclass
class PPOCfg:
    """PPO (Schulman et al. 2017) with the adaptive learning rate of RSL-RL; defaults suit locomotion."""

    num_steps_per_env: int = 24
    """Env steps of each env per iteration."""
    num_learning_epochs: int = 5
    """Passes over the data of an iteration."""
    num_mini_batches: int = 4
    """Minibatches per pass."""
    learning_rate: float = 1e-3
    """Learning rate of Adam at the start; actor and critic share it."""
    schedule: str = "adaptive"
    """``adaptive`` (the learning rate follows ``desired_kl``) or ``fixed``."""
    desired_kl: float = 0.01
    """KL between the policies before and after an update that ``adaptive`` aims at [nat]."""
    clip_param: float = 0.2
    """Range of the likelihood ratio, 1 -+ this."""
    gamma: float = 0.99
    """Discount per control step."""
    lam: float = 0.95
    """Lambda of the generalised advantage estimate."""
    value_loss_coef: float = 1.0
    """Weight of the value loss."""
    use_clipped_value_loss: bool = True
    """Whether the value may move only by ``clip_param`` per update."""
    entropy_coef: float = 0.005
    """Weight of the entropy of the policy."""
    max_grad_norm: float = 1.0
    """Gradient norm, of actor and critic separately, above which it is scaled down."""
    actor_hidden_dims: list[int] = field(default_factory=lambda: [256, 128, 64])
    """Hidden layers of the actor; not used when it starts from a head."""
    critic_hidden_dims: list[int] = field(default_factory=lambda: [256, 128, 64])
    """Hidden layers of the critic."""
    activation: str = "elu"
    """Activation of both."""
    init_std: float = 1.0
    """Standard deviation of the actions at the start; a head brings its own."""
    obs_normalization: bool = True
    """Whether actor (from scratch) and critic normalise their observations by running statistics."""
    min_log_std: float = -2.3
    """Lower bound of the log standard deviation when starting from a head, so that it keeps exploring."""
    random_episode_start: bool = True
    """Whether the envs start the first iteration at random places of their episode, so that resets are spread out."""

    def validate(self, num_envs: int) -> None:
        """Raise ``ConfigurationError`` where a value is out of range."""
        counts = ("num_steps_per_env", "num_learning_epochs", "num_mini_batches")
        for name in (*counts, "learning_rate", "desired_kl", "clip_param", "max_grad_norm", "init_std"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(f"agent.{name}={getattr(self, name)} must be positive.")
        for name in ("value_loss_coef", "entropy_coef"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigurationError(f"agent.{name}={getattr(self, name)} must not be negative.")
        if not 0.0 <= self.gamma <= 1.0 or not 0.0 <= self.lam <= 1.0:
            raise ConfigurationError(f"agent.gamma={self.gamma} and agent.lam={self.lam} must lie in [0, 1].")
        if self.schedule not in ("adaptive", "fixed"):
            raise ConfigurationError(
                f"agent.schedule={self.schedule!r}. {nearest(self.schedule, ('adaptive', 'fixed'))}"
            )
        if self.activation not in ACTIVATIONS:
            raise ConfigurationError(f"agent.activation={self.activation!r}. {nearest(self.activation, ACTIVATIONS)}")
        if not self.actor_hidden_dims or not self.critic_hidden_dims:
            raise ConfigurationError("agent.actor_hidden_dims and agent.critic_hidden_dims need at least one layer.")
        if num_envs * self.num_steps_per_env < self.num_mini_batches:
            raise ConfigurationError(
                f"agent.num_mini_batches={self.num_mini_batches} is more than the {num_envs * self.num_steps_per_env} "
                "samples of an iteration; use more envs or steps, or fewer minibatches."
            )

    def to_rsl(self, obs_groups: dict[str, list[str]], actor: dict[str, Any]) -> dict[str, Any]:
        """Return RSL-RL's training configuration.

        Args:
            obs_groups: Observation groups of ``actor`` and ``critic``.
            actor: Class and arguments of the actor, as RSL-RL takes them.
        """
        names = (
            "num_learning_epochs num_mini_batches learning_rate schedule desired_kl clip_param gamma lam "
            "value_loss_coef use_clipped_value_loss entropy_coef max_grad_norm"
        )
        return {
            "num_steps_per_env": self.num_steps_per_env,
            "save_interval": 1,
            "obs_groups": {name: list(groups) for name, groups in obs_groups.items()},
            "actor": actor,
            "critic": {
                "class_name": "rsl_rl.models:MLPModel",
                "hidden_dims": list(self.critic_hidden_dims),
                "activation": _rsl_activation(self.activation),
                "obs_normalization": self.obs_normalization,
            },
            "algorithm": {"class_name": "rsl_rl.algorithms:PPO"}
            | {name: getattr(self, name) for name in names.split()},
        }

    def mlp_actor(self) -> dict[str, Any]:
        """Return RSL-RL's standard actor: a Gaussian MLP with one learned log-std per action."""
        return {
            "class_name": "rsl_rl.models:MLPModel",
            "hidden_dims": list(self.actor_hidden_dims),
            "activation": _rsl_activation(self.activation),
            "obs_normalization": self.obs_normalization,
            "distribution_cfg": {
                "class_name": "rsl_rl.modules.distribution:GaussianDistribution",
                "init_std": self.init_std,
                "std_type": "log",
            },
        }


def _rsl_activation(name: str) -> str:
    """Return RSL-RL's name of an activation: it calls SiLU swish."""
    return "swish" if name == "silu" else name
