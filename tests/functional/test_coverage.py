"""Cells visited and shares of the reachable ones."""

from __future__ import annotations

import pytest
import torch

from myriad_lab.errors import ConfigurationError
from myriad_lab.functional.coverage import coverage, visited_cells

EXTENT = (-2.0, 2.0, 0.0, 8.0)


def test_cells_are_x_first_and_borders_belong_inside():
    points = torch.tensor([[-2.0, 0.0], [2.0, 8.0], [0.5, 1.0], [0.6, 1.9], [2.1, 1.0], [0.0, torch.nan]])
    found = visited_cells(points, EXTENT, cells=4)
    assert found.nonzero().tolist() == [[0, 0], [2, 0], [3, 3]]


def test_agrees_with_the_cell_of_every_centre():
    centres = torch.cartesian_prod(torch.arange(50) + 0.5, torch.arange(50) + 0.5) / 50
    points = centres * torch.tensor([4.0, 8.0]) + torch.tensor([-2.0, 0.0])
    assert visited_cells(points.view(50, 50, 2), EXTENT).all()
    assert visited_cells(points[7:8], EXTENT).nonzero().tolist() == [[0, 7]]


def test_share_of_the_reachable():
    reachable = torch.tensor([[True, True], [True, False]])
    visited = torch.tensor([[[True, False], [False, True]], [[True, True], [True, True]]])
    assert coverage(visited, reachable).tolist() == pytest.approx([1 / 3, 1.0])
    assert coverage(visited[0], torch.zeros(2, 2, dtype=torch.bool)).item() == 0.0


def test_bad_input():
    with pytest.raises(ConfigurationError, match="x_min"):
        visited_cells(torch.zeros(1, 2), (2.0, -2.0, 0.0, 1.0))
    with pytest.raises(ConfigurationError, match="last axis"):
        visited_cells(torch.zeros(3, 1), EXTENT)
    with pytest.raises(ConfigurationError, match="do not match"):
        coverage(torch.zeros(3, 3, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool))
