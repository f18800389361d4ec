"""Rotations of batched vectors; quaternions are w, x, y, z and of unit length."""

from __future__ import annotations

import functools

import torch


def rotation_matrix(quat: torch.Tensor) -> torch.Tensor:
    """Return the matrices (n, 3, 3) that take body vectors to the world, for ``quat`` (n, 4).

    Every entry is a sum of products of two components, so one small matrix product makes them all: tasks call this at
    every step, and the number of operations is what it costs.
    """
    coefficients, identity = _matrix_coefficients(quat.dtype, quat.device)
    products = (quat.unsqueeze(2) * quat.unsqueeze(1)).flatten(1)
    return torch.addmm(identity, products, coefficients).view(-1, 3, 3)


@functools.cache
def _matrix_coefficients(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (16, 9) coefficients of the products ``q_i q_j`` (w, x, y, z) in the entries, and the identity (9,)."""
    w, x, y, z = range(4)
    entries: dict[tuple[int, int], tuple[tuple[int, int, float], ...]] = {
        (0, 0): ((y, y, -2.0), (z, z, -2.0)),
        (1, 1): ((x, x, -2.0), (z, z, -2.0)),
        (2, 2): ((x, x, -2.0), (y, y, -2.0)),
        (0, 1): ((x, y, 2.0), (w, z, -2.0)),
        (1, 0): ((x, y, 2.0), (w, z, 2.0)),
        (0, 2): ((x, z, 2.0), (w, y, 2.0)),
        (2, 0): ((x, z, 2.0), (w, y, -2.0)),
        (1, 2): ((y, z, 2.0), (w, x, -2.0)),
        (2, 1): ((y, z, 2.0), (w, x, 2.0)),
    }
    coefficients = torch.zeros(16, 9, dtype=dtype)
    for (row, column), products in entries.items():
        for i, j, factor in products:
            coefficients[4 * i + j, 3 * row + column] = factor
    return coefficients.to(device), torch.eye(3, dtype=dtype, device=device).flatten()


def quat_rotate_inverse(quat: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Rotate ``vector`` (..., 3) from the world to the body frame by ``quat`` (..., 4), broadcasting."""
    w, axis = quat[..., :1], quat[..., 1:]
    twice = 2.0 * torch.linalg.cross(axis, vector)
    return vector - w * twice + torch.linalg.cross(axis, twice)


def quat_from_yaw(yaw: torch.Tensor) -> torch.Tensor:
    """Return the quaternion (..., 4) of a rotation by ``yaw`` [rad] (...,) about the z axis."""
    half = 0.5 * yaw
    zero = torch.zeros_like(half)
    return torch.stack((half.cos(), zero, zero, half.sin()), dim=-1)
