"""Rotations of batched vectors; quaternions are w, x, y, z and of unit length."""

from __future__ import annotations

import torch


def quat_rotate(quat: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Rotate ``vector`` (..., 3) from the body frame to the world by ``quat`` (..., 4), broadcasting."""
    return _rotate(quat[..., :1], quat[..., 1:], vector)


def quat_rotate_inverse(quat: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Rotate ``vector`` (..., 3) from the world to the body frame by ``quat`` (..., 4), broadcasting."""
    return _rotate(-quat[..., :1], quat[..., 1:], vector)


def yaw_of(quat: torch.Tensor) -> torch.Tensor:
    """Return the heading about the world's z axis [rad], (...,) for ``quat`` (..., 4)."""
    w, x, y, z = quat.unbind(-1)
    return torch.atan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))


def roll_of(quat: torch.Tensor) -> torch.Tensor:
    """Return the roll about the body's x axis [rad], (...,) for ``quat`` (..., 4)."""
    w, x, y, z = quat.unbind(-1)
    return torch.atan2(2.0 * (w * x + y * z), 1.0 - 2.0 * (x * x + y * y))


def quat_from_yaw(yaw: torch.Tensor) -> torch.Tensor:
    """Return the quaternion (..., 4) of a rotation by ``yaw`` [rad] (...,) about the z axis."""
    half = 0.5 * yaw
    zero = torch.zeros_like(half)
    return torch.stack((half.cos(), zero, zero, half.sin()), dim=-1)


def wrap_angle(angle: torch.Tensor) -> torch.Tensor:
    """Return ``angle`` [rad] wrapped into [-pi, pi)."""
    return torch.remainder(angle + torch.pi, 2.0 * torch.pi) - torch.pi


def _rotate(w: torch.Tensor, axis: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    twice = 2.0 * torch.linalg.cross(axis, vector)
    return vector + w * twice + torch.linalg.cross(axis, twice)
