"""The GPU's neighbour search, run by Triton's interpreter where there is no GPU, and compiled for one without it."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from myriad_lab.functional.knn import knn
from myriad_lab.functional.masked import park_invalid

from .exact import DEVICE, cloud, exact

triton = pytest.importorskip("triton", reason="Triton has no build for this system")

from myriad_lab.functional import knn_triton  # noqa: E402 - it imports triton
from myriad_lab.functional.knn_parts import Layout  # noqa: E402
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
        monkeypatch.setattr(knn_triton, "SPARE", 0)
        monkeypatch.setattr(knn_triton, "MAX_HELD", rows * (2 + 1) * 32)
    points = cloud(3, 70, 4)
    check(2, points, points, own_row=True)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16])
def test_a_query_does_not_see_its_group(dtype: torch.dtype) -> None:
    points = cloud(2, 80, 2)
    groups = torch.arange(160, device=DEVICE, dtype=dtype).view(2, 80) // 16
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
    monkeypatch.setattr(knn_triton, "MAX_HELD", 1)  # a query at once
    fused_search(cloud(1, 4, 3), cloud(1, 40, 3), 2)
    assert prepared == [1]


def tensor_cores(left: torch.Tensor, right: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return ``start + left @ right.T`` as they add: shifted to the largest of 9 numbers, cut below its 24th bit."""

    def cut(values: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        unit = torch.exp2(torch.frexp(largest).exponent.double() - 24.0)
        return (values / unit).trunc() * unit

    total = start.double()
    for columns in range(0, left.shape[-1], 8):
        block = slice(columns, columns + 8)
        addends = left.double()[..., :, None, block] * right.double()[..., None, :, block]
        addends = torch.cat([addends, total.unsqueeze(-1)], -1)
        total = cut(addends, addends.abs().amax(-1, keepdim=True)).sum(-1)
        total = cut(total, total.abs())
    return total.float()


class OnTensorCores:
    """The kernel of the lower bounds, added up as on tensor cores."""

    def __getitem__(self, grid: Any) -> Any:
        def run(*tensors: Any, **constants: Any) -> None:
            factors, reaches, others, lows, sizes, _, _, out, num_queries, *_ = tensors
            values = tensor_cores(factors, others, lows.unsqueeze(1) - reaches.unsqueeze(2) * sizes.unsqueeze(1))
            values = values[:, :num_queries].unflatten(2, (-1, constants["GROUP"])).amin(3)
            out.copy_(values[:, :, : out.shape[2]])

        return run


def pairs(count: int, dim: int) -> torch.Tensor:
    """Return pairs of points that are close to each other and far from the centre: what rounding confuses first."""
    ends = 3000.0 * torch.nn.functional.normalize(cloud(count // 2, dim, offset=0.0), dim=1)
    near = ends + 1e-3 * torch.nn.functional.normalize(cloud(count // 2, dim, seed=1, offset=0.0), dim=1)
    shades = [
        ends,
        near,
        *(ends + 0.01 * step * cloud(count // 2, dim, seed=2 + step, offset=0.0) for step in range(1, 40)),
    ]
    return torch.cat(shades)


@pytest.mark.skipif(DEVICE == "cuda", reason="emulates what a GPU does")
@pytest.mark.parametrize("dim", [5, 20, 30])
def test_the_rounding_of_tensor_cores_costs_no_neighbour(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    references = pairs(16, dim)[None]
    queries = references[:, :16]
    monkeypatch.setattr(knn_triton, "_group_minima", OnTensorCores())
    monkeypatch.setattr(knn_triton, "SPARE", 0)
    check(2, queries, references)
    # without the bound it would: the test can fail
    for error in ("rounding", "cross_error"):
        monkeypatch.setattr(Layout, error, 0.0)
    _, indices = fused_search(queries, references, 2)
    assert not torch.equal(indices, exact(queries, references, 2)[1])


def excess(dim: int) -> float:
    """Return by how much a bound is above the distance, where tensor cores add up, relative to ``|q| |r|``."""
    # a pair far from the centre, which is where most points are
    references = torch.cat([0.001 * cloud(1, 2048, dim, offset=0.0), pairs(64, dim)[None]], 1)
    queries = references[:, 2048:2176]
    clouds = knn_triton._Clouds.of(references, None)
    minima, lows = knn_triton._lower_bounds(queries, clouds, 1, (queries, references), False)
    squared = (queries.double().unsqueeze(2) - references.double().unsqueeze(1)).square().sum(3)
    sizes = (queries - clouds.centre).norm(dim=2).unsqueeze(2) * clouds.split.sizes[:, None, : references.shape[1]]
    above = (minima.double() + lows.double().unsqueeze(2) - squared) / sizes.clamp_min(1e-6).double()
    return above[..., 2048:].max().item()


@pytest.mark.skipif(DEVICE == "cuda", reason="emulates what a GPU does")
@pytest.mark.parametrize(("dim", "term"), [(5, "rounding"), (30, "splitting")])
def test_bounds_need_each_of_their_terms(dim: int, term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn_triton, "_group_minima", OnTensorCores())
    assert excess(dim) <= 0.0
    if term == "rounding":
        monkeypatch.setattr(Layout, "rounding", 0.0)
    else:
        monkeypatch.setattr(Layout, "cross_error", property(lambda layout: 2.0 * layout.rounding))
    assert excess(dim) > 0.0


@pytest.mark.parametrize("dim", [2, 16, 40, 128])
def test_what_the_first_kernel_writes_are_lower_bounds(dim: int) -> None:
    """On a GPU as well, where tensor cores round sums in ways of their own."""
    queries, references = cloud(1, 70, dim, seed=1), cloud(1, 640, dim)
    clouds = knn_triton._Clouds.of(references, None)
    minima, lows = knn_triton._lower_bounds(queries, clouds, 32, (queries, references), False)
    squared = (queries.double().unsqueeze(2) - references.double().unsqueeze(1)).square().sum(3)
    groups, bounds = squared.unflatten(2, (-1, 32)).amin(3), minima.double() + lows.double().unsqueeze(2)
    largest = clouds.split.sizes.amax().square() * (2.0 * clouds.layout.rounding + clouds.layout.cross_error)
    assert (bounds <= groups).all()
    assert (groups - bounds).max() < 2.0 * largest


@pytest.mark.parametrize(("dim", "parts"), [(5, 3), (21, 2), (22, 1), (128, 1)])
def test_the_products_of_the_parts_are_those_of_the_points(dim: int, parts: int) -> None:
    points, layout = cloud(2, 70, dim), Layout.of(dim)
    centres = points[:, :1]
    queries, references = (layout.split(points, centres, queries=asking) for asking in (True, False))
    left, right = queries.factors.double(), references.factors.double()
    wanted = -2.0 * (points - centres).double() @ (points - centres).double().mT
    errors = ((left @ right.mT)[:, :70, :70] - wanted).abs()
    allowed = (queries.sizes.unsqueeze(2) * references.sizes.unsqueeze(1))[:, :70, :70] * 2.0 ** (1 - 8 * parts)
    assert layout.parts == parts
    assert (errors <= (parts + 1) * allowed + 1e-30).all()
    assert parts == 3 or (errors > 0.01 * allowed).any()
    assert torch.equal(right, right.bfloat16().double())
    assert (references.lows[:, 70:] == torch.inf).all()
    assert (references.lows[:, :70] <= (points - centres).double().square().sum(2)).all()


@pytest.fixture
def doubts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Collect the share of queries in doubt and how many groups are looked into for all of them, search by search."""
    found, look_further = [], knn_triton._look_further

    class Counted:
        def __getitem__(self, grid: Any) -> Any:
            def run(*tensors: Any, **more: Any) -> None:
                minima, limits, certain = tensors[4:7]
                visits = ((minima <= limits.unsqueeze(2)) & (certain == 0).unsqueeze(2)).sum(2)
                found.append((1.0 - certain.float().mean().item(), visits.float().mean().item()))
                look_further[grid](*tensors, **more)

            return run

    monkeypatch.setattr(knn_triton, "_look_further", Counted())
    return found


@pytest.mark.parametrize("dim", [3, 17])
def test_few_particles_of_slow_robots_are_in_doubt(dim: int, doubts: list[tuple[float, float]]) -> None:
    """Stored step by step: near neighbours, far from the middle, each in a group of its own."""
    draw = torch.Generator().manual_seed(0)
    places, moves = 10.0 * torch.randn(32, dim, generator=draw), torch.randn(64, 32, dim, generator=draw)
    points = (places + moves).flatten(0, 1).to(DEVICE)[None]
    check(20, points[:, ::127], points)
    assert doubts[0][0] < 0.02


@pytest.mark.parametrize("dim", [3, 17, 64])
def test_few_particles_of_walks_are_in_doubt_and_few_groups_looked_into(
    dim: int, doubts: list[tuple[float, float]]
) -> None:
    steps = 0.25 * torch.randn(64, 64, dim, generator=torch.Generator().manual_seed(0))
    points = steps.cumsum(1).flatten(0, 1).to(DEVICE)[None]
    check(5, points[:, ::127], points)
    ((share, visits),) = doubts
    assert share < 0.05
    assert visits < 1.0


@pytest.mark.parametrize("dim", [2, 17])
def test_particles_far_away_leave_the_others_certain(dim: int, doubts: list[tuple[float, float]]) -> None:
    """Three in ten broke and are parked: their size is no reason to doubt the distances among the others."""
    points, valid = cloud(1, 4096, dim, offset=0.0)[0], torch.arange(4096, device=DEVICE) % 10 > 2
    points = park_invalid(points, valid)[None]
    check(20, points[:, valid][:, ::150], points)
    assert doubts[0][0] < 0.02


def test_a_query_with_too_few_neighbours_is_certain_of_those(doubts: list[tuple[float, float]]) -> None:
    points = cloud(1, 1500, 2)
    groups = torch.zeros(1, 1500, dtype=torch.int64, device=DEVICE)
    groups[0, :3] = 1
    distances, _ = fused_search(points[:, ::50], points, 4, query_groups=groups[:, ::50], reference_groups=groups)
    assert torch.isinf(distances[0, 1:, 3]).all()
    assert doubts == [(0.0, 0.0)]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("size", [1e18, 1e19, 1e20])
def test_points_whose_squares_are_too_large_lose_no_neighbour(size: float) -> None:
    far, points = 1.0 + 1e-3 * cloud(1, 96, 2, seed=1, offset=0.0), cloud(1, 800, 2, offset=0.0)
    points[:, :96] = size * far
    for queries in (points[:, :6], points[:, -6:]):
        _, indices = fused_search(queries, points, 3)
        _, who = exact(queries, points, 3)
        near = points.double()[0][indices[0]], points.double()[0][who[0]]
        gaps = [(found - queries.double()[0][:, None]).norm(dim=-1) for found in near]
        torch.testing.assert_close(gaps[0], gaps[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dim", [2, 40])
def test_points_whose_squares_are_too_small_lose_no_neighbour(dim: int) -> None:
    points = 1e-20 * cloud(1, 600, dim, offset=0.0)
    distances, _ = fused_search(points[:, :10], points, 3)
    wanted, _ = exact(points[:, :10], points, 3)
    torch.testing.assert_close(distances.double(), wanted, rtol=1e-3, atol=1e-23)


def test_groups_whose_numbers_do_not_fit_into_32_bits() -> None:
    points, groups = cloud(1, 300, 3), torch.arange(300, device=DEVICE)[None] // 20
    for far in (groups + 2**31 - 8, groups - 2**31 - 8, groups << 40):
        check(4, points[:, ::30], points, query_groups=far[:, ::30], reference_groups=far)


def test_many_references_do_not_make_too_many_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn_triton, "_MAX_PROGRAMS", 2)
    monkeypatch.setattr(knn_triton, "_MAX_TILES", 1)
    check(3, cloud(3, 5, 3, seed=1), cloud(3, 1000, 3))


def test_looking_into_all_groups_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    points = cloud(2, 70, 5)
    groups = (torch.arange(140, device=DEVICE) // 20).view(2, 70)
    monkeypatch.setattr(Layout, "cross_error", 1e30)  # nothing is certain
    rows = slice(0, 30)
    check(7, points[:, rows], points, query_groups=groups[:, rows], reference_groups=groups)


COMPILE = """
import json, re, subprocess, tempfile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from myriad_lab.functional import knn_parts, knn_triton as ours

def longest_loop(cubin):
    \"""Count the instructions between the target of a jump back and the jump.\"""
    text = subprocess.check_output([triton.knobs.nvidia.nvdisasm.path, "-c", cubin], text=True)
    labels, lengths, count = {}, [0], 0
    for line in text.splitlines():
        label, jump = re.match(r"(\\.L_x_\\d+):", line), re.search(r"BRA.*`\\((\\.L_x_\\d+)\\)", line)
        count += line.lstrip().startswith("/*")
        if label:
            labels[label[1]] = count
        if jump and jump[1] in labels:
            lengths.append(count - labels[jump[1]])
    return max(lengths)

def compile(kernel, constants, **types):
    options = {name: constants.pop(name) for name in ("num_warps",) if name in constants}
    names = [name for name in kernel.arg_names if name not in constants]
    signature = {name: types.get(name, "*fp32") for name in names} | dict.fromkeys(constants, "constexpr")
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if signature[name][0] == "*"}
    source = ASTSource(kernel, signature, constants, aligned)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        used = subprocess.check_output([triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name], text=True)
        loop = longest_loop(file.name)
    use = dict(pair.split(":") for pair in used.split() if pair.startswith(("REG:", "STACK:")))
    return {"threads": 32 * built.metadata.num_warps, "shared": built.metadata.shared, "registers": int(use["REG"]),
            "loop": loop, "stack": int(use["STACK"]), "wgmma": "wgmma" in built.asm["ptx"]}

integers = ("own_row", "num_queries", "num_references", "num_points", "num_groups", "kept", "k", "tiles")
types = dict.fromkeys(integers, "i32") | {"below": "fp32", "certain": "*i32"}
types |= dict.fromkeys(("query_groups", "reference_groups", "chosen"), "*i64")
types |= dict.fromkeys(("query_ids", "reference_ids"), "*i32") | dict.fromkeys(("factors", "others"), "*bf16")
out = {}
for dim, exclusion, group in ((2, 0, 128), (17, 1, 64), (64, 2, 32), (128, 2, 64)):
    layout = knn_parts.Layout.of(dim)
    used = len(layout.pairs) * dim
    parts = {"DIM": dim, "USED": used, "WIDTH": layout.width, "CODE": 292, "SCALE": -2.0, "ROWS": knn_parts._ROWS,
             "PADDED_TO": 128}
    first = {"WIDTH": layout.width, "GROUP": group, "BY_GROUP": exclusion == 2, "ROWS": 128, "COLUMNS": 128,
             "STAGES": ours._stages(layout.width), "num_warps": ours._WARPS}
    shape = {"DIM": dim, "WIDTH": triton.next_power_of_2(dim), "EXCLUSION": exclusion, "GROUP": group}
    out[f"split {dim}"] = compile(knn_parts._split, parts, **types)
    out[f"minima {dim}"] = compile(ours._group_minima, first, **types)
    out[f"distances {dim}"] = compile(ours._group_distances, dict(shape), **types)
    further = {**shape, "SLOTS": 64, "BLOCK": ours._BLOCK}
    out[f"further {dim}"] = compile(ours._look_further, further, **{**types, "out": "*i64"})
print(json.dumps(out))
"""


def test_the_kernels_compile_for_a_hopper_gpu() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    model = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "examples" / "knn_model.py"))["LOOP"]
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, built in json.loads(done.stdout.splitlines()[-1]).items():
        # two programs on a multiprocessor of sm_90, so that one multiplies while the other looks at its distances
        assert 2 * (built["shared"] + 1024) <= 228 * 1024, name
        assert 2 * built["threads"] * built["registers"] <= 65_536, name
        assert built["stack"] == 0 or not name.startswith("minima"), name
        assert built["wgmma"] == name.startswith("minima"), name
        if name.startswith("minima"):  # a thread looks at 64 pairs: selection is as much work as the products
            assert 64 * 2 < built["loop"] < 64 * (7.5 if name in ("minima 64", "minima 128") else 5.0), (name, built)
        if name in ("minima 2", "minima 17"):  # what the docs reckon with
            assert built["loop"] == pytest.approx(
                model[Layout.of(int(name.split()[1])).width], rel=0.12
            )  # by size of the group


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
