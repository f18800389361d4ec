"""What a task says about its robot; a backend turns it into a model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from myriad_lab.envs.contract import ActionSpec


@dataclass(frozen=True)
class RobotCfg:
    """A robot, independent of the simulator that moves it."""

    name: str
    """Name, e.g. ``ant``; backends use it in messages."""
    action: ActionSpec
    """What the actions mean."""
    joint_names: tuple[str, ...] = ()
    """Joints in the order of ``RobotState.joint_pos``."""
    default_joint_pos: tuple[float, ...] = ()
    """Default pose [rad], one entry per joint."""
    joint_limits: tuple[tuple[float, float], ...] = ()
    """Lowest and highest position [rad], one pair per joint; empty where nothing asks for them."""
    stiffness: tuple[float, ...] = ()
    """Position gains [N m/rad], empty for torque control."""
    damping: tuple[float, ...] = ()
    """Velocity gains [N m s/rad], empty for torque control."""
    start_height: float = 0.0
    """Height of the base above the ground at the start of an episode [m]."""
    contact_bodies: tuple[str, ...] = ()
    """Bodies whose contact force is sensed, in the order of ``RobotState.contact_forces``."""
    mjcf: str | None = None
    """Resource ``package:file.xml`` of the MuJoCo description; ``None`` where dynamics are analytic."""
    physics_dt: float = 1.0 / 120.0
    """Physics time step [s]."""
    decimation: int = 2
    """Physics steps per control step."""
    radius: float = 0.0
    """Radius of the robot seen from above, for collision and reachability [m]."""

    @property
    def control_period(self) -> float:
        """Time between two actions [s]."""
        return self.physics_dt * self.decimation


def reach_joint_limits(robot: RobotCfg) -> RobotCfg:
    """Return the robot with actions of -1 and 1 that lead as far from their offset as the farther limit of each joint.

    Policies that end in tanh cannot ask for more than their bound; with this one every position within the limits can
    be asked for (FastSAC, arXiv 2512.01996).

    Args:
        robot: Position-controlled, with ``joint_limits``.
    """
    limits = dict(zip(robot.joint_names, robot.joint_limits, strict=True))
    action = robot.action
    scale = tuple(farther_limit(*limits[name], at) for name, at in zip(action.names, action.offset, strict=True))
    return replace(robot, action=replace(action, scale=scale))


def farther_limit(low: float, high: float, offset: float) -> float:
    """Return the distance from ``offset`` to the farther of two limits."""
    return max(high - offset, offset - low)
