"""Make a small local asset root for Isaac Lab's stock tasks, so that nothing is fetched: ``assets.py FOLDER``.

The ant is Newton's (Apache-2.0), copied from the installed package; the ground plane is written here; the other robots
are stand-ins by shape and mass, not the real ones (``stand_ins.py``).
"""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from stand_in_usd import save_robot
from stand_ins import STAND_INS

ANT = "Isaac/Robots/IsaacSim/Ant/ant_instanceable.usd"
GROUND = "Isaac/IsaacLab/Environments/Grid/default_ground_plane_checker_v1/default_ground_plane.usda"
# Isaac Lab scales the Xform `Environment`, rewrites `st` of its mesh, and binds a material to the prim of type Plane.
GROUND_TEXT = """#usda 1.0
(
    defaultPrim = "Root"
    metersPerUnit = 1
    upAxis = "Z"
)

def Xform "Root"
{
    def Xform "Environment"
    {
        float3 xformOp:scale = (1, 1, 1)
        uniform token[] xformOpOrder = ["xformOp:scale"]

        def Mesh "Geometry"
        {
            int[] faceVertexCounts = [4]
            int[] faceVertexIndices = [0, 1, 2, 3]
            normal3f[] normals = [(0, 0, 1), (0, 0, 1), (0, 0, 1), (0, 0, 1)]
            point3f[] points = [(-50, -50, 0), (50, -50, 0), (50, 50, 0), (-50, 50, 0)]
            texCoord2f[] primvars:st = [(-25, -25), (25, -25), (25, 25), (-25, 25)] (
                interpolation = "vertex"
            )
        }
    }

    def Plane "CollisionPlane" (
        prepend apiSchemas = ["PhysicsCollisionAPI"]
    )
    {
        uniform token axis = "Z"
        uniform token purpose = "guide"
    }
}
"""


def write_assets(root: Path) -> None:
    """Fill ``root`` as the environment variable ISAACSIM_ASSET_ROOT expects it."""
    newton = find_spec("newton")
    assert newton is not None, "newton is not installed in this environment"
    assert newton.origin is not None
    ant, ground = root / ANT, root / GROUND
    ant.parent.mkdir(parents=True, exist_ok=True)
    ground.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(newton.origin).parent / "examples" / "assets" / "ant.usda", ant)
    ground.write_text(GROUND_TEXT)
    for path, robot in STAND_INS.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        save_robot(robot, root / path)


if __name__ == "__main__":
    write_assets(Path(sys.argv[1]))
