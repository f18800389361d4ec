"""The search must be exact: it is compared with float64 brute force, by distance, since ties may be ordered freely."""

from __future__ import annotations

import pytest
import torch

from myriad_lab.errors import ConfigurationError
from myriad_lab.functional import knn_dense, knn_tree
from myriad_lab.functional.knn import group_sizes, knn, knn_within


def brute(queries, references, k, forbidden=None):
    distances = (queries.double()[:, None] - references.double()[None]).norm(dim=-1)
    if forbidden is not None:
        distances = distances.masked_fill(forbidden, torch.inf)
    return distances.topk(k, largest=False).values


def walks(num, length, dim, seed=0):
    steps = torch.randn(num, length, dim, generator=torch.Generator().manual_seed(seed))
    return (0.1 * steps).cumsum(dim=1).flatten(0, 1), torch.arange(num).repeat_interleave(length)


@pytest.mark.parametrize("method", ["tree", "dense"])
@pytest.mark.parametrize("dim", [1, 2, 3, 8, 24])
@pytest.mark.parametrize(("n", "m", "k"), [(40, 600, 1), (300, 333, 5), (17, 64, 64), (200, 1100, 50)])
def test_equals_brute_force(method, dim, n, m, k):
    generator = torch.Generator().manual_seed(dim)
    queries, references = torch.randn(n, dim, generator=generator), torch.randn(m, dim, generator=generator)
    distances, indices = knn(queries, references, k, method=method)
    torch.testing.assert_close(distances.double(), brute(queries, references, k), rtol=2e-6, atol=1e-7)
    torch.testing.assert_close((queries[:, None] - references[indices]).norm(dim=-1), distances)
    assert (distances.diff(dim=1) >= 0).all()
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("method", ["tree", "dense"])
@pytest.mark.parametrize(("dim", "k"), [(2, 1), (2, 5), (7, 50), (12, 5)])
def test_exclusions_equal_brute_force(method, dim, k):
    points, ids = walks(15, 40, dim)
    same_row, same_walk = torch.eye(600, dtype=torch.bool), ids[:, None] == ids
    for exclude, forbidden in (("self", same_row), ("group", same_walk)):
        groups = ids if exclude == "group" else None
        distances, indices = knn(
            points, points, k, query_groups=groups, reference_groups=groups, exclude=exclude, method=method
        )
        torch.testing.assert_close(distances.double(), brute(points, points, k, forbidden), rtol=2e-6, atol=1e-7)
        assert not forbidden.gather(1, indices).any()
    distances, indices = knn_within(points.view(15, 40, dim), min(k, 39), method=method)
    expected = brute(points, points, min(k, 39), same_row | ~same_walk)
    torch.testing.assert_close(distances.flatten(0, 1).double(), expected, rtol=2e-6, atol=1e-7)
    within = indices + 40 * torch.arange(15)[:, None, None]
    torch.testing.assert_close((points[within.flatten(0, 1)] - points[:, None]).norm(dim=-1), distances.flatten(0, 1))


def test_groups_far_apart_leave_no_foreign_neighbour_among_the_nearest(monkeypatch):
    """Own group first, all of it, so that only the search by halves can answer; group numbers are arbitrary."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.tensor([7, -3, 1000, 42, 5]).repeat_interleave(200)[torch.randperm(1000, generator=generator)]
    points = torch.randn(1000, 2, generator=generator) + 100.0 * ids[:, None]
    calls = []
    original = knn_tree._search_by_halves
    monkeypatch.setattr(knn_tree, "_search_by_halves", lambda *a: calls.append(len(a[0])) or original(*a))
    distances, indices = knn(points, points, 5, query_groups=ids, reference_groups=ids, exclude="group", method="tree")
    assert calls == [1000]
    expected = brute(points, points, 5, ids[:, None] == ids)
    torch.testing.assert_close(distances.double(), expected, rtol=2e-6, atol=0)
    assert (ids[indices] != ids[:, None]).all()


def test_a_group_smaller_than_k_is_completed_from_the_others():
    points = torch.cat([torch.zeros(3, 1), torch.full((2, 1), 50.0), torch.linspace(100, 101, 200)[:, None]])
    ids = torch.tensor([0] * 3 + [1] * 2 + [2] * 200)
    distances, indices = knn(points, points, 5, query_groups=ids, reference_groups=ids, exclude="group", method="tree")
    torch.testing.assert_close(distances.double(), brute(points, points, 5, ids[:, None] == ids))
    assert (ids[indices] != ids[:, None]).all()


@pytest.mark.parametrize("method", ["tree", "dense"])
def test_duplicates(method):
    points = torch.tensor([[1.0, 2.0]]).repeat(60, 1)
    points[:20] += torch.arange(20.0)[:, None]
    distances, indices = knn(points, points, 5, exclude="self", method=method)
    assert (distances[20:] == 0).all()
    assert (indices != torch.arange(60)[:, None]).all()
    torch.testing.assert_close(distances.double(), brute(points, points, 5, torch.eye(60, dtype=torch.bool)))


@pytest.mark.parametrize("offset", [0.0, 20.0, 200.0])
def test_offset_does_not_blur_float32(offset):
    """Points in a 24 m square far from the origin; the expanded form alone is 2.9 % off at 200 m."""
    points = 24.0 * torch.rand(3000, 2, generator=torch.Generator().manual_seed(0)) + offset
    expected = brute(points, points, 5, torch.eye(3000, dtype=torch.bool))
    for method in ("tree", "dense"):
        distances, _ = knn(points, points, 5, exclude="self", method=method)
        torch.testing.assert_close(distances.double(), expected, rtol=1e-6, atol=0)
    expanded = torch.cdist(points, points, compute_mode="use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    error = (expanded.topk(5, largest=False).values[:, -1] / expected[:, -1] - 1).abs().mean()
    assert offset < 200 or error > 0.01


def test_rounding_that_centring_cannot_help_is_found_and_mended():
    """Two dense clusters 200 m apart: the expanded form cannot tell neighbours apart, and the search must know it."""
    generator = torch.Generator().manual_seed(0)
    points = 1e-3 * torch.rand(800, 8, generator=generator)
    points[400:] += 200.0
    points = points + 0.0  # Coordinates at 200 are multiples of 1.5e-5: exact in float32.
    expected = brute(points, points, 5, torch.eye(800, dtype=torch.bool))
    found = knn_dense.dense_search(points[None], points[None], 5, knn_dense.Exclusion(own_row=True))
    wrong = (found.distances[0].double() - expected).abs().amax(dim=1) > 1e-7
    assert wrong.any()
    assert not (wrong & found.certain[0]).any()
    distances, _ = knn(points, points, 5, exclude="self", method="dense")
    torch.testing.assert_close(distances.double(), expected, rtol=2e-6, atol=1e-9)
    distances, _ = knn_within(points.view(2, 400, 8), 5, method="dense")
    torch.testing.assert_close(distances.flatten(0, 1).double(), expected, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("k", [9, 20])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_tiles_do_not_matter(monkeypatch, chunk, k):
    points, ids = walks(10, 50, 4)
    groups = {"query_groups": ids, "reference_groups": ids, "exclude": "group", "method": "dense"}
    expected, _ = knn(points, points, k, **groups)
    for constant in ("MAX_COLUMNS", "COLUMNS"):
        monkeypatch.setattr(knn_dense, constant, {"cpu": 48, "gpu": 48})
    monkeypatch.setattr(knn_dense, "GATHERED", {"cpu": 3000, "gpu": 3000})
    distances, indices = knn(points, points, k, chunk=chunk, **groups)
    torch.testing.assert_close(distances, expected)
    assert (ids[indices] != ids[:, None]).all()
    alone, _ = knn(points, points, k, exclude="self", method="dense", chunk=chunk)
    torch.testing.assert_close(alone.double(), brute(points, points, k, torch.eye(500, dtype=torch.bool)))
    within, _ = knn_within(points.view(2, 250, 4), k, method="dense")
    halves = torch.arange(500) // 250
    apart = (halves[:, None] != halves) | torch.eye(500, dtype=torch.bool)
    torch.testing.assert_close(within.flatten(0, 1).double(), brute(points, points, k, apart))


@pytest.mark.parametrize("k", [5, 20])
def test_many_references_are_selected_by_groups(k):
    points, ids = walks(170, 100, 9)  # more than a tile holds, and no multiple of anything
    asked = slice(4000, 4200)
    groups = {"query_groups": ids[asked], "reference_groups": ids, "exclude": "group"}
    distances, indices = knn(points[asked], points, k, **groups, method="dense")
    expected = brute(points[asked], points, k, ids[asked, None] == ids)
    torch.testing.assert_close(distances.double(), expected, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close((points[indices] - points[asked, None]).norm(dim=-1), distances)


@pytest.mark.parametrize(("total", "width", "size"), [(64, 64, 1), (512, 48, 8), (512, 48, 4), (2816, 2048, 8)])
def test_every_reference_is_in_one_group_of_the_tile_it_is_in(total, width, size):
    layout = knn_dense.Layout(total, width, size)
    members = layout.members(torch.arange(layout.num_groups)).view(-1, size)
    assert members.flatten().sort().values.tolist() == list(range(total))
    one, none = torch.ones(1, 1, 1), knn_dense.Exclusion()
    numbered = knn_dense.Sides(one, torch.arange(float(total))[None, :, None], torch.zeros(1, total), one[0])
    minima = knn_dense._minima(numbered, slice(0, 1), layout, none, torch.empty(1, width))
    assert minima[0, 0].tolist() == members.amin(dim=1).tolist()


def test_two_stage_selection_equals_a_sort():
    values = torch.randn(30, 1600, generator=torch.Generator().manual_seed(0))
    found, columns = knn_dense.smallest(values, 13)
    torch.testing.assert_close(found.sort(dim=1).values, values.sort(dim=1).values[:, :13], rtol=0, atol=0)
    torch.testing.assert_close(values.gather(1, columns), found, rtol=0, atol=0)


def by_backend():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision


def set_one(precision):
    torch.backends.mkldnn.matmul.fp32_precision = precision


@pytest.mark.parametrize("reduce", [lambda: torch.set_float32_matmul_precision("medium"), lambda: set_one("bf16")])
def test_reduced_matmul_precision_is_neither_used_nor_left_behind(monkeypatch, reduce):
    """Not every processor has a reduced precision, so the setting itself is watched."""
    seen, tile, default = [], knn_dense.Sides.tile, by_backend()

    def watched(*args):
        seen.append(by_backend())
        return tile(*args)

    monkeypatch.setattr(knn_dense.Sides, "tile", watched)
    reduce()
    try:
        before = by_backend()
        assert "bf16" in before
        points, _ = walks(4, 100, 16)
        knn(points, points, 3, exclude="self", method="dense")
        assert set(seen) == {("ieee", "ieee")}
        assert by_backend() == before
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.fp32_precision = default[0]
        set_one(default[1])
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("method", ["tree", "dense"])
def test_nobody_asks(method):
    distances, indices = knn(torch.empty(0, 3), torch.rand(9, 3), 2, method=method)
    assert (distances.shape, indices.shape, indices.dtype) == ((0, 2), (0, 2), torch.long)


@pytest.mark.parametrize("method", ["tree", "dense"])
def test_particles_that_require_gradients_are_taken_as_they_are(method):
    points = torch.rand(100, 2, requires_grad=True)
    distances, _ = knn(points, points, 3, exclude="self", method=method)
    assert not distances.requires_grad
    assert not knn_within(points.view(2, 50, 2), 3, method=method)[0].requires_grad


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have it")
def test_kernels_for_a_gpu_are_refused_without_one():
    points = torch.rand(100, 2)
    with pytest.raises(ConfigurationError, match=r"method='fused' is for float32 on CUDA.*Take method='auto'"):
        knn(points, points, 3, method="fused")


def test_the_tree_is_refused_elsewhere_than_on_the_cpu():
    points = torch.empty(100, 2, device="meta")
    with pytest.raises(ConfigurationError, match="method='tree' is for the CPU, the points are on meta; take 'auto'"):
        knn(points, points, 3, method="tree")


@pytest.mark.parametrize("dim", [1, 3])
def test_float64_in_float64_out(dim):
    points = torch.rand(100, dim, dtype=torch.float64)
    for method in ("tree", "dense"):
        distances, _ = knn(points, points, 4, exclude="self", method=method)
        torch.testing.assert_close(
            distances, brute(points, points, 4, torch.eye(100, dtype=torch.bool)), atol=1e-13, rtol=0
        )


def test_group_sizes():
    ids = torch.tensor([4, 9, 4, 4, -1])
    assert group_sizes(ids).tolist() == [3, 1, 3, 3, 1]
    assert group_sizes(torch.tensor([9, 5]), ids).tolist() == [1, 0]


def test_nothing_is_read_back_from_a_device():
    """A meta tensor has no values, so any read-back raises; the search runs through on it."""
    points, ids = torch.empty(65_536, 2, device="meta"), torch.empty(65_536, dtype=torch.long, device="meta")
    distances, indices = knn(points, points, 5, query_groups=ids, reference_groups=ids, exclude="group")
    assert distances.shape == indices.shape == (65_536, 5)
    assert knn_within(points.view(64, 1024, 2), 5)[0].shape == (64, 1024, 5)


POINTS = torch.rand(10, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knn(POINTS, POINTS, 10, exclude="self"), "k = 10 .* 9 others"),
        (lambda: knn(POINTS, POINTS, 0), "1 <= k <= 10"),
        (lambda: knn(POINTS, POINTS, 11), "1 <= k <= 10"),
        (lambda: knn(POINTS, torch.rand(10, 3), 1), r"\(10, 2\) and \(10, 3\)"),
        (lambda: knn(POINTS, POINTS.double(), 1), "float32 and torch.float64"),
        (lambda: knn(POINTS, torch.rand(4, 2), 1, exclude="self"), "10 queries and 4 references"),
        (lambda: knn(POINTS, POINTS, 1, exclude="group"), "query_groups must have"),
        (lambda: knn(POINTS, POINTS, 1, exclude="own"), "'own'"),
        (lambda: knn_within(POINTS, 1), r"\(b, n, d\)"),
        (lambda: knn_within(POINTS[None], 10), "9 others"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()


def test_too_few_foreign_particles():
    ids = torch.tensor([0] * 7 + [1] * 3)
    with pytest.raises(ConfigurationError, match="has 3 outside its own group of 7"):
        knn(POINTS, POINTS, 4, query_groups=ids, reference_groups=ids, exclude="group")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite(value):
    points = POINTS.clone()
    points[3, 1] = value
    with pytest.raises(ConfigurationError, match=r"index \[3, 1\]"):
        knn(points, points, 2, exclude="self")
