"""Labels where squares overflow or vanish, and of rows that are not finite: always of one of the centroids."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from instruction_sets import held_back_to, printed_by

from cmx_fast.ops import cluster_cross_entropy, kmeans_assign, kmeans_step

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.cmx_fast, "kmeans_step"), reason="the C++ extension is not built (CMX_NO_EXTENSION)"
)
WAYS = [{}, {"normalize": True}, {"metric": "cosine"}]
IMPLS = ["cpp", "reference"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def unit(rows, smallest=0.0):
    return rows / np.maximum(np.sqrt((rows**2).sum(1, keepdims=True)), np.longdouble(smallest))


def all_distances(x, centroids, metric="l2", normalize=False):
    """(N, K) in the machine's widest numbers, whose exponents hold every square."""
    rows, centers = (t.double().numpy().astype(np.longdouble) for t in (x, centroids))
    if metric == "cosine":
        rows, centers = unit(rows), unit(centers)
    elif normalize:
        rows = unit(rows, 1e-12)
    squares = ((rows[:, None] - centers) ** 2).sum(2)
    return squares / 2 if metric == "cosine" else squares


def assert_right(x, centroids, impl, way):
    """Of float64's distances, or float32's rounding off."""
    labels, sums, counts, inertia = kmeans_step(x, centroids, impl=impl, **way)
    again, distance = kmeans_assign(x, centroids, impl=impl, **way)
    n, k = len(x), len(centroids)
    assert again.equal(labels) and labels.shape == (n,)
    assert labels.min() >= 0 and labels.max() < k
    assert counts.tolist() == torch.bincount(labels, minlength=k).tolist()
    # Unit rows are rounded before they are compared.
    rounding = 2e-6 if distance.dtype == torch.float32 else 1e-13
    off = rounding if way else 0.0
    truth = all_distances(x, centroids.to(distance.dtype), **way)
    chosen, least = truth[np.arange(n), labels.numpy()], truth.min(1)
    assert (chosen <= least * (1 + rounding) + off * np.sqrt(least) + off**2).all()
    ends = torch.finfo(distance.dtype)
    actual = distance.double().numpy().astype(np.longdouble)
    held = chosen < ends.max
    near = (
        np.abs(actual - chosen)[held]
        <= (rounding * chosen + off * np.sqrt(chosen) + off**2 + ends.tiny)[held]
    )
    assert near.all() and (actual[chosen > ends.max * 1.001] == np.inf).all()
    total = chosen.sum()
    if total < 1e300:
        assert inertia.item() == pytest.approx(float(total), rel=2 * rounding, abs=n * (off**2 + ends.tiny))
    if not way:
        expected = np.zeros(sums.shape, np.longdouble)
        np.add.at(expected, labels.numpy(), x.double().numpy().astype(np.longdouble))
        large = np.zeros(sums.shape, np.longdouble)
        np.add.at(large, labels.numpy(), np.abs(x.double().numpy().astype(np.longdouble)))
        if (large < ends.max).all():
            assert (np.abs(sums.double().numpy() - expected) <= 2 * ends.eps * large + ends.tiny).all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e-18, 1e17, 1e19, 1e20, 1e30, 1e38])
@pytest.mark.parametrize("way", WAYS)
def test_of_one_magnitude(impl, scale, way):
    for d, k in ((7, 20), (64, 33)):
        x, centroids = (scale * torch.rand(90, d) - scale / 2 for _ in range(2))
        assert_right(x, centroids[:k], impl, way)
        assert_right(x.bfloat16(), centroids[:k], impl, way)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-160, 1e150, 1e170, 1e300])
@pytest.mark.parametrize("way", WAYS)
def test_of_one_magnitude_in_float64(impl, scale, way):
    x, centroids = (scale * torch.randn(60, 9, dtype=torch.float64) for _ in range(2))
    assert_right(x, centroids[:21], impl, way)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("far", [1e15, 1e19, 1e20, 3e38])
def test_one_value_far_from_all_others(impl, far):
    x, centroids = torch.randn(200, 5), torch.randn(9, 5)
    x[7, 3] = far
    assert_right(x, centroids, impl, {})
    if impl == "reference" and far == 1e15:
        return  # eager's products lose the others' digits, as float32 does
    centroids[4, 2] = -far
    assert_right(x, centroids, impl, {})


@pytest.mark.parametrize("impl", IMPLS)
def test_huge_and_tiny_features_side_by_side(impl):
    x = torch.tensor([[1e150, 1e-200], [1e150, 3e-200], [-1.5e308, 0], [1e-300, 2e-300]], dtype=torch.float64)
    centroids = torch.tensor(
        [[1e150, 2.6e-200], [1e150, 0.9e-200], [1.7e308, 1e308], [0, 0]], dtype=torch.float64
    )
    assert kmeans_assign(x, centroids, impl=impl)[0].tolist() == [1, 0, 0, 3]


@st.composite
def problems(draw):
    """Rows and centroids whose magnitudes differ from one to the next, with duplicates."""
    n, k, d = draw(st.integers(1, 70)), draw(st.integers(1, 45)), draw(st.integers(1, 40))
    dtype, way = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(WAYS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    reach = {torch.float64: 300, torch.float16: 4}.get(dtype, 38)
    magnitudes = draw(st.lists(st.integers(-reach, reach), min_size=1, max_size=4))

    def rows(count):
        tens = torch.tensor(magnitudes, dtype=torch.float64)
        exponent = tens[torch.randint(len(magnitudes), (count, 1), generator=generator)]
        return torch.randn(count, d, generator=generator, dtype=torch.float64).clamp(-3, 3) * 10**exponent

    x, wide = rows(n).to(dtype), torch.float64 if dtype == torch.float64 else torch.float32
    # Magnitudes that float32 holds, and one that float16 made 0.
    x, centroids = (
        x.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max),
        rows(k).clamp(torch.finfo(wide).min, torch.finfo(wide).max).to(wide),
    )
    if draw(st.booleans()):
        same = torch.randint(k, (n,), generator=generator)
        taken = centroids[same].clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype)
        x = torch.where(torch.rand(n, 1, generator=generator) < 0.5, taken, x)
    if way.get("metric") == "cosine":
        x, centroids = (torch.where((t == 0).all(1, keepdim=True), 1, t) for t in (x, centroids))
    return x, centroids, way


@given(problem=problems())
def test_labels_are_of_the_nearest_at_any_magnitudes(problem):
    x, centroids, way = problem
    assert_right(x, centroids, "cpp", way)


@given(
    problem=problems(), bad=st.lists(st.sampled_from([float("nan"), float("inf"), -float("inf")]), min_size=1)
)
def test_rows_that_are_not_finite_go_to_the_first_centroid(problem, bad):
    x, centroids, way = problem
    clean = kmeans_assign(x, centroids, **way, impl="cpp")
    rows = torch.arange(len(x))[: len(bad)]
    x[rows, rows % x.shape[1]] = torch.tensor(bad[: len(rows)]).to(x.dtype)
    expected = torch.tensor(
        [float("nan") if way or value != value else float("inf") for value in bad[: len(rows)]]
    )
    for impl in IMPLS:
        labels, distance = kmeans_assign(x, centroids, **way, impl=impl)
        assert labels[rows].eq(0).all()
        torch.testing.assert_close(distance[rows].float(), expected, equal_nan=True)
        step = kmeans_step(x, centroids, **way, impl=impl)
        assert step[0].equal(labels) and step[2].sum() == len(x)
        assert not step[1][0].isfinite().all() and not step[3].isfinite()
    labels, distance = kmeans_assign(x, centroids, **way, impl="cpp")
    assert labels[len(rows) :].equal(clean[0][len(rows) :])
    assert distance[len(rows) :].equal(clean[1][len(rows) :])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e20, 1e38])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_clustering_loss_takes_the_same_labels(impl, dtype, scale, normalize):
    # Beside unit rows those of other magnitudes are all as far.
    centroids = (1.0 if normalize else scale) * (torch.rand(37, 12) - 0.5)
    ends = torch.finfo(dtype)
    x = (scale * (torch.rand(80, 12) - 0.5)).double().clamp(ends.min, ends.max).to(dtype).requires_grad_()
    loss, labels = cluster_cross_entropy(x, centroids, normalize=normalize, impl=impl)
    assert labels.equal(kmeans_assign(x, centroids, normalize=normalize, impl="cpp")[0])
    loss.backward()
    if normalize and dtype != torch.float16 and scale > 1e-38:
        # Of unit rows: what float64 gives.
        wide = x.detach().double().requires_grad_()
        truth = cluster_cross_entropy(wide, centroids, normalize=True, impl="reference")[0]
        truth.backward()
        torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
        if scale <= 1e20:  # beyond, gradients are subnormal
            assert (x.grad.double() - wide.grad).norm() <= 1e-2 * wide.grad.norm()


def test_the_backward_pass_follows_no_label_that_is_none():
    x, centroids, grad = torch.randn(1, 6, 4), torch.randn(3, 4), torch.ones(1, 6)
    _, lse, labels = torch.ops.cmx_fast.cluster_cross_entropy_fwd(x, centroids, None, False)
    for bad in (-1, 3, 2**40):
        labels[0, 2] = bad
        with pytest.raises(RuntimeError, match="target must lie in 0 to 2"):
            torch.ops.cmx_fast.cluster_cross_entropy_bwd(grad, x, centroids, labels, lse, False)


@pytest.mark.parametrize("limit", held_back_to("default", "avx2", "avx512"))
def test_lesser_processors_agree(limit):
    """The kernels of processors without this one's instructions agree, too."""
    script = """
import torch
from cmx_fast.ops import kmeans_assign
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64):
    for scale in (1e-38, 1e-20, 1e19, 1e20, 1e38):
        x, centroids = (scale * torch.rand(50, 23, dtype=dtype) for _ in range(2))
        for way in ({}, {"normalize": True}, {"metric": "cosine"}):
            near = centroids[:41] / scale if "normalize" in way else centroids[:41]
            print(kmeans_assign(x, near, **way)[0].tolist())
x = torch.randn(64, 5)
x[::3, 1], x[1::3, 2] = float("nan"), float("inf")
print(kmeans_assign(x, torch.randn(33, 5))[0].tolist())
"""
    assert printed_by(script, limit) == printed_by(script)
