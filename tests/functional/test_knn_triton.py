"""The GPU's neighbour search, run by Triton's interpreter where there is no GPU, and compiled for one without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from myriad_lab.functional.knn import knn
from myriad_lab.functional.masked import park_invalid

from .exact import DEVICE, cloud, exact

triton = pytest.importorskip("triton", reason="Triton has no build for this system")

from myriad_lab.functional import knn_triton  # noqa: E402 - it imports triton
from myriad_lab.functional.knn_triton import fused_search  # noqa: E402


def check(k: int, queries: torch.Tensor, references: torch.Tensor, **kind: Any) -> None:
    """Search and compare with float64."""
    distances, indices = fused_search(queries, references, k, **kind)
    groups = (kind["query_groups"], kind["reference_groups"]) if "query_groups" in kind else None
    wanted, who = exact(queries, references, k, kind.get("own_row", False), groups)
    assert torch.equal(indices, who)
    torch.testing.assert_close(distances.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("num_queries", "num_references", "dim", "k"),
    [(70, 300, 3, 5), (0, 10, 2, 3), (1, 33, 1, 1), (65, 129, 128, 40), (20, 1030, 17, 6), (3, 20, 8, 20)],
)
def test_it_finds_what_float64_finds(num_queries: int, num_references: int, dim: int, k: int) -> None:
    check(k, cloud(1, num_queries, dim, seed=1), cloud(1, num_references, dim))


@pytest.mark.parametrize("rows", [None, 64, 150])
def test_a_query_does_not_see_itself_in_its_cloud(rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if rows is not None:  # at once: so that chunks begin within a cloud, or hold two clouds and then one
        monkeypatch.setattr(knn_triton, "MAX_HELD", rows * (4 + knn_triton.SPARE) * knn_triton.GROUP)
    points = cloud(3, 70, 4)
    check(4, points, points, own_row=True)


def test_a_query_does_not_see_its_group() -> None:
    points = cloud(2, 80, 2)
    groups = torch.arange(160, device=DEVICE).view(2, 80) // 16
    groups = groups.repeat_interleave(2, dim=1)[:, ::2]  # every other number in memory
    rows = slice(20, 50)
    check(4, points[:, rows], points, query_groups=groups[:, rows], reference_groups=groups)


def test_neighbours_that_are_not_there_are_infinitely_far() -> None:
    points = cloud(1, 40, 3)
    groups = torch.zeros(1, 40, dtype=torch.int64, device=DEVICE)
    groups[0, :2] = 1
    distances, indices = fused_search(points, points, 3, query_groups=groups, reference_groups=groups)
    assert torch.isfinite(distances[0, 2:, :2]).all()
    assert distances[0, 2:, 2].tolist() == [torch.inf] * 38
    assert sorted(indices[0, 5].tolist()) == [0, 0, 1]
    assert torch.isfinite(distances[0, :2]).all()


def test_points_in_one_place() -> None:
    points = torch.ones(1, 50, 2, device=DEVICE)
    distances, indices = fused_search(points, points, 5, own_row=True)
    assert distances.abs().max() == 0.0
    assert all(len(set(row)) == 5 and i not in row for i, row in enumerate(indices[0].tolist()))


def test_the_references_are_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many chunks of queries there are: centring a million references costs as much as some chunks do."""
    prepared, prepare = [], knn_triton._Clouds.of
    monkeypatch.setattr(knn_triton._Clouds, "of", lambda *some: prepared.append(len(some[0])) or prepare(*some))
    monkeypatch.setattr(knn_triton, "MAX_HELD", 1)  # a tile of queries at once
    fused_search(cloud(1, 140, 3), cloud(1, 40, 3), 2)
    assert prepared == [1]


def cut(values: torch.Tensor) -> torch.Tensor:
    """Return what tensor cores read of float32: the ten leading bits of the mantissa."""
    return (values.view(torch.int32) & ~0x1FFF).view(torch.float32)


class SplitInThree:
    """The first kernel as tensor cores would run it by tf32x3: as one product of three times as many features."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        def run(left: torch.Tensor, lengths: torch.Tensor, right: torch.Tensor, *rest: Any, **more: Any) -> None:
            parts = [(cut(values), cut(values - cut(values))) for values in (left, right)]
            (high, low), (other_high, other_low) = parts
            more |= {"DIM": 3 * more["DIM"], "WIDTH": 4 * more["WIDTH"]}
            factors = torch.cat([high, high, low], 2), torch.cat([other_high, other_low, other_high], 2)
            self.kernel[grid](factors[0], lengths, factors[1], *rest, **more)

        return run


def pairs(count: int) -> torch.Tensor:
    """Return pairs of points that are close to each other and far from the centre: what rounding confuses first."""
    ends = 3000.0 * torch.nn.functional.normalize(cloud(count // 2, 20, offset=0.0), dim=1)
    near = ends + 1e-3 * torch.nn.functional.normalize(cloud(count // 2, 20, seed=1, offset=0.0), dim=1)
    shades = [
        ends,
        near,
        *(ends + 0.01 * step * cloud(count // 2, 20, seed=2 + step, offset=0.0) for step in range(1, 40)),
    ]
    return torch.cat(shades)


@pytest.mark.skipif(DEVICE == "cuda", reason="emulates what a GPU does")
def test_the_rounding_of_tensor_cores_costs_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    references = pairs(24)[None]
    queries = references[:, :24]
    _, who = exact(queries, references, 2)
    monkeypatch.setattr(knn_triton, "_group_minima", SplitInThree(knn_triton._group_minima))
    monkeypatch.setattr(knn_triton, "SPARE", 0)
    _, indices = fused_search(queries, references, 2)
    assert torch.equal(indices, who)
    # without the bound it would: the test can fail
    monkeypatch.setitem(knn_triton._PRODUCT_ERROR, "tf32x3", -1.0)
    _, indices = fused_search(queries, references, 2)
    assert not torch.equal(indices, who)


@pytest.mark.parametrize("dim", [16, 128])
def test_the_first_kernel_writes_lower_bounds(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU as well, where tensor cores round sums in ways of their own."""
    calls, kernel = [], knn_triton._group_minima

    class Caught:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *values, **more: calls.append(values) or kernel[grid](*values, **more)

    monkeypatch.setattr(knn_triton, "_group_minima", Caught())
    fused_search(cloud(1, 70, dim, seed=1), cloud(1, 640, dim), 3)
    ((left, lengths, right, norms, _, _, bounds, own, cross, *_),) = calls
    values = right.double().square().sum(2).unsqueeze(1) - 2.0 * left.double() @ right.double().mT
    groups = values.unflatten(2, (-1, knn_triton.GROUP)).amin(3)
    largest = own * norms.amax() + cross * lengths.amax() * norms.amax().sqrt()
    assert (bounds <= groups).all()
    assert (groups - bounds).max() < 2.0 * largest


@pytest.fixture
def doubts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Collect the share of queries for which all references are searched again, search by search."""
    shares, search_again = [], knn_triton._search_again

    class Counted:
        def __getitem__(self, grid: Any) -> Any:
            def run(*tensors: Any, **more: Any) -> None:
                shares.append(1.0 - tensors[4].float().mean().item())
                search_again[grid](*tensors, **more)

            return run

    monkeypatch.setattr(knn_triton, "_search_again", Counted())
    return shares


@pytest.mark.parametrize("dim", [17, 64])
def test_few_particles_of_slow_robots_are_in_doubt(
    dim: int, doubts: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trajectories stored step by step: near neighbours, far from the middle, each in a group of its own."""
    draw = torch.Generator().manual_seed(0)
    places, moves = 10.0 * torch.randn(32, dim, generator=draw), torch.randn(64, 32, dim, generator=draw)
    points = (places + moves).flatten(0, 1).to(DEVICE)[None]
    check(20, points[:, ::127], points)
    monkeypatch.setitem(knn_triton._PRODUCT_ERROR, "tf32x3", 2.0**-9)  # that of plain tf32
    check(20, points[:, ::127], points)
    exact_enough, plain = doubts
    assert exact_enough < 0.02
    assert plain > 0.5


@pytest.mark.parametrize("dim", [2, 17])
def test_particles_far_away_leave_the_others_certain(dim: int, doubts: list[float]) -> None:
    """Three in ten broke and are parked: their size is no reason to doubt the distances among the others."""
    points, valid = cloud(1, 32_768, dim, offset=0.0)[0], torch.arange(32_768, device=DEVICE) % 10 > 2
    points = park_invalid(points, valid)[None]
    check(20, points[:, valid][:, ::400], points)
    assert doubts[0] < 0.02


def test_a_query_with_too_few_neighbours_is_certain_of_those(doubts: list[float]) -> None:
    points = cloud(1, 1500, 2)
    groups = torch.zeros(1, 1500, dtype=torch.int64, device=DEVICE)
    groups[0, :3] = 1
    distances, _ = fused_search(points[:, ::50], points, 4, query_groups=groups[:, ::50], reference_groups=groups)
    assert torch.isinf(distances[0, 1:, 3]).all()
    assert doubts == [0.0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("size", [1e18, 1e19, 1e20])
def test_points_whose_squares_are_too_large_lose_no_neighbour(size: float) -> None:
    far, points = 1.0 + 1e-3 * cloud(1, 96, 2, seed=1, offset=0.0), cloud(1, 1200, 2, offset=0.0)
    points[:, :96] = size * far
    for queries in (points[:, :12], points[:, -12:]):
        _, indices = fused_search(queries, points, 3)
        _, who = exact(queries, points, 3)
        near = points.double()[0][indices[0]], points.double()[0][who[0]]
        gaps = [(found - queries.double()[0][:, None]).norm(dim=-1) for found in near]
        torch.testing.assert_close(gaps[0], gaps[1], rtol=1e-3, atol=1e-6)


def test_many_references_do_not_make_too_many_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn_triton, "_MAX_PROGRAMS", 2)
    monkeypatch.setattr(knn_triton, "_TILES", 1)
    check(3, cloud(3, 5, 3, seed=1), cloud(3, 1000, 3))


def test_the_search_of_last_resort_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    points = cloud(2, 70, 5)
    groups = (torch.arange(140, device=DEVICE) // 20).view(2, 70)
    monkeypatch.setitem(knn_triton._PRODUCT_ERROR, "ieee", 1e30)  # nothing is certain
    rows = slice(0, 30)
    check(7, points[:, rows], points, query_groups=groups[:, rows], reference_groups=groups)


COMPILE = """
import json
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from myriad_lab.functional import knn_triton as ours

def compile(kernel, constants, stages=3, **types):
    names = [name for name in kernel.arg_names if name not in constants]
    signature = {name: types.get(name, "*fp32") for name in names} | dict.fromkeys(constants, "constexpr")
    source, options = ASTSource(kernel, signature, constants), {"num_stages": stages}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return {"cubin": len(built.asm["cubin"]), "shared": built.metadata.shared, "wgmma": "wgmma" in built.asm["ptx"]}

numbers = dict.fromkeys(("own_row", "num_queries", "num_references", "num_groups", "kept", "k"), "i32")
numbers |= dict.fromkeys(("own_error", "cross_error"), "fp32")
ids = dict.fromkeys(("query_groups", "reference_groups", "chosen"), "*i64") | {"certain": "*i32"}
out = {}
for dim, precision, exclusion in (
    (2, "ieee", 0), (17, "tf32x3", 1), (17, "tf32x3", 2), (64, "tf32x3", 2), (128, "tf32x3", 2)
):
    shape = {"DIM": dim, "WIDTH": max(16, triton.next_power_of_2(dim)), "EXCLUSION": exclusion}
    grouped = {**shape, "GROUP": ours.GROUP}
    columns, stages = ours._columns_and_stages(shape["WIDTH"])
    tile = {"ROWS": ours._ROWS, "COLUMNS": columns, "TILES": ours._TILES}
    first = {**grouped, **tile, "PRECISION": precision}
    out[f"minima {dim} {exclusion}"] = compile(ours._group_minima, first, stages, **numbers, **ids)
    out[f"distances {dim} {exclusion}"] = compile(ours._group_distances, grouped, **numbers, **ids)
    again = {**shape, "SLOTS": 64, "BLOCK": ours._BLOCK}
    out[f"again {dim} {exclusion}"] = compile(ours._search_again, again, out="*i64", **numbers, **ids)
print(json.dumps(out))
"""


def test_the_kernels_compile_for_a_hopper_gpu() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, built in json.loads(done.stdout.splitlines()[-1]).items():
        assert built["cubin"] > 0, name
        assert 2 * (built["shared"] + 1024) <= 228 * 1024, name  # two programs on a multiprocessor of sm_90
        assert built["wgmma"] == (name.startswith("minima") and not name.startswith("minima 2 ")), name


@pytest.mark.gpu
def test_knn_on_a_gpu_is_knn_on_a_cpu() -> None:
    for dim, k in ((2, 5), (8, 12), (64, 40)):
        points = cloud(20_000, dim)
        groups = torch.arange(len(points), device=DEVICE) // 100
        for exclude in ("none", "self", "group"):
            kind: dict[str, Any] = {"exclude": exclude}
            if exclude == "group":
                kind |= {"query_groups": groups, "reference_groups": groups}
            distances, _ = knn(points, points, k, **kind)
            on_cpu = {name: value.cpu() if torch.is_tensor(value) else value for name, value in kind.items()}
            wanted, _ = knn(points.cpu(), points.cpu(), k, **on_cpu)
            torch.testing.assert_close(distances.cpu(), wanted, rtol=1e-5, atol=1e-6)
