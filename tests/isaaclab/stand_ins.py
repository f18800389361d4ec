"""Stand-ins for robots of Isaac Lab's stock tasks, whose own files lie on NVIDIA's server.

They are NOT the robots: a few boxes, capsules and spheres of about the robot's size and weight, under the names of
prims, bodies and joints that the tasks ask for. They tell whether a task runs; rewards and policies are not comparable
with those of the robots.
"""

from __future__ import annotations

import math

from stand_in_usd import Body, Robot, Shape

NUCLEUS = "Isaac/IsaacLab/Robots"


def cart(pendulum: bool) -> Robot:
    """Return a cart on a rail along y with a pole, and a pendulum on top of the pole."""
    pole = Shape((0.04, 0.06, 1.0), at=(0.0, 0.0, 0.5), collides=False)
    free = (("rotX", -math.inf, math.inf),)
    box = Shape((0.2, 0.25, 0.2), collides=False)
    bodies = (
        Body("slider", 1.0, (Shape((0.03, 8.0, 0.03), collides=False),)),
        Body("cart", 1.0, (box,), "slider", joint="slider_to_cart", axes=(("transY", -4.0, 4.0),)),
        Body("pole", 1.0, (pole,), "cart", joint="cart_to_pole", axes=free),
        Body("pendulum", 1.0, (pole,), "pole", (0.0, 0.0, 1.0), joint="pole_to_pendulum", axes=free),
    )
    return Robot("cart_double_pendulum", bodies, fixed=True) if pendulum else Robot("cartpole", bodies[:3], fixed=True)


def humanoid() -> Robot:
    """Return a humanoid of 1.5 m and 40 kg with its arms stretched out to the sides; it looks along x."""
    bodies = [
        Body("torso", 9.0, (Shape((0.08, 0.12), along="Y"), Shape((0.07, 0.08), (0.0, 0.0, -0.12), "Y"))),
        Body("head", 3.0, (Shape((0.09,)),), "torso", (0.0, 0.0, 0.22)),
        Body(
            "lower_waist",
            2.5,
            (Shape((0.06, 0.12), (0.0, 0.0, -0.05), "Y"),),
            "torso",
            (0.0, 0.0, -0.22),
            joint="lower_waist",
            axes=(("rotY", -30.0, 75.0), ("rotZ", -45.0, 45.0)),
        ),
        Body(
            "pelvis",
            6.0,
            (Shape((0.085, 0.14), (0.0, 0.0, -0.05), "Y"),),
            "lower_waist",
            (0.0, 0.0, -0.12),
            joint="pelvis",
            axes=(("rotX", -35.0, 35.0),),
        ),
    ]
    for side, sign in (("right", -1.0), ("left", 1.0)):
        bodies += _arm(side, sign) + _leg(side, sign)
    return Robot("humanoid", tuple(bodies), armature=0.01)


def _arm(side: str, sign: float) -> list[Body]:
    """Return an arm along y; ``sign`` tells in which direction."""
    raised, swept = sorted((sign * 60.0, sign * -85.0)), sorted((sign * -60.0, sign * 85.0))
    return [
        Body(
            f"{side}_upper_arm",
            1.6,
            (Shape((0.035, 0.2), (0.0, sign * 0.15, 0.0), "Y"),),
            "torso",
            (0.0, sign * 0.18, 0.06),
            joint=f"{side}_upper_arm",
            axes=(("rotX", *raised), ("rotZ", *swept)),
        ),
        Body(
            f"{side}_lower_arm",
            1.2,
            (Shape((0.03, 0.18), (0.0, sign * 0.14, 0.0), "Y"),),
            f"{side}_upper_arm",
            (0.0, sign * 0.28, 0.0),
            joint=f"{side}_lower_arm",
            axes=(("rotZ", *sorted((sign * 50.0, sign * -90.0))),),
        ),
        Body(f"{side}_hand", 0.4, (Shape((0.04,)),), f"{side}_lower_arm", (0.0, sign * 0.3, 0.0)),
    ]


def _leg(side: str, sign: float) -> list[Body]:
    """Return a leg downwards; turning about y by less than zero lifts the thigh, by more bends the knee."""
    return [
        Body(
            f"{side}_thigh",
            4.5,
            (Shape((0.055, 0.22), (0.0, 0.0, -0.19)),),
            "pelvis",
            (0.0, sign * 0.11, -0.1),
            joint=f"{side}_thigh",
            axes=(("rotX", *sorted((sign * -15.0, sign * 45.0))), ("rotY", -110.0, 35.0), ("rotZ", -45.0, 45.0)),
        ),
        Body(
            f"{side}_shin",
            2.6,
            (Shape((0.045, 0.24), (0.0, 0.0, -0.18)),),
            f"{side}_thigh",
            (0.0, 0.0, -0.38),
            joint=f"{side}_shin",
            axes=(("rotY", -2.0, 150.0),),
        ),
        Body(
            f"{side}_foot",
            1.2,
            (Shape((0.03, 0.18), (0.04, 0.0, -0.05), "X"),),
            f"{side}_shin",
            (0.0, 0.0, -0.38),
            joint=f"{side}_foot",
            axes=(("rotX", -45.0, 45.0), ("rotY", -45.0, 45.0)),
        ),
    ]


def go2() -> Robot:
    """Return a quadruped of 15 kg, legs 0.43 m long."""
    base = (Shape((0.376, 0.094, 0.114)), Shape((0.046,), (0.3, 0.0, 0.0)))
    bodies = [Body("base", 6.9, base)]
    for front, along in (("F", 1.0), ("R", -1.0)):
        for side, sign in (("L", 1.0), ("R", -1.0)):
            bodies += _go2_leg(f"{front}{side}", along, sign)
    return Robot("go2", tuple(bodies), armature=0.01)


def _go2_leg(leg: str, along: float, sign: float) -> list[Body]:
    """Return hip, thigh, calf and foot; the hind thighs turn further to the front than the fore ones."""
    thigh = ("rotY", -90.0, 200.0) if along > 0 else ("rotY", -30.0, 260.0)
    return [
        Body(
            f"{leg}_hip",
            0.68,
            (Shape((0.046, 0.04), (0.0, sign * 0.06, 0.0), "Y", collides=False),),
            "base",
            (along * 0.193, sign * 0.047, 0.0),
            joint=f"{leg}_hip_joint",
            axes=(("rotX", -60.0, 60.0),),
        ),
        Body(
            f"{leg}_thigh",
            1.15,
            (Shape((0.025, 0.12), (0.0, 0.0, -0.09)),),
            f"{leg}_hip",
            (0.0, sign * 0.0955, 0.0),
            joint=f"{leg}_thigh_joint",
            axes=(thigh,),
        ),
        Body(
            f"{leg}_calf",
            0.24,
            (Shape((0.014, 0.12), (0.0, 0.0, -0.1)),),
            f"{leg}_thigh",
            (0.0, 0.0, -0.213),
            joint=f"{leg}_calf_joint",
            axes=(("rotY", -156.0, -48.0),),
        ),
        Body(f"{leg}_foot", 0.04, (Shape((0.022,)),), f"{leg}_calf", (0.0, 0.0, -0.213)),
    ]


# Link, mass [kg], place of its joint in the link before [m], turn about x [degrees], middle [m], limits [degrees].
_ARM = (
    (1, 4.9, (0.0, 0.0, 0.333), 0.0, (0.0, 0.0, -0.08), (-166.0, 166.0)),
    (2, 0.7, (0.0, 0.0, 0.0), -90.0, (0.0, -0.08, 0.0), (-101.0, 101.0)),
    (3, 3.2, (0.0, -0.316, 0.0), 90.0, (0.03, 0.0, -0.07), (-166.0, 166.0)),
    (4, 3.6, (0.0825, 0.0, 0.0), 90.0, (-0.05, 0.06, 0.0), (-176.0, -4.0)),
    (5, 1.2, (-0.0825, 0.384, 0.0), -90.0, (0.0, 0.03, -0.12), (-166.0, 166.0)),
    (6, 1.7, (0.0, 0.0, 0.0), 90.0, (0.06, -0.01, 0.0), (-1.0, 215.0)),
    (7, 0.7, (0.088, 0.0, 0.0), 90.0, (0.0, 0.0, 0.06), (-166.0, 166.0)),
)


def franka() -> Robot:
    """Return an arm of seven joints and 19 kg with a hand; nothing couples its two fingers."""
    bodies = [Body("panda_link0", 2.8, (Shape((0.12, 0.12, 0.1), (0.0, 0.0, 0.08)),))]
    for link, mass, at, turn, middle, (low, high) in _ARM:
        shape = Shape((0.06,) if link < 5 else (0.045,), middle)
        parent, joint = f"panda_link{link - 1}", f"panda_joint{link}"
        axes = (("rotZ", low, high),)
        bodies.append(Body(f"panda_link{link}", mass, (shape,), parent, at, ("X", turn), joint, axes, stiffness=400.0))
    palm = Shape((0.06, 0.2, 0.06), (0.0, 0.0, 0.03))
    bodies.append(Body("panda_hand", 0.73, (palm,), "panda_link7", (0.0, 0.0, 0.107), ("Z", -45.0)))
    for side, half_turn, joint in (("left", 0.0, 1), ("right", 180.0, 2)):
        bodies.append(
            Body(
                f"panda_{side}finger",
                0.05,
                (Shape((0.02, 0.015, 0.05), (0.0, 0.008, 0.03)),),
                "panda_hand",
                (0.0, 0.0, 0.0584),
                ("Z", half_turn),
                f"panda_finger_joint{joint}",
                (("transY", 0.0, 0.04),),
                stiffness=1000.0,
            )
        )
    # The real file has other gains per engine; these have their colliders in both variants.
    variants = (("Physics", ("physx", "mujoco")), ("Colliders", ("primitives", "gripper_only")))
    return Robot("panda", tuple(bodies), fixed=True, armature=0.1, variants=variants)


STAND_INS = {
    f"{NUCLEUS}/Classic/Cartpole/cartpole.usd": cart(pendulum=False),
    f"{NUCLEUS}/Classic/CartDoublePendulum/cart_double_pendulum.usd": cart(pendulum=True),
    "Isaac/Robots/IsaacSim/Humanoid/humanoid_instanceable.usd": humanoid(),
    f"{NUCLEUS}/Unitree/Go2/go2.usd": go2(),
    f"{NUCLEUS}/FrankaEmika/franka_panda.usda": franka(),
}
"""Path under the asset root -> robot."""
