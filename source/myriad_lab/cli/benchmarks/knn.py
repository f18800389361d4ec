"""Neighbour search: against the floor of the exhaustive search, and against the bare libraries on the same arrays."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch

from myriad_lab.cli.benchmarks.line import BenchmarkLine, Case, measure
from myriad_lab.functional.entropy import particle_rewards
from myriad_lab.functional.knn import knn

K = 5
WALK = 32
"""Particles of a trajectory: the data are random walks, as in pre-training."""
MAX_PAIRS = 2**28
"""Most pairs of a size. Beyond it, up to three dimensions, the exhaustive library is left out; in more dimensions only
a part of the points are queries, for everybody alike."""


def cases(device: str, quick: bool) -> list[Case]:
    """Return a case for each size and dimension, beside the floor and the fastest bare library, and the rewards.

    Args:
        device: Device of the particles.
        quick: Two small sizes only.
    """
    sizes = (4096,) if quick else (4096, 16_384, 65_536)
    dims = (2, 8) if quick else (2, 3, 8, 32)
    rates = functools.cache(lambda: (_peak_flops(device), _peak_looks(device)))
    found = [
        Case(f"{num_points} points, d={dim}", lambda n=num_points, d=dim: _size(n, d, device, *rates()))
        for num_points in sizes
        for dim in dims
    ]
    return [*found, Case("rewards of a rollout", lambda: _rewards(4096 if quick else 16_384, device))]


def walks(num_points: int, dim: int, device: str) -> torch.Tensor:
    """Return the states of random walks with steps of 0.25, shape (num_points, dim)."""
    generator = torch.Generator().manual_seed(0)
    steps = 0.25 * torch.randn(num_points // WALK, WALK, dim, generator=generator)
    return steps.cumsum(dim=1).flatten(0, 1).to(device)


def _size(num_points: int, dim: int, device: str, flops: float, looks: float) -> list[BenchmarkLine]:
    points = walks(num_points, dim, device)
    count = num_points if dim <= 3 else min(num_points, MAX_PAIRS // num_points)
    part = points[torch.randperm(num_points, generator=torch.Generator().manual_seed(1))[:count].to(device)]
    queries, exclude = (points, "self") if count == num_points else (part, "none")
    work = lambda: knn(queries, points, K, exclude=exclude)  # noqa: E731
    median, tail = _timed(work, device)
    size = f"{count} of {num_points} points, d={dim}"
    floor = max(2.0 * count * num_points * dim / flops, count * num_points / looks)
    rate = f"{count * num_points / median / 1e9:.2f} G pairs/s"
    peers = {name: _timed(peer, device)[0] for name, peer in _peers(queries, points, device).items()}
    best = min(peers, key=lambda name: peers[name])
    others = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in peers.items())
    return [
        BenchmarkLine(
            f"k-NN, d={dim}", size, median, tail, floor, "exhaustive search", peers[best], f"bare {best}", None,
            num_points, "points", f"k={K}, {rate}; {others}",
        )
    ]  # fmt: skip


def _rewards(num_points: int, device: str) -> list[BenchmarkLine]:
    """Time the rewards of one rollout against the bare search they need."""
    points = walks(num_points, 2, device)
    ids = torch.arange(num_points // WALK, device=device).repeat_interleave(WALK)
    peers = {name: _timed(peer, device)[0] for name, peer in _peers(points, points, device).items()}
    best = min(peers, key=lambda name: peers[name])
    lines = []
    for kind, exclude in (("own", False), ("mepol", False), ("own", True)):
        median, tail = _timed(
            lambda kind=kind, exclude=exclude: particle_rewards(
                points, K, kind, trajectory_ids=ids, exclude_own_trajectory=exclude
            ),
            device,
        )
        name = f"particle rewards, {kind}" + (", other trajectories" if exclude else "")
        note = "the search alone, own trajectory included" if exclude else "the search alone"
        size, peer = f"{num_points} points, d=2", f"bare {best}"
        line = BenchmarkLine(name, size, median, tail, None, "", peers[best], peer, None, num_points, "points", note)
        lines.append(line)
    return lines


def _peers(queries: torch.Tensor, points: torch.Tensor, device: str) -> dict[str, Callable[[], object]]:
    """Return the bare libraries' way to the same neighbours, the point itself included."""

    def brute() -> None:
        for rows in queries.split(1024):
            torch.cdist(rows, points).topk(K + 1, dim=1, largest=False)

    peers: dict[str, Callable[[], object]] = {}
    if len(queries) * len(points) <= MAX_PAIRS:
        peers["torch cdist + topk"] = brute
    if torch.device(device).type == "cpu":
        from scipy import spatial

        data, wanted = points.numpy(), queries.numpy()
        threads = torch.get_num_threads()
        peers["scipy KDTree"] = lambda: spatial.KDTree(data).query(wanted, k=K + 1, workers=threads)
        peers |= _optional_peers(data, wanted, threads)
    return peers


def _optional_peers(data: Any, wanted: Any, threads: int) -> dict[str, Callable[[], object]]:
    """Return the libraries that are compared with where they are installed: scikit-learn, faiss-cpu."""
    peers: dict[str, Callable[[], object]] = {}
    if importlib.util.find_spec("sklearn"):
        neighbors = importlib.import_module("sklearn.neighbors")
        for algorithm in ("kd_tree", "brute"):
            if algorithm == "brute" and len(data) * len(wanted) > MAX_PAIRS:
                continue
            search = neighbors.NearestNeighbors(n_neighbors=K + 1, algorithm=algorithm, n_jobs=threads)
            peers[f"scikit-learn {algorithm}"] = lambda search=search: search.fit(data).kneighbors(wanted)
    if importlib.util.find_spec("faiss") and len(data) * len(wanted) <= MAX_PAIRS:
        faiss = importlib.import_module("faiss")
        faiss.omp_set_num_threads(threads)

        def flat() -> None:
            index = faiss.IndexFlatL2(data.shape[1])
            index.add(data)
            index.search(wanted, K + 1)

        peers["faiss flat"] = flat
    return peers


def _timed(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Measure with as many repetitions as fit into about two seconds, 2 to 20."""
    start = time.perf_counter()
    work()
    once = time.perf_counter() - start
    return measure(work, repetitions=max(2, min(20, int(2.0 / max(once, 1e-4)))), warmup=0, device=device)


def _peak_flops(device: str) -> float:
    """Return the rate of a large float32 matmul [FLOP/s], the fastest of some."""
    size = 2048 if torch.device(device).type == "cpu" else 8192
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    return 2.0 * size**3 / _fastest(lambda: left @ right, device)


def _peak_looks(device: str) -> float:
    """Return how many distances can be looked at once [1/s], by the minimum over a tile that fits into the cache."""
    rows, columns = (64, 8192) if torch.device(device).type == "cpu" else (8192, 8192)
    tile = torch.randn(rows, columns, device=device)
    return rows * columns / _fastest(lambda: tile.amin(dim=0), device)


def _fastest(work: Callable[[], object], device: str) -> float:
    return min(measure(work, repetitions=1, warmup=1, device=device)[0] for _ in range(8))
