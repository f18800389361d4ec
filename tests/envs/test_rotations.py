"""Rotations against scipy, whose quaternions are x, y, z, w."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from myriad_lab.envs.rotations import quat_from_yaw, quat_rotate_inverse, rotation_matrix

scipy_transform = pytest.importorskip("scipy.spatial.transform")


@pytest.fixture
def reference():
    return scipy_transform.Rotation.random(64, random_state=0)


@pytest.fixture
def quat(reference) -> torch.Tensor:
    x, y, z, w = reference.as_quat().T
    return torch.from_numpy(np.stack((w, x, y, z), axis=1))


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_matrix(reference, quat):
    torch.testing.assert_close(rotation_matrix(quat), torch.from_numpy(reference.as_matrix()))


def test_inverse(reference, quat, vectors):
    expected = torch.from_numpy(reference.inv().apply(vectors.numpy()))
    torch.testing.assert_close(quat_rotate_inverse(quat, vectors), expected)


def test_broadcast_over_several_vectors(quat, vectors):
    pair = torch.stack((vectors, -2.0 * vectors), dim=1)
    rotated = quat_rotate_inverse(quat.unsqueeze(1), pair)
    torch.testing.assert_close(rotated[:, 1], -2.0 * quat_rotate_inverse(quat, vectors))


def test_yaw_turns_x_towards_y():
    quat = quat_from_yaw(torch.tensor([torch.pi / 2, torch.pi]))
    turned = rotation_matrix(quat)[:, :, 0]
    torch.testing.assert_close(turned, torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]), atol=1e-6, rtol=0)
