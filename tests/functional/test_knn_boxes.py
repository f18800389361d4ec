"""The GPU's search through boxes, run by Triton's interpreter where there is no GPU, and compiled for a Hopper GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from myriad_lab.errors import ConfigurationError
from myriad_lab.functional import knn as search
from myriad_lab.functional import knn_curve
from myriad_lab.functional.knn import knn, knn_within

from .exact import DEVICE, cloud, exact

triton = pytest.importorskip("triton", reason="Triton has no build for this system")

from myriad_lab.functional import knn_boxes  # noqa: E402 - it imports triton
from myriad_lab.functional.knn_boxes import box_search  # noqa: E402


def check(k: int, queries: torch.Tensor, references: torch.Tensor, **kind: Any) -> None:
    """Search and compare with float64, by distance, since equal ones may be ordered freely."""
    distances, indices = box_search(queries, references, k, **kind)
    groups = (kind["query_groups"], kind["reference_groups"]) if "query_groups" in kind else None
    wanted, _ = exact(queries, references, k, kind.get("own_row", False), groups)
    torch.testing.assert_close(distances.double(), wanted, rtol=1e-6, atol=1e-9)
    near = references.unsqueeze(1).expand(-1, queries.shape[1], -1, -1)
    found = near.gather(2, indices.unsqueeze(-1).expand(*indices.shape, queries.shape[2]))
    gaps = (found.double() - queries.double().unsqueeze(2)).norm(dim=-1)
    torch.testing.assert_close(gaps, wanted, rtol=1e-6, atol=1e-9)
    assert all(len(set(row)) == k for row in indices.flatten(0, 1).tolist())
    if kind.get("own_row"):
        assert (indices != torch.arange(queries.shape[1], device=DEVICE)[:, None]).all()


@pytest.fixture
def small_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all levels of the tree matter for a few points."""
    monkeypatch.setattr(knn_curve, "FAN", 4)
    monkeypatch.setattr(knn_boxes, "FAN", 4)


@pytest.mark.parametrize(
    ("n", "m", "dim", "k"),
    [(6, 300, 1, 3), (6, 700, 2, 5), (5, 300, 3, 12), (2, 70, 3, 64), (0, 9, 2, 2), (3, 5, 2, 5)],
)
def test_it_finds_what_float64_finds(small_boxes: None, n: int, m: int, dim: int, k: int) -> None:
    check(k, cloud(2, n, dim, seed=1), cloud(2, m, dim))


def test_boxes_as_large_as_they_are() -> None:
    check(5, cloud(1, 6, 2, seed=1), cloud(1, 3000, 2))


def test_a_query_does_not_see_itself_in_its_cloud(small_boxes: None) -> None:
    points = cloud(3, 10, 2)
    check(3, points, points, own_row=True)


@pytest.mark.parametrize("apart", [0.0, 100.0])
def test_a_query_does_not_see_its_group(small_boxes: None, apart: float) -> None:
    """Also where its group is a cluster, and all boxes nearby hold nothing else."""
    groups = torch.tensor([7, -3, 2**40, 5], device=DEVICE).repeat_interleave(20)[None]
    points = cloud(1, 80, 2) + apart * torch.arange(4, device=DEVICE).repeat_interleave(20)[None, :, None]
    rows = slice(10, 70, 4)
    check(4, points[:, rows], points, query_groups=groups[:, rows], reference_groups=groups)


def clustered(count: int, dim: int) -> torch.Tensor:
    points = cloud(1, count, dim)
    return torch.cat([points[:, ::2], 1e-4 * points[:, 1::2] - 50.0], dim=1)


def with_far_ones(count: int, dim: int) -> torch.Tensor:
    points = cloud(1, count, dim)
    return torch.where(torch.arange(count, device=DEVICE)[:, None] % 10 == 0, 1e6 * points, points)


def on_a_grid(count: int, dim: int) -> torch.Tensor:
    return cloud(1, count, dim).round()


def in_one_place(count: int, dim: int) -> torch.Tensor:
    return cloud(1, 1, dim).expand(1, count, dim)


KINDS = [cloud, clustered, with_far_ones, on_a_grid, in_one_place]


@pytest.mark.parametrize("make", KINDS[1:])
def test_whatever_the_points_are(small_boxes: None, make: Any) -> None:
    points = make(150, 2)
    check(5, points[:, ::10], points)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("make", KINDS)
def test_boxes_looked_into_do_not_grow_with_the_number_of_points(make: Any, dim: int) -> None:
    """Those nearer than the k-th neighbour: what the search cannot do without."""
    looked = []
    for count in (4000, 32_000):
        points = make(*((1,) if make is cloud else ()), count, dim)
        order = knn_curve.curve_keys(points, points).argsort(dim=1)[0]
        leaves = knn_curve.boxes(points[:, order].mT)[0][0].mT
        assert len(leaves) == -(-count // knn_curve.FAN)
        queries = points[:, ::97]
        reach = exact(queries, points, 6)[0][0, :, -1:]
        low, high = leaves[:, :dim], leaves[:, dim:]
        gaps = torch.maximum(low - queries[0, :, None], queries[0, :, None] - high).clamp_min(0.0)
        looked.append((gaps.double().norm(dim=-1) < reach).sum(1).double().mean())
    assert looked[1] < (2.5, 6.0, 15.0)[dim - 1]
    assert looked[1] < 1.4 * looked[0] + 0.1


def test_nothing_is_read_back_when_the_boxes_are_made() -> None:
    """A meta tensor has no values, so any read-back raises."""
    points = torch.empty(2, 40_000, 3, device="meta")
    assert knn_curve.curve_keys(points, points).shape == (2, 40_000)
    assert [level.shape for level in knn_curve.boxes(points.mT)] == [(2, 6, 1250), (2, 6, 40), (2, 6, 2)]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_curve_passes_through_one_quadrant_after_another(dim: int) -> None:
    axis = torch.arange(8.0)
    points = torch.cartesian_prod(*[axis] * dim).view(1, -1, dim)
    order = knn_curve.curve_keys(points, points).argsort(dim=1)[0]
    for side in (2, 4):
        quadrants = (points[0, order] // side).view(-1, side**dim, dim)
        assert (quadrants == quadrants[:, :1]).all()


@pytest.mark.parametrize("kernels", ["boxes", "fused"])
def test_knn_and_knn_within_take_the_kernels(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what a GPU would choose chosen for it."""
    monkeypatch.setattr(search, "_choose_kernels", lambda *_: kernels)
    points = cloud(2, 10, 2)
    within, _ = knn_within(points, 3, method=kernels)
    torch.testing.assert_close(within.double(), exact(points, points, 3, own_row=True)[0], rtol=1e-6, atol=1e-6)
    groups = torch.arange(20, device=DEVICE) // 4
    kind: Any = {"query_groups": groups, "reference_groups": groups, "exclude": "group", "method": kernels}
    pool = points.flatten(0, 1)
    found, _ = knn(pool, pool, 2, **kind)
    wanted, _ = exact(pool[None], pool[None], 2, groups=(groups[None], groups[None]))
    torch.testing.assert_close(found.double(), wanted[0], rtol=1e-6, atol=1e-6)
    every_other, first = pool[::2], pool[:10]  # begin at the same place, and are other points
    found, _ = knn(every_other, first, 2, method=kernels)
    torch.testing.assert_close(found.double(), exact(every_other[None], first[None], 2)[0][0], rtol=1e-6, atol=1e-6)
    pool[3, 1] = torch.nan
    assert search._search_on_gpu(kernels, pool[None], pool[None], 2, False)[0].isnan().all()


def test_many_points_in_few_dimensions_are_searched_through_boxes() -> None:
    def chosen(method: Any, *shape: int, k: int = 5, dtype: torch.dtype = torch.float32) -> str | None:
        with FakeTensorMode():
            points = torch.empty(shape, device="cuda", dtype=dtype)
            return search._choose_kernels(method, points, points, k)

    assert chosen("auto", 1, 4096, 3) == "fused"
    assert chosen("auto", 1, 65_536, 3) == "boxes"
    assert chosen("auto", 1, 65_536, 4) == "fused"
    assert chosen("auto", 64, 1024, 2) == "fused"
    assert chosen("auto", 64, 8192, 2) == "boxes"
    assert chosen("auto", 1, 65_536, 2, k=65) is None
    assert chosen("auto", 1, 65_536, 2, dtype=torch.float64) is None
    assert chosen("dense", 1, 65_536, 2) is None
    assert chosen("boxes", 1, 64, 2) == "boxes"
    with pytest.raises(ConfigurationError, match=r"method='boxes' .* d up to 3; .* d = 4. Take method='auto'"):
        chosen("boxes", 1, 65_536, 4)


COMPILE = """
import json
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from myriad_lab.functional import knn_boxes as ours

kernel = ours._search_boxes
numbers = ("num_queries", "num_references", "num_leaves", "num_nodes", "num_tops", "k")
integers = ("order", "query_groups", "names", "groups", "leaf_groups", "node_groups", "top_groups", "out")
types = dict.fromkeys(numbers, "i32") | dict.fromkeys(integers, "*i64")
out = {}
for dim, grouped, slots, top in ((1, False, 8, 32), (2, True, 8, 32), (3, True, 64, 1024)):
    constants = {"DIM": dim, "FAN": ours.FAN, "TOP": top, "SLOTS": slots, "OWN_ROW": not grouped, "GROUPED": grouped}
    signature = {name: types.get(name, "*fp32") for name in kernel.arg_names if name not in constants}
    source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constants)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    out[dim] = {"cubin": len(built.asm["cubin"]), "shared": built.metadata.shared}
print(json.dumps(out))
"""


def test_the_kernel_compiles_for_a_hopper_gpu() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    built = json.loads(done.stdout.splitlines()[-1])
    assert all(kernel["cubin"] > 0 and kernel["shared"] == 0 for kernel in built.values()), built
    assert len(built) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("make", KINDS)
def test_boxes_on_a_gpu_are_the_tree_on_a_cpu(make: Any) -> None:
    for dim, k in ((1, 1), (2, 5), (3, 40)):
        points = make(*((1,) if make is cloud else ()), 50_000, dim)[0]
        groups = torch.arange(len(points), device=DEVICE) // 100
        kind = {"query_groups": groups, "reference_groups": groups, "exclude": "group"}
        on_cpu = {**kind, "query_groups": groups.cpu(), "reference_groups": groups.cpu()}
        for on_gpu, wanted in (({"exclude": "self"}, {"exclude": "self"}), (kind, on_cpu)):
            found, _ = knn(points, points, k, method="boxes", **on_gpu)
            torch.testing.assert_close(
                found.cpu(), knn(points.cpu(), points.cpu(), k, **wanted)[0], rtol=1e-5, atol=1e-6
            )
        clouds = points.view(50, 1000, dim)
        within, _ = knn_within(clouds, k, method="boxes")
        torch.testing.assert_close(within.cpu(), knn_within(clouds.cpu(), k)[0], rtol=1e-5, atol=1e-6)
