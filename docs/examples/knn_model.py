"""The exact neighbour search on an H200, on paper: the time of its parts, from constants and from the code's sizes.

    python docs/examples/knn_model.py

Nothing here was measured on a GPU; docs/performance.md says where each constant is from.
"""

from __future__ import annotations

from myriad_lab.functional.knn_parts import PADDED_TO, Layout
from myriad_lab.functional.knn_triton import SPARE, _group_size

TENSOR = 0.8 * 989e12  # of bfloat16 products and sums per second, published, a fifth off
LANES = 132 * 128 * 1.98e9  # operations of a lane per second: multiprocessors, lanes, clock
MEMORY = 0.9 * 4.8e12  # bytes per second, published, a tenth off
CACHE = 5.5e12  # bytes per second from the L2 cache to all multiprocessors, assumed
LOOP = {16: 260, 32: 267, 64: 286, 128: 294}  # instructions of a thread for 64 pairs, by columns of the factors
READS = 6  # of each bound by torch.topk: four histograms by radix, two gathers
SELECTION = 4  # operations of the floor for a pair

K = 5
SEARCHES = (
    *((4096, 65_536, dim) for dim in (2, 8, 32, 64, 128)),
    *((4096, 10**6, dim) for dim in (8, 16, 32, 64, 128)),
    (32_768, 10**6, 64),
    (16_384, 5 * 10**6, 64),
)


def floor(queries: int, points: int, dim: int) -> float:
    """Return the least time of an exhaustive search [s]: one product in bfloat16, or a look at every distance."""
    pairs = queries * points
    return max(2 * pairs * dim / TENSOR, SELECTION * pairs / LANES)


def parts(queries: int, points: int, dim: int, k: int) -> dict[str, float]:
    """Return the time of each part [s]."""
    width, pairs = Layout.of(dim).width, queries * points
    kept = k + SPARE
    group = _group_size(points, dim, kept)
    loop = LOOP[width]
    read = queries / PADDED_TO * points * (2 * width + 8)
    bounds = max(2 * pairs * width / TENSOR, loop / 64 * pairs / LANES, read / CACHE)
    prepare = points * (3 * 4 * dim + 4 * dim + 2 * width + 8)  # values that are not finite; parts, norms
    members = 4 * queries * kept * group * (dim + 1 + READS)
    return {
        "prepare": prepare / MEMORY,
        "bounds": bounds,
        "topk": 4 * pairs / group * (1 + READS) / MEMORY,
        "members": members / MEMORY,
    }


def main() -> None:
    names = tuple(parts(1, 1, 1, 1))
    head = ("queries", "points", "d", "parts", "columns", "group", "floor ms", *(f"{name} ms" for name in names))
    print(f"| {' | '.join(head)} | sum ms | x floor |\n|" + " --- |" * (2 + len(head)))
    for queries, points, dim in SEARCHES:
        layout, times = Layout.of(dim), parts(queries, points, dim, K)
        least, most, group = floor(queries, points, dim), sum(times.values()), _group_size(points, dim, K + SPARE)
        shape = f"{queries} | {points} | {dim} | {layout.parts} | {layout.width} | {group}"
        figures = " | ".join(f"{1e3 * time:.2f}" for time in (least, *times.values(), most))
        print(f"| {shape} | {figures} | {most / least:.1f} |")


if __name__ == "__main__":
    main()
