import sys

import numpy as np
import pytest
import sklearn.cluster
import torch
import torch.nn.functional as F
from cluster_data import blobs
from hypothesis import given
from hypothesis import strategies as st

from cmx_fast.cluster import EmptyClusterWarning, KMeans, MiniBatchKMeans
from cmx_fast.cluster._samples import Samples
from cmx_fast.cluster.seeding import plus_plus


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("clusters", "seed"), [(6, 0), (9, 1), (1, 2), (40, 3)])
def test_same_start_same_result_as_scikit_learn(clusters, seed, weighted):
    x = blobs(seed=seed)
    rng = np.random.default_rng(seed)
    first = x[rng.choice(len(x), clusters, replace=False)]
    weight = rng.random(len(x)) if weighted else None
    theirs = sklearn.cluster.KMeans(clusters, init=first, n_init=1).fit(x, sample_weight=weight)
    ours = KMeans(clusters, init=first).fit(x, sample_weight=weight)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-10, atol=1e-12)
    assert (ours.labels_ == theirs.labels_).all()
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-12)
    assert ours.n_iter_ == theirs.n_iter_
    np.testing.assert_allclose(ours.transform(x[:9]), theirs.transform(x[:9]), rtol=1e-9, atol=1e-9)
    assert (ours.predict(x[::-1]) == theirs.predict(np.ascontiguousarray(x[::-1]))).all()
    assert ours.score(x) == pytest.approx(theirs.score(x), rel=1e-12)
    counted = np.bincount(theirs.labels_, weights=weight, minlength=clusters)
    np.testing.assert_allclose(ours.counts_, counted, rtol=1e-12)


def test_empty_clusters_go_where_scikit_learn_sends_them():
    x = blobs()
    first = np.concatenate([x[:4], x[:1] + 100, x[:1] + 101])
    theirs = sklearn.cluster.KMeans(6, init=first, n_init=1).fit(x)
    with pytest.warns(EmptyClusterWarning, match="2 times a cluster fell empty"):
        ours = KMeans(6, init=first).fit(x)
    assert ours.n_relocated_ == 2
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-12)
    assert (ours.labels_ == theirs.labels_).all()


def test_same_start_same_result_as_faiss():
    faiss = pytest.importorskip("faiss")
    x = blobs(3000, 16).astype(np.float32)
    first = x[np.random.default_rng(0).choice(len(x), 12, replace=False)]
    trainer = faiss.Kmeans(16, 12, niter=5, min_points_per_centroid=1, max_points_per_centroid=10**6)
    trainer.train(x, init_centroids=first)
    ours = KMeans(12, init=first, max_iter=5, tol=0).fit(x)
    np.testing.assert_allclose(ours.cluster_centers_, trainer.centroids, rtol=1e-4, atol=1e-4)
    backend = KMeans(12, init=first, max_iter=5, backend="faiss").fit(x)
    np.testing.assert_allclose(backend.cluster_centers_, trainer.centroids, rtol=1e-5, atol=1e-5)
    assert backend.inertia_ == pytest.approx(ours.inertia_, rel=1e-4)
    with pytest.raises(ValueError, match="backend='faiss' clusters vectors"):
        KMeans(12, metric="cosine", backend="faiss").fit(x)


def test_faiss_begins_where_we_do_and_the_best_of_its_runs_is_kept():
    pytest.importorskip("faiss")
    x, options = blobs(400).astype(np.float32), {"init": "random", "random_state": 0, "max_iter": 2, "tol": 0}
    for runs in (1, 4):
        ours, theirs = (
            KMeans(6, n_init=runs, backend=backend, **options).fit(x) for backend in ("cmx", "faiss")
        )
        np.testing.assert_allclose(theirs.cluster_centers_, ours.cluster_centers_, rtol=1e-4, atol=1e-4)


def test_without_faiss_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        ImportError, match=r"^faiss is not installed; pip install 'cmx-fast\[cpu\]' brings it$"
    ):
        KMeans(2, backend="faiss").fit(np.ones((3, 2)))


def test_kind_device_and_dtype_of_what_came_in():
    x = blobs(100)
    assert isinstance(KMeans(3, random_state=0).fit(x).cluster_centers_, np.ndarray)
    assert KMeans(3, random_state=0).fit(x).cluster_centers_.dtype == np.float64
    for dtype, wide in (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64,) * 2,
    ):
        fitted = KMeans(3, random_state=0).fit(torch.from_numpy(x).to(dtype))
        assert fitted.cluster_centers_.dtype == wide and fitted.labels_.dtype == torch.int64
        assert isinstance(fitted.predict(x), np.ndarray)
    assert KMeans(2, random_state=0).fit([[1, 2], [1, 3], [9, 9]]).labels_.tolist().count(0) in (1, 2)


@pytest.mark.parametrize("options", [{"metric": "cosine"}, {"normalize": True}])
def test_maps_and_directions(options):
    maps = torch.randn(3, 12, 9, 7)
    rows = F.normalize(maps, dim=1).movedim(1, -1).reshape(-1, 12)
    first = rows[torch.randperm(len(rows))[:5]]
    of_maps = KMeans(5, init=first, **options).fit(maps)
    of_rows = KMeans(5, init=first, **options).fit(rows)
    assert of_maps.labels_.shape == (3, 9, 7)
    assert of_maps.labels_.flatten().equal(of_rows.labels_)
    torch.testing.assert_close(of_maps.cluster_centers_, of_rows.cluster_centers_, rtol=1e-5, atol=1e-6)
    if "metric" in options:
        torch.testing.assert_close(of_maps.cluster_centers_.norm(dim=1), torch.ones(5))
        cosine = rows @ of_maps.cluster_centers_.T
        assert of_maps.inertia_ == pytest.approx((1 - cosine.max(1).values).sum().item(), rel=1e-4)
        torch.testing.assert_close(of_maps.transform(maps), 1 - cosine, rtol=1e-4, atol=1e-5)


def test_seed_decides_and_the_global_one_is_left_alone():
    x = torch.from_numpy(blobs())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = (KMeans(4, init="random", n_init=2, random_state=3).fit(x) for _ in "ab")
    assert torch.get_rng_state().equal(before)
    assert first.cluster_centers_.equal(again.cluster_centers_)
    assert KMeans(4, init="random", n_init=10, random_state=1).fit(x).inertia_ <= first.inertia_ * 1.5


def test_starts_by_a_function():
    def draw(X, n_clusters, random_state):
        return X[random_state.choice(len(X), n_clusters, replace=False)]

    def draw_tensors(X, n_clusters, random_state):
        return X[torch.randperm(len(X), generator=random_state)[:n_clusters]]

    x = blobs()
    again = [KMeans(4, init=draw, n_init=3, random_state=state).fit(x) for state in (7, 7, 8)]
    assert (again[0].labels_ == again[1].labels_).all()
    assert (again[0].cluster_centers_ != again[2].cluster_centers_).any()
    fitted = MiniBatchKMeans(4, init=draw_tensors, random_state=np.random.RandomState(3))
    assert fitted.fit(torch.from_numpy(x)).inertia_ < 3 * again[0].inertia_


def test_plus_plus_finds_far_clusters_and_does_without_the_matrix():
    # Sixteen tight clusters: a start misses one only by drawing two points of another.
    centres = 100 * torch.randn(16, 8)
    x = centres.repeat(50, 1) + 0.1 * torch.randn(800, 8)
    samples = Samples(x, None, metric="l2", normalize=False)
    chosen = plus_plus(samples, 16, torch.Generator().manual_seed(0))
    nearest = torch.cdist(chosen, centres).argmin(1)
    assert len(nearest.unique()) == 16


@given(n=st.integers(1, 40), clusters=st.integers(1, 5), seed=st.integers(0, 100))
def test_weight_zero_is_absence_and_inertia_never_rises(n, clusters, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n + clusters, 3, generator=generator).double()
    weight = torch.randint(0, 3, (len(x),), generator=generator).double()
    weight[:clusters] = 1
    first = x[:clusters]
    fitted = KMeans(clusters, init=first, tol=0).fit(x, sample_weight=weight)
    assert fitted.counts_.sum() == weight.sum()
    inertias = [
        KMeans(clusters, init=first, tol=0, max_iter=m).fit(x, sample_weight=weight).inertia_
        for m in (1, 2, 5)
    ]
    assert sorted(inertias, reverse=True) == pytest.approx(inertias)


@pytest.mark.parametrize(
    ("options", "x", "message"),
    [
        (
            {},
            np.array([[1.0, np.nan], [2, 3], [np.inf, 1]]),
            r"NaN or infinity in 2 of 3 samples; the first are \[0, 2\]",
        ),
        ({"n_clusters": 5}, np.ones((3, 2)), "n_samples=3 should be >= n_clusters=5"),
        ({"metric": "cosine"}, np.array([[0.0, 0], [1, 2]]), r"1 zero vectors among 2 samples.* \[0\]"),
        ({"metric": "l1"}, np.ones((3, 2)), "metric must be one of"),
        ({"init": "best"}, np.ones((3, 2)), "init must be one of 'k-means"),
        ({"init": np.ones((1, 2))}, np.ones((3, 2)), r"initial centers \(1, 2\) does not match"),
        ({"n_init": 0}, np.ones((3, 2)), "n_init must be 'auto' or an integer of at least 1, got 0"),
        ({"n_clusters": 2.5}, np.ones((3, 2)), "n_clusters must be an integer of at least 1, got 2.5"),
        ({"n_clusters": 0}, np.ones((3, 2)), "n_clusters must be an integer of at least 1"),
        ({"backend": "gpu"}, np.ones((3, 2)), "backend must be one of 'cmx', 'faiss'"),
        ({}, np.ones(3), r"X must have shape \(N, D\) or \(B, D, H, W\)"),
    ],
)
def test_refuses(options, x, message):
    with pytest.raises(ValueError, match=message):
        KMeans(**{"n_clusters": 2} | options).fit(x)


def test_refuses_to_predict_before_and_beside_the_fit():
    with pytest.raises(ValueError, match="KMeans is not fitted yet; call fit before predict"):
        KMeans(2).predict(np.ones((2, 2)))
    with pytest.raises(ValueError, match="X has 3 features, but KMeans is expecting 5"):
        KMeans(2, random_state=0).fit(blobs(20)).predict(np.ones((2, 3)))
