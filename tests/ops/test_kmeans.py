import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from instruction_sets import held_back_to, printed_by

from cmx_fast import reference
from cmx_fast.ops import kmeans_assign, kmeans_step

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.cmx_fast, "kmeans_step"), reason="the C++ extension is not built (CMX_NO_EXTENSION)"
)
WAYS = [{}, {"normalize": True}, {"metric": "cosine"}]


def blobs(n, d, components=16, spread=0.7):
    return torch.randn(components, d)[torch.randint(components, (n,))] + spread * torch.randn(n, d)


def all_distances(x, centroids, metric="l2", normalize=False):
    """(N, K) in float64."""
    rows, centers = reference.feature_rows(x).double(), centroids.double()
    if metric == "cosine":
        return 1 - F.normalize(rows, dim=1, eps=0) @ F.normalize(centers, dim=1, eps=0).T
    rows = F.normalize(rows, dim=1) if normalize else rows
    return torch.cdist(rows, centers, compute_mode="donot_use_mm_for_euclid_dist").square()


def assert_nearest(labels, x, centroids, rounding=1e-6, **way):
    """The labels are float64's wherever the margin exceeds float32's rounding, and as near elsewhere."""
    distances = all_distances(x, centroids, **way)
    chosen = distances.gather(1, labels.reshape(-1, 1))[:, 0]
    assert (chosen <= distances.min(1).values * (1 + rounding) + 1e-12).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("n", "d", "k"),
    [(1, 2, 1), (63, 17, 2), (129, 8, 33), (1000, 64, 27), (257, 300, 65), (500, 31, 1500), (40, 4096, 5)],
)
def test_step_is_that_of_float64(n, d, k, dtype, way):
    x, centroids = blobs(n, d).to(dtype), blobs(k, d)
    labels, sums, counts, inertia = kmeans_step(x, centroids, **way, impl="cpp")
    assert_nearest(labels, x, centroids, **way)
    rows = reference.feature_rows(x).double()
    rows = F.normalize(rows, dim=1) if way else rows
    expected = torch.zeros(k, d, dtype=torch.float64).index_add_(0, labels, rows)
    unit = torch.finfo(sums.dtype).eps
    unit *= 1 if sums.dtype == torch.float32 else 50  # float64 sums have nothing wider to be made in
    assert (sums.double() - expected).norm() <= 2 * unit * expected.norm()
    assert counts.tolist() == torch.bincount(labels, minlength=k).tolist()
    truth = all_distances(x, centroids, **way).gather(1, labels[:, None])
    assert inertia.item() == pytest.approx(truth.sum().item(), rel=8 * unit)
    again, distance = kmeans_assign(x, centroids, **way, impl="cpp")
    assert again.equal(labels)
    torch.testing.assert_close(distance.double(), truth[:, 0], rtol=16 * unit, atol=4 * unit)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_are_read_as_they_lie(dtype, way):
    maps, centroids = torch.randn(3, 33, 7, 18).to(dtype), torch.randn(9, 33)
    rows = reference.feature_rows(maps).contiguous()
    expected = kmeans_step(rows, centroids, **way)
    for layout in (
        maps,
        maps.to(memory_format=torch.channels_last),
        maps.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        labels, *rest = kmeans_step(layout, centroids, **way)
        assert labels.shape == (3, 7, 18)
        assert labels.flatten().equal(expected[0])
        for actual, wanted in zip(rest, expected[1:]):
            torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-5)
    strided = torch.zeros(378, 70, dtype=dtype)
    strided[:, ::2][:, :33] = rows
    assert kmeans_assign(strided[:, ::2][:, :33], centroids, **way)[0].equal(expected[0])


def test_any_number_of_threads_gives_the_same_bits():
    x, centroids = blobs(40_000, 24), blobs(50, 24)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(kmeans_step(x, centroids, weight=x[:, 0].abs()))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(actual.equal(first) for actual, first in zip(result, results[0]))


def test_one_cluster_beyond_what_float32_can_count():
    # faiss, whose counts and sums are float32, is 46 % off at such sizes.
    n = 2**24 + 4096
    x = torch.full((n, 1), 0.3214)
    _, sums, counts, inertia = kmeans_step(x, torch.tensor([[0.3], [-5.0]]))
    assert counts.tolist() == [n, 0]
    assert (sums[0] / counts[0]).item() == pytest.approx(0.3214, rel=1e-6)
    assert inertia.item() == pytest.approx(n * (0.3214 - 0.3) ** 2, rel=1e-5)


@pytest.mark.parametrize("offset", [1e3, -1e3])
def test_a_common_offset_leaves_the_labels_right(offset):
    # The expanded square in float32 gets 15 % of these right.
    x, centroids = blobs(3000, 64) + offset, blobs(40, 64) + offset
    labels, distance = kmeans_assign(x, centroids)
    assert_nearest(labels, x, centroids, rounding=1e-5)
    truth = all_distances(x, centroids).min(1).values
    torch.testing.assert_close(distance.double(), truth, rtol=1e-5, atol=0)


def test_equal_centroids_go_to_the_lowest_index():
    centroids = torch.randn(40, 20)
    centroids[17:33] = centroids[3]
    labels = kmeans_assign(centroids[3] + 1e-3 * torch.randn(200, 20), centroids)[0]
    assert (labels == 3).all()
    assert (kmeans_assign(torch.randn(300, 20), torch.zeros(2000, 20))[0] == 0).all()


def test_sums_of_very_many_centroids():
    # Their partial sums would not fit once per slice of the data.
    x, k = torch.randn(16_500, 64), 40_000
    centroids = torch.randn(k, 64)
    labels, sums, counts, _ = kmeans_step(x, centroids)
    expected = torch.zeros(k, 64, dtype=torch.float64).index_add_(0, labels, x.double())
    torch.testing.assert_close(sums.double(), expected, rtol=1e-6, atol=1e-6)
    assert counts.sum() == len(x)
    assert_nearest(labels[:100], x[:100], centroids)


@given(n=st.integers(1, 200), k=st.integers(1, 12), seed=st.integers(0, 1000))
def test_weights_are_repetitions(n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    x, centroids = torch.randn(n, 5, generator=generator), torch.randn(k, 5, generator=generator)
    weight = torch.randint(0, 4, (n,), generator=generator)
    labels, sums, counts, inertia = kmeans_step(x, centroids, weight=weight.float())
    _, sums_of_all, counts_of_all, inertia_of_all = kmeans_step(x.repeat_interleave(weight, 0), centroids)
    assert labels.equal(kmeans_assign(x, centroids)[0])
    torch.testing.assert_close(sums, sums_of_all, rtol=1e-6, atol=1e-6)
    assert counts.dtype == torch.float64 and counts.equal(counts_of_all.double())
    assert inertia.item() == pytest.approx(inertia_of_all.item(), rel=1e-9)


@given(n=st.integers(2, 300), seed=st.integers(0, 1000))
def test_parts_add_up_and_order_does_not_matter(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x, centroids = torch.randn(n, 12, generator=generator), torch.randn(7, 12, generator=generator)
    order, cut = torch.randperm(n, generator=generator), n // 3
    labels, sums, counts, inertia = kmeans_step(x, centroids)
    assert kmeans_assign(x[order], centroids)[0].equal(labels[order])
    parts = [kmeans_step(part, centroids) for part in (x[:cut], x[cut:])]
    torch.testing.assert_close(parts[0][1] + parts[1][1], sums, rtol=1e-5, atol=1e-5)
    assert (parts[0][2] + parts[1][2]).equal(counts)
    assert (parts[0][3] + parts[1][3]).item() == pytest.approx(inertia.item(), rel=1e-9)


def test_no_vectors_and_a_vector_of_nan():
    labels, sums, counts, inertia = kmeans_step(torch.empty(0, 4), torch.ones(3, 4))
    assert labels.shape == (0,) and sums.eq(0).all() and counts.eq(0).all() and inertia == 0
    x = torch.randn(50, 4)
    x[7, 2] = float("nan")
    labels, distance = kmeans_assign(x, x[:3])
    assert distance.isnan().nonzero().flatten().tolist() == [7]
    assert kmeans_step(x, x[:3])[3].isnan()
    zero = kmeans_assign(torch.zeros(2, 4), torch.eye(4), normalize=True)
    assert zero[1].tolist() == [1.0, 1.0]


def test_registered_as_pytorch_wants_it():
    maps, rows, centroids = torch.randn(2, 6, 3, 5), torch.randn(1, 9, 6), torch.randn(4, 6)
    for x in (maps.flatten(2).transpose(1, 2), rows):
        torch.library.opcheck(torch.ops.cmx_fast.kmeans_assign, (x, centroids, "l2", True))
        for weight in (None, torch.rand(x.shape[:2])):
            torch.library.opcheck(torch.ops.cmx_fast.kmeans_step, (x, centroids, weight, "cosine", False))
    compiled = torch.compile(lambda x, c: kmeans_step(x * 2, c)[1] + 1, fullgraph=True)
    torch.testing.assert_close(compiled(maps, centroids), kmeans_step(maps * 2, centroids)[1] + 1)


@pytest.mark.parametrize("limit", held_back_to("default", "avx2", "avx512", "avx512_bf16"))
def test_lesser_processors_agree(limit):
    """The kernels of processors without this one's instructions agree, too."""
    script = """
import torch
from cmx_fast.ops import kmeans_step
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64):
    x, centroids = torch.rand(4, 37, 9, 11, dtype=dtype), torch.rand(50, 37)
    for result in kmeans_step(x, centroids, normalize=True):
        print(result.double().sum().item(), result.double().square().sum().item())
"""
    all_of_them, less = ([float(word) for word in printed_by(script, to).split()] for to in (None, limit))
    assert less == pytest.approx(all_of_them, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": [[1.0]]}, TypeError, "x must be a tensor"),
        ({"x": torch.ones(5, 3).long()}, TypeError, "x must be float32"),
        ({"x": torch.ones(5, 3, 2)}, ValueError, r"x must have shape \(N, D\) or \(B, D, H, W\)"),
        ({"x": torch.ones(5, 4)}, ValueError, "x has 4 features and centroids have 3"),
        ({"centroids": torch.ones(0, 3)}, ValueError, "K at least 1"),
        ({"centroids": torch.tensor([[1.0, 2, 3], [1, float("nan"), 3]])}, ValueError, r"rows \[1\] are not"),
        ({"metric": "l1"}, ValueError, "metric must be one of 'l2', 'cosine'; got 'l1'"),
        ({"metric": "cosine", "centroids": torch.zeros(2, 3)}, ValueError, r"centroids \[0, 1\] are zero"),
        ({"metric": "cosine", "x": torch.zeros(5, 3)}, ValueError, "5 of 5 vectors of x are zero"),
        ({"weight": torch.ones(5).long()}, TypeError, "weight must be a torch.float32 tensor"),
        (
            {"weight": torch.ones(4)},
            ValueError,
            r"weight must have one number per vector, \(5,\), got \(4,\)",
        ),
        ({"weight": -torch.ones(5)}, ValueError, "weight must not be negative"),
        ({"impl": "fast"}, ValueError, "impl must be one of"),
        ({"impl": "triton"}, ValueError, "Triton kernels run on CUDA tensors"),
    ],
)
def test_refuses(arguments, error, message):
    arguments = {"x": torch.ones(5, 3), "centroids": torch.ones(2, 3)} | arguments
    with pytest.raises(error, match=message):
        kmeans_step(**arguments)
