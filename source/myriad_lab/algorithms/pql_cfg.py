"""Settings of parallel Q-learning."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection
from dataclasses import dataclass, field

from myriad_lab.errors import ConfigurationError, nearest
from myriad_lab.networks.population import PopulationActorCfg
from myriad_lab.networks.q_ensemble import QEnsembleCfg

REPLAY_DTYPES = ("float32", "bfloat16")
"""Types in which the replay memory may keep observations and actions."""
_TINY, _HUGE = math.ulp(0.0), sys.float_info.max
_RANGES = (
    (("gamma", "own_fraction"), (0.0, 1.0), "a number in [0, 1]"),
    (("tau",), (_TINY, 1.0), "a number in (0, 1]"),
    (("prior_fraction",), (0.0, math.nextafter(1.0, 0.0)), "a number in [0, 1)"),
    (
        ("actor_lr", "critic_lr", "reward_scale", "return_bound", "value_updates_per_step"),
        (_TINY, _HUGE),
        "a positive, finite number",
    ),
    (("max_grad_norm",), (_TINY, math.inf), "a positive number; inf for no bound"),
    (
        ("weight_decay", "target_noise", "target_noise_clip", "prior_weight", "sigma_min", "sigma_max"),
        (0.0, _HUGE),
        "a finite number of at least 0",
    ),
    (
        ("n_step", "batch_size", "policy_delay", "noise_repeat", "warmup_steps", "replay_capacity"),
        (1, _HUGE),
        "at least 1",
    ),
    (("critic_warmup",), (0, _HUGE), "at least 0"),
)
"""Fields, lowest and highest value, and what to say of them."""


@dataclass
class PQLCfg:
    """Settings of parallel Q-learning; everything per head unless it says otherwise."""

    gamma: float = 0.99
    """Discount per control step."""
    n_step: int = 3
    """Longest window of rewards summed before the bootstrap."""
    tau: float = 0.02
    """Polyak factor of the target critics, at every critic update."""
    batch_size: int = 256
    """Rows per head and update."""
    own_fraction: float = 0.5
    """Share of rows drawn from the head's own envs; the rest comes from the envs of all heads."""
    actor_lr: float = 3e-4
    """Learning rate of the actor (AdamW)."""
    critic_lr: float = 5e-4
    """Learning rate of the critics (AdamW)."""
    weight_decay: float = 0.0
    """Weight decay of both optimisers."""
    max_grad_norm: float = 1.0
    """Gradient norm of the actor, and of the critics of each head, is clipped to this."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before the critics see them."""
    normalize_returns: bool = True
    """Whether rewards are divided by the spread of the returns seen so far as well, see ``ReturnScale``."""
    return_bound: float = 5.0
    """Largest return that is left by that; the support of categorical critics should reach as far."""
    value_updates_per_step: float = 1.0
    """Critic updates per env step of all envs (collect : value = 1 : this)."""
    policy_delay: int = 2
    """Critic updates per policy update (policy : value = 1 : this)."""
    target_noise: float = 0.0
    """Standard deviation of the noise on target actions; 0 switches smoothing off."""
    target_noise_clip: float = 0.2
    """Bound of that noise."""
    target_bounds: list[float] | None = None
    """Lowest and highest value possible under the task's rewards before ``reward_scale``; targets of scalar critics
    are clamped to them."""
    sigma_min: float = 0.05
    """Noise of the first env that a head drives; the others lie evenly between."""
    sigma_max: float = 0.8
    """Noise of the last env that a head drives, also where it is the only one."""
    noise_repeat: int = 1
    """Most env steps for which an env keeps one draw of its noise, which lasts k steps with ``P(k) ~ k^-2``."""
    warmup_steps: int = 32
    """Env steps before the first update; without a seed, actions are uniform random meanwhile."""
    critic_warmup: int = 500
    """Critic updates before the first policy update, with a seed: fresh critics would wreck a trained actor."""
    prior_fraction: float = 0.0
    """Share of each head's envs that keep acting with the seeding portfolio's own stochastic policy."""
    prior_bootstrap: bool = False
    """Whether targets take the better of the actor's and the seeding portfolio's action (IBRL, arXiv 2311.02198)."""
    prior_weight: float = 0.0
    """Weight of the squared distance between the actions of the actor and of the seeding portfolio, relative to the
    mean absolute value of the minibatch: 1 / alpha of TD3+BC (arXiv 2106.06860)."""
    replay_capacity: int = 1_000_000
    """Transitions kept, over all envs and heads."""
    critic_group: str = "policy"
    """Observation group read by the critics."""
    replay_dtype: str = "float32"
    """Type of the observations and actions kept: ``float32``, or ``bfloat16`` in half the memory."""
    mixed_precision: bool | None = None
    """Whether forward passes of the updates run in bfloat16; ``None`` where the device has units for it."""
    compile: bool | None = None
    """Whether the losses are compiled (a minute, once); ``None`` on a GPU alone."""
    actor: PopulationActorCfg = field(
        default_factory=lambda: PopulationActorCfg(trunk=[256, 128], adapter_dim=128, obs_normalization=True)
    )
    """Shape of the policies trained from scratch; a portfolio brings its own."""
    critic: QEnsembleCfg = field(default_factory=QEnsembleCfg)
    """Shape of the critics."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a value is out of range."""
        for names, (low, high), expected in _RANGES:
            for name in names:
                value = getattr(self, name)
                if not low <= value <= high:
                    raise ConfigurationError(f"{name}={value} of PQL; expected {expected}.")
        if not self.sigma_min <= self.sigma_max:
            raise ConfigurationError(
                f"sigma_max={self.sigma_max} of PQL; expected at least sigma_min={self.sigma_min}."
            )
        if self.replay_dtype not in REPLAY_DTYPES:
            raise ConfigurationError(
                f"replay_dtype={self.replay_dtype!r} of PQL is unknown. {nearest(self.replay_dtype, REPLAY_DTYPES)}"
            )
        self.actor.validate()
        self.critic.validate()
        self._check_bounds()

    def check_groups(self, groups: Collection[str]) -> None:
        """Raise ``ConfigurationError`` where the env has not the observation groups of policies and critics."""
        if "policy" not in groups:
            raise ConfigurationError(f"PQL needs the observation group 'policy'; the env has {sorted(groups)}.")
        if self.critic_group not in groups:
            raise ConfigurationError(f"critic_group={self.critic_group!r} of PQL. {nearest(self.critic_group, groups)}")

    def check_prior(self, seeded: bool) -> None:
        """Raise ``ConfigurationError`` where a setting speaks of a portfolio and the policies come from none."""
        asked = [name for name in ("prior_fraction", "prior_bootstrap", "prior_weight") if getattr(self, name)]
        if asked and not seeded:
            told = ", ".join(f"{name}={getattr(self, name)}" for name in asked)
            raise ConfigurationError(
                f"{told} of PQL means the policies of a portfolio, and there is none: give one, or set it to 0"
            )

    def _check_bounds(self) -> None:
        bounds = self.target_bounds
        if bounds is None:
            return
        if len(bounds) != 2 or not -math.inf < bounds[0] < bounds[1] < math.inf:
            raise ConfigurationError(f"target_bounds={bounds} of PQL must be [lowest, highest], two ascending numbers.")
        if self.critic.kind == "categorical":
            raise ConfigurationError(
                f"target_bounds={bounds} of PQL is for scalar critics: the targets of categorical ones lie between "
                "v_min and v_max of the critic. Set those, or critic.kind=scalar and normalize_returns=false."
            )
