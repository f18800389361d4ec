"""Our tasks as direct environments of Isaac Lab: the same task and arena files as on MuJoCo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from isaaclab.envs import DirectRLEnv

from myriad_lab.envs.env_parts import episode_log, join_terms
from myriad_lab.envs.isaaclab.robot_state import ArticulationIO
from myriad_lab.envs.robot_state import InitialState, RobotState
from myriad_lab.envs.simulator import POSITION_LIMIT, SPEED_LIMIT
from myriad_lab.tasks.isaaclab.env_cfg import TaskDirectEnvCfg
from myriad_lab.tasks.registry import get


class TaskDirectEnv(DirectRLEnv):
    """Lets a task read the robots of an Isaac Lab scene; ends, rewards and starts are the task's.

    Beside what Isaac Lab promises, ``extras`` has ``success`` (bool ``(num_envs,)``, for tasks with a goal: whether it
    was reached in the episode that is running or has just ended) and ``diverged`` (bool ``(num_envs,)``: the physics
    broke, the row is reset as a time-out with a reward of 0, and its final observation means nothing).
    ``extras["log"]`` is there on steps with an end only.
    """

    cfg: TaskDirectEnvCfg

    def __init__(self, cfg: TaskDirectEnvCfg, render_mode: str | None = None, **kwargs: Any) -> None:
        """Build scene and task from the configuration, and fill in there what follows from the task.

        Raises:
            ConfigurationError: The task refuses its configuration, or a field that follows from it was set otherwise.
        """
        self.task = get(cfg.task_id).make_task(cfg.task)
        self.task_id: str = cfg.task_id
        cfg.resolve(self.task)
        super().__init__(cfg, render_mode, **kwargs)
        robot = self.task.robot
        self.generator = torch.Generator(device=self.device)
        """Of starts and commands; nothing else is random here."""
        self.generator.manual_seed(torch.initial_seed() if cfg.seed is None else cfg.seed)
        sensors = self.scene.sensors
        self._io = ArticulationIO(robot, self.scene["robot"], self.scene.env_origins, sensors.get("contacts"))
        self.task.bind(self.num_envs, self.device)
        self._scale = torch.tensor(robot.action.scale, device=self.device)
        self._offset = torch.tensor(robot.action.offset, device=self.device)
        num_actions = len(robot.action.names)
        # Targets on their way to the motors: slot [step % length] is the newest.
        self._targets = self._offset.expand(robot.action.delay_steps + 1, self.num_envs, num_actions).clone()
        self._actions = torch.zeros(self.num_envs, num_actions, device=self.device)
        self._previous_actions = torch.zeros_like(self._actions)
        self._success_buf = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        self._diverged_buf = torch.zeros_like(self._success_buf)
        self._reward_sums: dict[str, torch.Tensor] = {}
        self._state: RobotState | None = None

    def robot_state(self) -> RobotState:
        """Return the state of the robots now; the tensors are nobody else's, except for the actions."""
        if self._state is None:
            self._state = self._io.read(self._actions, self._previous_actions)
        return self._state

    def write_state(self, env_ids: torch.Tensor, initial: InitialState) -> None:
        """Put the robots ``env_ids`` into the given states, in the frames of their envs; their episodes go on."""
        self._io.write(env_ids.int(), initial)
        self._state = None

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start a new episode in every env; ``seed`` also seeds the starts."""
        if seed is not None:
            self.generator.manual_seed(seed)
        return super().reset(seed=seed, options=options)

    def _pre_physics_step(self, actions: torch.Tensor) -> None:
        self._previous_actions, self._actions = self._actions, actions.detach().float().clamp(-1.0, 1.0)
        slots = len(self._targets)
        newest = self.common_step_counter % slots
        torch.addcmul(self._offset, self._actions, self._scale, out=self._targets[newest])
        self._io.drive(self._targets[(newest + 1) % slots])
        self._state = None
        # What was logged of the last ends is not to be read again.
        self.extras.pop("log", None)

    def _apply_action(self) -> None:
        """The command holds for all physics steps of a control step."""

    def _get_dones(self) -> tuple[torch.Tensor, torch.Tensor]:
        state = self.robot_state()
        self.task.on_step(state, self.generator)
        self._diverged_buf = ~_healthy(state)
        terminated = self.task.terminated(state) & ~self._diverged_buf
        reached = self.task.success(state)
        if reached is not None:
            self._success_buf |= reached & ~self._diverged_buf
            self.extras["success"] = self._success_buf.clone()
        self.extras["diverged"] = self._diverged_buf
        time_outs = (self.episode_length_buf >= self.max_episode_length) | self._diverged_buf
        return terminated, time_outs & ~terminated

    def _get_rewards(self) -> torch.Tensor:
        total = torch.zeros(self.num_envs, device=self.device)
        for name, value in self.task.reward(self.robot_state()).items():
            value = value.float().masked_fill(self._diverged_buf, 0.0)
            self._reward_sums[name] = self._reward_sums.get(name, 0.0) + value
            total = total + value
        return total

    def _get_observations(self) -> dict[str, torch.Tensor]:
        state = self.robot_state()
        groups = join_terms(self.task.observe(state))
        return {**groups, "features": self.task.features(state).clone()}

    def _reset_idx(self, env_ids: Sequence[int] | torch.Tensor) -> None:
        ids = torch.as_tensor(env_ids, device=self.device).int()
        rows = ids.long()
        if bool(self.reset_buf[rows].all()):
            self.extras["log"] = self._log(rows)
        super()._reset_idx(ids)
        self.write_state(ids, self.task.reset_distribution(len(rows), self.generator))
        self.task.on_reset(rows, self.generator)
        self._targets[:, rows] = self._offset
        for buffer in (self._actions, self._previous_actions, self._success_buf, *self._reward_sums.values()):
            buffer[rows] = 0

    def _log(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalars of the episodes that end now: mean sums of the reward terms, counts of the ends."""
        return episode_log(
            {name: sums[rows].mean() for name, sums in self._reward_sums.items()},
            (self.reset_terminated[rows], self.reset_time_outs[rows], self._diverged_buf[rows]),
            self.episode_length_buf[rows],
            self._success_buf[rows] if "success" in self.extras else None,
        )


def _healthy(state: RobotState) -> torch.Tensor:
    """Return where the state is finite and within bounds, bool ``(num_envs,)``; NaN is below no bound."""
    position = torch.cat((state.root_pos_w, state.root_quat_w, state.joint_pos), dim=1).abs() < POSITION_LIMIT
    speed = torch.cat((state.root_lin_vel_w, state.root_ang_vel_w, state.joint_vel), dim=1).abs() < SPEED_LIMIT
    return position.all(1) & speed.all(1)
