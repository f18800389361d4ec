"""What an update of the learners costs at least: arithmetic and bytes, by formula alone.

Twin critics and a deterministic policy, multilayer perceptrons of the same hidden widths. Only matrix products count as
arithmetic, multiplication and addition as two. Bytes are those of a kernel that keeps everything it can on the chip.
Shapes: ``num_obs`` and ``num_actions`` are widths, ``rows`` is the number of rows of the minibatch, over all heads.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

ADAMW_BYTES = 28
"""Per float32 parameter: weight, gradient and two moments read, weight and moments written."""
TARGET_BYTES = 12
"""Per float32 parameter of a target network: both weights read, one written."""
FLOAT_BYTES = 4


def layer_flops(sizes: Sequence[int]) -> int:
    """Return the arithmetic of one row through layers of these widths [FLOP]."""
    return 2 * sum(a * b for a, b in itertools.pairwise(sizes))


@dataclass(frozen=True)
class Updates:
    """Floors of the updates of one shape of networks."""

    num_obs: int
    """Width of the observation, the same for policy and critics."""
    num_actions: int
    """Width of the action."""
    hidden: tuple[int, ...]
    """Hidden widths of the policy and of each critic."""
    num_atoms: int = 1
    """Outputs of a critic: 1, or the atoms of a categorical one."""

    def critic_flops(self, rows: int) -> int:
        """Return the arithmetic of a critic update [FLOP].

        Policy and two target heads forward at the next observation, two heads forward and backward, without the
        gradient of their input.
        """
        policy, critic = self._policy, self._critic
        first = 2 * (self.num_obs + self.num_actions) * self.hidden[0]
        return rows * (policy + 4 * critic + 2 * (2 * critic - first))

    def policy_flops(self, rows: int) -> int:
        """Return the arithmetic of a policy update [FLOP].

        The policy forward and backward, two critics forward, and backward towards the action alone: no gradient of
        their weights, and none of the observation.
        """
        policy, critic = self._policy, self._critic
        seen = 2 * self.num_obs * self.hidden[0]
        return rows * (3 * policy - seen + 2 * critic + 2 * (critic - seen))

    def critic_bytes(self, rows: int, row_bytes: float, parameters: int, item: int = 2) -> float:
        """Return what a critic update has to move [B].

        Args:
            rows: Rows of the minibatch.
            row_bytes: Size of one row of the minibatch [B].
            parameters: Parameters of all critics.
            item: Size of one activation [B]; each is saved once and loaded once, in both heads.
        """
        activations = 4 * item * sum(self.hidden) * rows
        return rows * row_bytes + activations + (ADAMW_BYTES + TARGET_BYTES) * parameters

    def policy_bytes(self, rows: int, parameters: int, item: int = 2) -> float:
        """Return what a policy update has to move [B]: observations, activations of the policy, its optimiser.

        Args:
            rows: Rows of the minibatch.
            parameters: Parameters of all policies.
            item: Size of one activation [B].
        """
        return rows * (FLOAT_BYTES * self.num_obs + 2 * item * sum(self.hidden)) + ADAMW_BYTES * parameters

    @property
    def _policy(self) -> int:
        return layer_flops([self.num_obs, *self.hidden, self.num_actions])

    @property
    def _critic(self) -> int:
        return layer_flops([self.num_obs + self.num_actions, *self.hidden, self.num_atoms])


def fasttd3_transition_bytes(num_obs: int, num_actions: int, num_critic_obs: int = 0) -> int:
    """Return the size of one transition in FastTD3's replay memory [B] (arXiv 2505.22642, ``fast_td3_utils.py``).

    Observation and next observation of policy and critic (where it has its own), action and reward are float32, the
    ends of an episode and of its time two int64.
    """
    return FLOAT_BYTES * (2 * num_obs + 2 * num_critic_obs + num_actions + 1) + 2 * 8


def overlap_efficiency(collect_s: float, learn_s: float, both_s: float) -> float:
    """Return which share of the shorter of two jobs is hidden behind the longer: 1 all, 0 nothing, below 0 a loss.

    Args:
        collect_s: Time of an env step with nothing beside it [s].
        learn_s: Time of the updates that the step earns, with nothing beside them [s].
        both_s: Time of an env step while both run [s].
    """
    return (collect_s + learn_s - both_s) / min(collect_s, learn_s)
