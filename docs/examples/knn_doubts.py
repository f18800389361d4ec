"""For how many particles the neighbour search on a GPU has to look further: its bounds, worked out in float64 on a CPU.

    python docs/examples/knn_doubts.py

Particles are the states of 256 robots over 256 steps, stored robot by robot or step by step, with random actions or
with none; the features of a task, and its observations as an example of many features.
"""

from __future__ import annotations

import torch

from myriad_lab.functional.knn_parts import Layout
from myriad_lab.functional.knn_triton import SPARE, _group_size
from myriad_lab.tasks.registry import make_env

TASKS = ("Myriad-PointMaze-Maze", "Myriad-Ant", "Myriad-AntMaze-Maze", "Myriad-Velocity-Quadruped", "Myriad-Humanoid")
ROBOTS, STEPS, QUERIES, K = 256, 256, 256, 5


def collect(task: str, size: float) -> dict[str, torch.Tensor]:
    """Return features and observations, (ROBOTS, STEPS, d), under uniformly random actions up to ``size``."""
    env = make_env(task, num_envs=ROBOTS, seed=0)
    draw, found = torch.Generator().manual_seed(0), []
    env.reset()
    for _ in range(STEPS):
        actions = size * (2.0 * torch.rand(ROBOTS, env.num_actions, generator=draw) - 1.0)
        found.append(env.step(actions)[0].clone())
    env.close()
    return {name: torch.stack([obs[name] for obs in found], 1) for name in ("features", "policy")}


def doubts(points: torch.Tensor) -> tuple[float, float]:
    """Return which share of points (n, d) is in doubt about its neighbours, and groups looked into for a point."""
    layout, kept = Layout.of(points.shape[1]), K + SPARE + 1
    group = _group_size(len(points), points.shape[1], kept)
    centre = points[:: len(points) // 1024].median(0).values
    rows = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:QUERIES]
    others = (points - centre).double()
    queries, sizes = others[rows], others.norm(dim=1)
    products = sizes.square() - 2.0 * queries @ others.T
    squared = (products + sizes[rows].square().unsqueeze(1)).clamp_min(0.0)
    squared[torch.arange(QUERIES), rows] = torch.inf
    error = layout.cross_error * sizes[rows].unsqueeze(1) * sizes + layout.rounding * sizes.square()
    bounds = (products - error).unflatten(1, (-1, group)).amin(2)
    nearest = bounds.topk(kept, largest=False)
    members = squared.unflatten(1, (-1, group)).gather(1, nearest.indices.unsqueeze(2).expand(-1, -1, group))
    kth = members.flatten(1).topk(K, largest=False).values.amax(1)
    limits = (1.0 + layout.rounding) * kth - (1.0 - layout.rounding) * sizes[rows].square()
    doubtful = (limits >= nearest.values.amax(1)) & (kth > 0.0)
    visits = (bounds <= limits.unsqueeze(1)).sum(1) * doubtful
    return doubtful.double().mean().item(), visits.double().mean().item()


def main() -> None:
    print("| task | actions | d | parts | in doubt, by robot | groups | in doubt, by step | groups |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for task in TASKS:
        for actions, size in (("random", 1.0), ("none", 0.0)):
            for states in collect(task, size).values():
                orders = (states.flatten(0, 1), states.transpose(0, 1).flatten(0, 1))
                figures = " | ".join("{:.1%} | {:.1f}".format(*doubts(points.float())) for points in orders)
                dim = states.shape[2]
                print(f"| {task} | {actions} | {dim} | {Layout.of(dim).parts} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
