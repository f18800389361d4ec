"""Neighbour search: against the floor of the exhaustive search, and against the bare libraries on the same arrays."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from myriad_lab.cli.benchmarks.line import BenchmarkLine, Case, Timing, Work, in_turns, measure
from myriad_lab.cli.benchmarks.memory import PeakMemory
from myriad_lab.functional.entropy import particle_rewards
from myriad_lab.functional.knn import knn
from myriad_lab.functional.knn_dense import full_precision

K = 5
WALK = 32
"""Particles of a trajectory: the data are random walks, as in pre-training."""
MAX_PAIRS = {"cpu": 2**28, "cuda": 2**37}
"""Pairs beyond which, in more than three dimensions, only a part of the points are queries, for everybody alike."""
EXHAUSTIVE_PAIRS = {"cpu": 2**32, "cuda": 2**37}
"""Pairs beyond which the exhaustive libraries are left out."""
TILE = {"cpu": 2**28, "cuda": 2**31}
"""Distances that ``torch.cdist`` writes at once; with every tile it copies all points."""
FAR = 4.0
"""Works that take so many times as long as the fastest are timed once."""
OURS = "knn"
"""Name of our search among those it is compared with."""
TREES_MAX_DIM = 16
"""Features up to which trees are compared with: beyond, they look at most of the points, one by one."""
CHECKED = 64
"""Queries whose neighbours are looked up in double precision, too."""
SELECTION = 4
"""Operations of a GPU's lane for each distance beside the products: add the norm, compare, rarely keep."""


class Search(NamedTuple):
    """A search that is timed."""

    num_queries: int
    """Queries; all points, each without itself, where there are as many."""
    num_points: int
    """References."""
    dim: int
    """Features."""
    k: int = K
    """Neighbours."""


class Rates(NamedTuple):
    """What the device reaches in something simple: the floor of an exhaustive search is made of them."""

    flops: float
    """Products and sums of a large matmul [1/s], float32 on a CPU, bfloat16 on a GPU."""
    looks: float
    """Distances that can be looked at [1/s]."""
    bytes: float
    """Memory read and written by a copy [B/s]."""


def cases(device: str, quick: bool) -> list[Case]:
    """Return a case for each size and dimension, beside the floor and the fastest bare library, and the rewards.

    Args:
        device: Device of the particles.
        quick: Two small sizes only.
    """
    rates = functools.cache(lambda: Rates(_peak_flops(device), _peak_looks(device), _peak_bytes(device)))
    found = [Case(_name(search), lambda s=search: _size(s, device, rates())) for search in searches(device, quick)]
    return [*found, Case("rewards of a rollout", lambda: _rewards(4096 if quick else 16_384, device))]


def searches(device: str, quick: bool) -> list[Search]:
    """Return what is timed on a device: pools of particles on both, larger ones and batches of queries on a GPU."""
    if quick:
        return [Search(4096, 4096, dim) for dim in (2, 8)]
    kind, sizes, dims = "cpu", (4096, 16_384, 65_536), (2, 3, 8, 32)
    if torch.device(device).type == "cuda":
        kind, sizes = "cuda", (4096, 65_536, 2**20)
    found = []
    for num_points in sizes:
        for dim in dims:
            most = num_points if dim <= 3 else min(num_points, MAX_PAIRS[kind] // num_points)
            found.append(Search(most, num_points, dim))
    million = [(4096, 10**6, dim) for dim in (32, 64, 128)]
    if kind == "cpu":
        found += [Search(4096, 65_536, dim, k) for dim, k in ((32, 12), (64, 5), (64, 12), (128, 5))]
        found += [Search(*size) for size in million]
    else:
        large = [(4096, 65_536, 64), *million, (16_384, 5 * 10**6, 64), (32_768, 10**6, 64)]
        found += [Search(*size, k) for size in large for k in (K, 12)]
    return found


def walks(num_points: int, dim: int, device: str) -> torch.Tensor:
    """Return the states of random walks with steps of 0.25, shape (num_points, dim)."""
    generator = torch.Generator().manual_seed(0)
    steps = 0.25 * torch.randn(num_points // WALK, WALK, dim, generator=generator)
    return steps.cumsum(dim=1).flatten(0, 1).to(device)


def floor(search: Search, rates: Rates) -> float:
    """Return the time that an exhaustive search cannot go below [s]: products, selection, or reading and writing."""
    pairs = search.num_queries * search.num_points
    moved = 4.0 * (search.num_queries + search.num_points) * search.dim + 12.0 * search.num_queries * search.k
    return max(2.0 * pairs * search.dim / rates.flops, pairs / rates.looks, moved / rates.bytes)


def _size(search: Search, device: str, rates: Rates) -> list[BenchmarkLine]:
    count, num_points, dim, k = search
    points = walks(num_points, dim, device)
    part = points[torch.randperm(num_points, generator=torch.Generator().manual_seed(1))[:count].to(device)]
    queries, exclude = (points, "self") if count == num_points else (part, "none")
    with PeakMemory(device) as peak:
        _, near = knn(queries, points, k, exclude=exclude)
    # The libraries find the point itself too.
    works = _peers(queries, points, k + (exclude == "self"), device)
    timings = _compared({OURS: lambda: knn(queries, points, k, exclude=exclude), **works}, device)
    median, tail = timings.pop(OURS)
    pairs = count * num_points
    found = recall(queries, points, near, exclude == "self")
    note = f"{pairs / median / 1e9:.2f} G pairs/s, {2e-12 * pairs * dim / median:.3g} TFLOP/s, recall {found:.4g}"
    peers = {name: timing.median_s for name, timing in timings.items()}
    best = min(peers, key=lambda name: peers[name], default=None)
    others = "".join(f"; {name} {1000 * seconds:.1f} ms" for name, seconds in peers.items())
    return [
        BenchmarkLine(
            f"k-NN, d={dim}", _name(search), median, tail, floor(search, rates), "exhaustive search",
            None if best is None else peers[best], "" if best is None else f"bare {best}", peak.num_bytes,
            num_points, "points", note + others,
        )
    ]  # fmt: skip


def recall(queries: torch.Tensor, points: torch.Tensor, indices: torch.Tensor, own_row: bool) -> float:
    """Return which share of some queries' neighbours is no further than those that double precision finds.

    Args:
        queries: Shape (n, d).
        points: Shape (m, d).
        indices: The neighbours that were found, (n, k); one that is named twice counts once.
        own_row: Whether query i is point i, which is not its neighbour.
    """
    num_neighbours = indices.shape[1]
    rows = torch.linspace(0, len(queries) - 1, min(CHECKED, len(queries)), device=queries.device).long()
    exact, right = points.double(), 0.0
    for row in rows:
        squared = (exact - queries[row].double()).square().sum(dim=1)
        if own_row:
            squared[row] = torch.inf
        farthest = squared.topk(num_neighbours, largest=False).values.amax()
        right += float((squared[indices[row].unique()] <= farthest * (1.0 + 1e-6)).double().sum()) / num_neighbours
    return right / len(rows)


def _name(search: Search) -> str:
    return f"{search.num_queries} of {search.num_points} points, d={search.dim}, k={search.k}"


def _rewards(num_points: int, device: str) -> list[BenchmarkLine]:
    """Time the rewards of one rollout against the bare search they need."""
    points = walks(num_points, 2, device)
    ids = torch.arange(num_points // WALK, device=device).repeat_interleave(WALK)
    bare, works = _peers(points, points, K + 1, device), {}
    for kind, exclude in (("own", False), ("mepol", False), ("own", True)):
        name = f"particle rewards, {kind}" + (", other trajectories" if exclude else "")
        options = {"trajectory_ids": ids, "exclude_own_trajectory": exclude}
        works[name] = functools.partial(particle_rewards, points, K, kind, **options)
    timings = _compared(works | bare, device)
    best = min(bare, key=lambda name: timings[name].median_s)
    lines = []
    for name in works:
        note = "the search alone" + (", own trajectory included" if name.endswith("other trajectories") else "")
        size, peer = f"{num_points} points, d=2", (timings[best].median_s, f"bare {best}")
        lines.append(BenchmarkLine(name, size, *timings[name], None, "", *peer, None, num_points, "points", note))
    return lines


def _peers(queries: torch.Tensor, points: torch.Tensor, k: int, device: str) -> dict[str, Callable[[], object]]:
    """Return the bare libraries' ways to the ``k`` nearest points."""
    kind = torch.device(device).type
    exhaustive = len(queries) * len(points) <= EXHAUSTIVE_PAIRS[kind]

    def brute() -> None:
        for rows in queries.split(max(1, min(1024, TILE[kind] // len(points)))):
            torch.cdist(rows, points).topk(k, dim=1, largest=False)

    peers: dict[str, Callable[[], object]] = {}
    if exhaustive:
        peers["torch cdist + topk"] = brute
    if kind == "cpu":
        from scipy import spatial

        data, wanted, threads = points.numpy(), queries.numpy(), torch.get_num_threads()
        if data.shape[1] <= TREES_MAX_DIM:
            peers["scipy KDTree"] = lambda: spatial.KDTree(data).query(wanted, k=k, workers=threads)
        peers |= _optional_peers(data, wanted, k, threads, exhaustive)
    elif exhaustive and importlib.util.find_spec("faiss"):
        peers |= _faiss_on_gpu(queries, points, k)
    return peers


def _optional_peers(data: Any, wanted: Any, k: int, threads: int, exhaustive: bool) -> dict[str, Callable[[], object]]:
    """Return the libraries that are compared with where they are installed: scikit-learn, faiss-cpu."""
    peers: dict[str, Callable[[], object]] = {}
    if importlib.util.find_spec("sklearn"):
        neighbors = importlib.import_module("sklearn.neighbors")
        fit = {"kd_tree": data.shape[1] <= TREES_MAX_DIM, "brute": exhaustive}
        for algorithm in (name for name, fits in fit.items() if fits):
            search = neighbors.NearestNeighbors(n_neighbors=k, algorithm=algorithm, n_jobs=threads)
            peers[f"scikit-learn {algorithm}"] = lambda search=search: search.fit(data).kneighbors(wanted)
    if exhaustive and importlib.util.find_spec("faiss"):
        faiss = importlib.import_module("faiss")
        faiss.omp_set_num_threads(threads)

        def flat() -> None:
            index = faiss.IndexFlatL2(data.shape[1])
            index.add(data)
            index.search(wanted, k)

        peers["faiss flat"] = flat
    return peers


def _faiss_on_gpu(queries: torch.Tensor, points: torch.Tensor, k: int) -> dict[str, Callable[[], object]]:
    """Return faiss's exhaustive search of arrays on a GPU, where faiss was built for one; written without one."""
    faiss = importlib.import_module("faiss")
    if not hasattr(faiss, "StandardGpuResources"):
        return {}
    importlib.import_module("faiss.contrib.torch_utils")  # so that it takes tensors
    resources = faiss.StandardGpuResources()
    return {"faiss-gpu flat": lambda: faiss.knn_gpu(resources, queries, points, k)}


def _compared(works: Mapping[str, Work], device: str) -> dict[str, Timing]:
    """Time works in turns, but for those that are far slower than the fastest: of them one call is enough."""
    once = {name: measure(work, 1, warmup=1, device=device) for name, work in works.items()}
    near = FAR * min(timing.median_s for timing in once.values())
    return once | in_turns({name: work for name, work in works.items() if once[name].median_s <= near}, device)


def _peak_flops(device: str, dtype: torch.dtype | None = None) -> float:
    """Return the rate of a large matmul [FLOP/s], the fastest of some: float32 on a CPU, bfloat16 on a GPU."""
    on_cpu = torch.device(device).type == "cpu"
    dtype = dtype or (torch.float32 if on_cpu else torch.bfloat16)
    size = 2048 if on_cpu else 8192
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    with full_precision():
        return 2.0 * size**3 / _fastest(lambda: left @ right, device)


def _peak_looks(device: str) -> float:
    """Return how many distances can be looked at [1/s].

    On a CPU by the minimum over a tile that fits into the cache. On a GPU no tile does; there a lane that can multiply
    and add can also do one of the operations of the selection.
    """
    if torch.device(device).type != "cpu":
        return _peak_flops(device, torch.float32) / 2.0 / SELECTION
    rows, columns = 64, 8192
    tile = torch.randn(rows, columns)
    return rows * columns / _fastest(lambda: tile.amin(dim=0), device)


def _peak_bytes(device: str) -> float:
    """Return how much memory can be read and written [B/s], by a copy that no cache holds."""
    source = torch.zeros(2**25 if torch.device(device).type == "cpu" else 2**28, device=device)
    target = torch.empty_like(source)
    return 8.0 * source.numel() / _fastest(lambda: target.copy_(source), device)


def _fastest(work: Callable[[], object], device: str) -> float:
    return min(measure(work, repetitions=1, warmup=1, device=device)[0] for _ in range(8))
