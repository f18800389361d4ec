"""What a run on Isaac Lab may choose beside the task; importable without Isaac Lab."""

from __future__ import annotations

from dataclasses import dataclass

from myriad_lab.errors import ConfigurationError, nearest

VIEWERS = ("newton_gl", "newton_rtx", "viser", "rerun", "kit", "none")
"""Viewers of Isaac Lab 3.0."""
CAMERAS = ("newton_gl", "newton_rtx", "kit")
"""Those that give pictures for films."""


@dataclass
class IsaacLabCfg:
    """``isaaclab.*``: settings of backend ``isaaclab`` that belong to no task."""

    physics: str | None = None
    """Engine, a preset of the task, e.g. newton_mjwarp or ovphysx; the task's default where ``None``."""
    presets: str | None = None
    """Further presets of the task, separated by commas, as ``presets=`` of Isaac Lab's own commands."""
    features: list[str] | None = None
    """What the entropy is measured on, by name, see ``features``; where ``None``, the task's own group ``features``, or
    root x, y of the robot where it has none."""
    action_bound: float = 1.0
    """Action of the task that our action of 1 means. Above 1 for tasks whose useful actions are larger, as velocity
    tasks with a small joint scale."""
    joint_limit_actions: bool = False
    """Whether our actions of -1 and 1 lead to the farther limit of each joint, for tasks with joint position actions;
    in place of ``action_bound``."""
    viz: str | None = None
    """Viewers, separated by commas: newton_gl, viser, rerun, kit; passed to Isaac Lab as ``--viz``."""
    play_mode: bool = False
    """Whether to apply the task's own changes for play: fewer disturbances, no noise on observations."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a value is out of range."""
        from myriad_lab.envs.isaaclab.features import parse_feature

        for viewer in (self.viz or "none").split(","):
            if viewer not in VIEWERS:
                raise ConfigurationError(f"--viz {self.viz}: unknown viewer {viewer!r}. {nearest(viewer, VIEWERS)}")
        if not 0.0 < self.action_bound < float("inf"):
            raise ConfigurationError(f"isaaclab.action_bound={self.action_bound}; expected a positive number")
        if self.joint_limit_actions and self.action_bound != 1.0:
            raise ConfigurationError(
                f"isaaclab.action_bound={self.action_bound} and isaaclab.joint_limit_actions=true; choose one of them"
            )
        if self.features == []:
            raise ConfigurationError("isaaclab.features is empty; name at least one, e.g. [root_xy]")
        for text in self.features or ():
            parse_feature(text)
