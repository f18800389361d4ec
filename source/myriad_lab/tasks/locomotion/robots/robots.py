"""The robots of the locomotion family: what their actions mean, their pose, gains and size."""

from __future__ import annotations

from myriad_lab.envs.contract import ActionSpec
from myriad_lab.envs.robot import RobotCfg

_PACKAGE = "myriad_lab.tasks.locomotion.robots"

_ANT_LEGS = ("front_left", "back_left", "back_right", "front_right")
_ANT_JOINTS = tuple(f"{leg}_{joint}" for leg in _ANT_LEGS for joint in ("hip", "knee"))

ANT = RobotCfg(
    name="ant",
    action=ActionSpec(names=_ANT_JOINTS, kind="torque", unit="N m", scale=(35.0,) * 8, offset=(0.0,) * 8),
    joint_names=_ANT_JOINTS,
    default_joint_pos=(0.0,) * 8,
    start_height=0.6,
    contact_bodies=tuple(f"{leg}_shank" for leg in _ANT_LEGS),
    mjcf=f"{_PACKAGE}:ant.xml",
    radius=0.5,
)
"""Four legs of two segments, 8 torque-driven joints, 4 kg, torso radius 0.25 m."""

_SIDES = ("left", "right")
_HUMANOID_JOINTS = (
    *("spine_yaw", "spine_pitch", "spine_roll"),
    *(
        f"{side}_{joint}"
        for side in _SIDES
        for joint in ("hip_roll", "hip_yaw", "hip_pitch", "knee", "ankle_pitch", "ankle_roll")
    ),
    *(f"{side}_{joint}" for side in _SIDES for joint in ("shoulder_pitch", "shoulder_roll", "elbow")),
)
_HUMANOID_LEG_TORQUES = (80.0, 50.0, 110.0, 90.0, 40.0, 20.0)

HUMANOID = RobotCfg(
    name="humanoid",
    action=ActionSpec(
        names=_HUMANOID_JOINTS,
        kind="torque",
        unit="N m",
        scale=(60.0, 90.0, 60.0, *_HUMANOID_LEG_TORQUES * 2, *(25.0, 25.0, 20.0) * 2),
        offset=(0.0,) * 21,
    ),
    joint_names=_HUMANOID_JOINTS,
    default_joint_pos=(0.0,) * 21,
    start_height=1.2,
    contact_bodies=tuple(f"{side}_foot" for side in _SIDES),
    mjcf=f"{_PACKAGE}:humanoid.xml",
    radius=0.4,
)
"""21 torque-driven joints, 1.66 m, 47 kg; the base is the torso."""

_QUADRUPED_LEGS = ("front_left", "front_right", "back_left", "back_right")
_QUADRUPED_JOINTS = tuple(f"{leg}_{joint}" for leg in _QUADRUPED_LEGS for joint in ("abduction", "thigh", "shank"))
_QUADRUPED_POSE = (0.0, 0.8, -1.6) * 4

QUADRUPED = RobotCfg(
    name="quadruped",
    action=ActionSpec(
        names=_QUADRUPED_JOINTS,
        kind="position",
        unit="rad",
        scale=(0.25, 0.5, 0.5) * 4,
        offset=_QUADRUPED_POSE,
        delay_steps=1,
    ),
    joint_names=_QUADRUPED_JOINTS,
    default_joint_pos=_QUADRUPED_POSE,
    joint_limits=((-0.8, 0.8), (-1.0, 2.8), (-2.6, -0.7)) * 4,
    stiffness=(60.0,) * 12,
    damping=(1.5,) * 12,
    start_height=0.33,
    contact_bodies=tuple(f"{leg}_shank" for leg in _QUADRUPED_LEGS),
    mjcf=f"{_PACKAGE}:quadruped.xml",
    radius=0.3,
)
"""Position-controlled walking robot, 12 joints, 15 kg; targets reach the servos one control step late."""
