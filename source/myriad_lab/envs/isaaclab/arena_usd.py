"""An arena as static USD colliders: ground and walls, in the frame of the prim that holds them."""

from __future__ import annotations

import numpy as np
from pxr import Gf, Sdf, Usd, UsdGeom, UsdPhysics, UsdShade, Vt

from myriad_lab.envs.arena import Arena, HeightField
from myriad_lab.envs.isaaclab.robot_usd import make_collider, write_material

_GROUND_COLOR = Gf.Vec3f(0.7, 0.7, 0.72)
_BOX_COLOR = Gf.Vec3f(0.45, 0.5, 0.6)


def write_arena(stage: Usd.Stage, prim_path: str, arena: Arena, *, ground: bool = True) -> None:
    """Write the ground, if it is asked for, and the boxes under the prim ``prim_path``, which must be there."""
    material = write_material(stage, f"{prim_path}/material")
    if ground and arena.height_field is None:
        _write_plane(stage, f"{prim_path}/ground", arena, material)
    elif ground and arena.height_field is not None:
        _write_terrain(stage, f"{prim_path}/ground", arena, arena.height_field, material)
    for index, box in enumerate(arena.boxes):
        cube = UsdGeom.Cube.Define(stage, f"{prim_path}/box_{index}")
        cube.CreateSizeAttr(2.0)
        half = box.height / 2
        cube.AddTranslateOp().Set(Gf.Vec3d(*box.center, half))
        cube.AddScaleOp().Set(Gf.Vec3f(*box.half_size, half))
        cube.CreateDisplayColorAttr([_BOX_COLOR])
        make_collider(cube.GetPrim(), material)


def _write_plane(stage: Usd.Stage, path: str, arena: Arena, material: UsdShade.Material) -> None:
    """Define flat ground; it is drawn over the extent and collides everywhere."""
    plane = UsdGeom.Plane.Define(stage, path)
    plane.CreateAxisAttr(UsdGeom.Tokens.z)
    half_x, half_y = arena.half_extent
    plane.CreateWidthAttr(2 * half_x)
    plane.CreateLengthAttr(2 * half_y)
    plane.AddTranslateOp().Set(Gf.Vec3d(*arena.middle, 0.0))
    plane.CreateDisplayColorAttr([_GROUND_COLOR])
    make_collider(plane.GetPrim(), material)


def _write_terrain(stage: Usd.Stage, path: str, arena: Arena, field: HeightField, material: UsdShade.Material) -> None:
    """Define the height field as a mesh of two triangles per cell, all facing up."""
    rows, columns = field.shape
    x_min, x_max, y_min, y_max = arena.extent
    x, y = np.meshgrid(np.linspace(x_min, x_max, columns), np.linspace(y_min, y_max, rows))
    points = np.stack((x, y, np.asarray(field.heights)), axis=-1).reshape(-1, 3)
    node = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = node[:-1, :-1], node[:-1, 1:], node[1:, :-1], node[1:, 1:]
    triangles = np.stack((a, b, c, c, b, d), axis=-1).reshape(-1)
    mesh = UsdGeom.Mesh.Define(stage, path)
    mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(points.astype(np.float32)))
    mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(triangles.astype(np.int32)))
    mesh.CreateFaceVertexCountsAttr(Vt.IntArray(len(triangles) // 3, 3))
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    mesh.CreateDisplayColorAttr([_GROUND_COLOR])
    UsdPhysics.MeshCollisionAPI.Apply(mesh.GetPrim()).CreateApproximationAttr(UsdPhysics.Tokens.none)
    make_collider(mesh.GetPrim(), material)
    # Newton turns a mesh marked so into a height field, where feet do not catch on the edges of triangles.
    spacing = (x_max - x_min) / (columns - 1)
    mark = mesh.GetPrim().CreateAttribute("newton:heightfield:resolution", Sdf.ValueTypeNames.Float, custom=True)
    mark.Set(spacing)
