"""The configurations of our tasks in Isaac Lab, one class per registered id. Importable before a simulator runs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from isaaclab.actuators import ImplicitActuatorCfg
from isaaclab.envs import DirectRLEnvCfg
from isaaclab.physics import PhysxAutoCfg
from isaaclab.scene import InteractiveSceneCfg
from isaaclab.sensors import ContactSensorCfg
from isaaclab.sim import DomeLightCfg, SimulationCfg
from isaaclab.utils import configclass
from isaaclab_newton.physics import MJWarpSolverCfg, NewtonCfg
from isaaclab_ov.physics import OvPhysxCfg
from isaaclab_physx.physics import PhysxCfg
from isaaclab_tasks.utils import PresetCfg

from isaaclab.assets import ArticulationCfg, AssetBaseCfg
from myriad_lab.envs.arena import Arena
from myriad_lab.envs.isaaclab.robot_model import joint_drives
from myriad_lab.envs.isaaclab.spawners import ArenaSpawnerCfg, RobotSpawnerCfg, robot_to_dict
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.task import Task
from myriad_lab.errors import ConfigurationError
from myriad_lab.tasks.isaaclab import cfg_name, task_ids
from myriad_lab.tasks.registry import get


@configclass
class TaskPhysicsCfg(PresetCfg):
    """The engines, by the names that Isaac Lab's own tasks give them."""

    isaacsim_physx: PhysxCfg = PhysxCfg(bounce_threshold_velocity=0.2)
    ovphysx: OvPhysxCfg = OvPhysxCfg()
    physx: PhysxAutoCfg = PhysxAutoCfg(isaacsim_physx=isaacsim_physx, ovphysx=ovphysx)
    newton_mjwarp: NewtonCfg = NewtonCfg(
        solver_cfg=MJWarpSolverCfg(njmax=200, nconmax=40, cone="pyramidal", integrator="implicitfast", impratio=1)
    )
    default: NewtonCfg = newton_mjwarp


@configclass
class TaskSceneCfg(InteractiveSceneCfg):
    """One place for all robots, who do not see or touch each other; filled in from the task."""

    num_envs: int = 1024
    env_spacing: float = 0.0
    ground: AssetBaseCfg | None = None
    arena: AssetBaseCfg | None = None
    robot: ArticulationCfg | None = None
    contacts: ContactSensorCfg | None = None
    light: AssetBaseCfg = AssetBaseCfg(
        prim_path="/World/light", spawn=DomeLightCfg(intensity=2000.0, color=(0.75, 0.75, 0.75))
    )


@configclass
class TaskDirectEnvCfg(DirectRLEnvCfg):
    """A task of ours in Isaac Lab: what it is about is in ``task``; the rest follows from it, or is Isaac Lab's.

    What follows from the task is filled in when the env is made: a task may load what must wait for the simulator.
    """

    task_id: str = ""
    """Registered id."""
    task: Any = None
    """The configuration of the task, with the fields it has on every backend."""
    arena_per_env: bool | None = None
    """Whether every env has walls of its own, side by side, or all robots are in one place without feeling each other.

    By default one place for Newton, which knows which robot is in which env, and places of their own for PhysX, which
    first pairs all robots that are near each other: 512 ants at one start take 9 times as long there.
    """
    sim: SimulationCfg = SimulationCfg(physics=TaskPhysicsCfg())
    scene: TaskSceneCfg = TaskSceneCfg()
    decimation: int = 0
    episode_length_s: float = 0.0
    observation_space: int = 0
    state_space: int = 0
    action_space: int = 0

    def __post_init__(self) -> None:
        """Take over the defaults of the task."""
        if self.task is None:
            entry = get(self.task_id)
            self.task = entry.cfg
            self.scene.num_envs = entry.default_num_envs

    def resolve(self, task: Task) -> None:
        """Let everything follow from the task, as it is after all overrides; called by the env.

        Raises:
            ConfigurationError: A field that follows from the task was set to something else.
        """
        place = task.arena
        apart = self.arena_per_env
        if apart is None:
            apart = not isinstance(self.sim.physics, NewtonCfg)
        untouched = type(self)()
        spacing = 2 * max(place.half_extent) + 5.0 if apart else 0.0
        for name, value in {**_derived(task), "scene.env_spacing": spacing}.items():
            if _lookup(self, name) not in (value, _lookup(untouched, name)):
                raise ConfigurationError(
                    f"env.{name}={_lookup(self, name)}: this follows from the task, its robot and "
                    f"arena_per_env, which make it {value}; set fields of env.task instead"
                )
            _assign(self, name, value)
        if apart:
            if place.height_field is None:
                self.scene.ground = _shared(replace(place, boxes=()), "/World/ground")
            if place.boxes or place.height_field:
                spawn = ArenaSpawnerCfg(arena=place.to_dict(), ground=place.height_field is not None)
                self.scene.arena = AssetBaseCfg(prim_path="{ENV_REGEX_NS}/Arena", spawn=spawn)
        else:
            self.scene.arena = _shared(place, "/World/arena")
        self.scene.robot = robot_articulation(task.robot)
        if task.robot.contact_bodies:
            self.scene.robot.spawn.contact_sensors = True
            bodies = "|".join(task.robot.contact_bodies)
            self.scene.contacts = ContactSensorCfg(prim_path=f"{{ENV_REGEX_NS}}/Robot/({bodies})")


def _shared(arena: Arena, prim_path: str) -> AssetBaseCfg:
    """Return an arena that is there once and that the robots of all envs touch."""
    return AssetBaseCfg(prim_path=prim_path, spawn=ArenaSpawnerCfg(arena=arena.to_dict()), collision_group=-1)


def robot_articulation(robot: RobotCfg) -> ArticulationCfg:
    """Return the articulation of a robot in every env, with the springs, dampers and servos that it has on MuJoCo."""
    drives = joint_drives(robot)
    values = {
        field: {name: getattr(drive, field) for name, drive in drives.items()}
        for field in ("stiffness", "damping", "armature", "friction", "max_torque")
    }
    limits = values.pop("max_torque")
    actuator = ImplicitActuatorCfg(joint_names_expr=list(robot.joint_names), **values)
    if all(math.isfinite(limit) for limit in limits.values()):
        actuator.joint_effort_limit = limits
    return ArticulationCfg(
        prim_path="{ENV_REGEX_NS}/Robot",
        spawn=RobotSpawnerCfg(robot=robot_to_dict(robot)),
        init_state=ArticulationCfg.InitialStateCfg(
            pos=(0.0, 0.0, robot.start_height),
            joint_pos=dict(zip(robot.joint_names, robot.default_joint_pos, strict=True)),
        ),
        actuators={"joints": actuator},
    )


def _derived(task: Task) -> dict[str, Any]:
    """Return what follows from the task, by dotted name."""
    robot, terms = task.robot, task.observation_terms()
    sizes = {name: sum(math.prod(term.shape) for term in group) for name, group in terms.items()}
    return {
        "decimation": robot.decimation,
        "sim.dt": robot.physics_dt,
        "sim.render_interval": robot.decimation,
        # Half a step less: Isaac Lab rounds the number of steps up.
        "episode_length_s": (task.cfg.episode_steps - 0.5) * robot.control_period,
        "observation_space": sizes["policy"],
        "state_space": sizes["critic"],
        "action_space": len(robot.action.names),
    }


def _lookup(cfg: Any, name: str) -> Any:
    for part in name.split("."):
        cfg = getattr(cfg, part)
    return cfg


def _assign(cfg: Any, name: str, value: Any) -> None:
    *parents, leaf = name.split(".")
    setattr(_lookup(cfg, ".".join(parents)) if parents else cfg, leaf, value)


def _define(task_id: str) -> type[TaskDirectEnvCfg]:
    """Return the configuration class of a task."""
    body = {"__module__": __name__, "__doc__": get(task_id).description, "__annotations__": {"task_id": str}}
    return configclass(type(cfg_name(task_id, "EnvCfg"), (TaskDirectEnvCfg,), {**body, "task_id": task_id}))


globals().update({cfg_name(task_id, "EnvCfg"): _define(task_id) for task_id in task_ids()})
