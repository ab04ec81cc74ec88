"""SciPy's sparse matrices: the results of dense ones, a block of rows at a time."""

import numpy as np
import pytest
import scipy.sparse
import torch

from cmx_fast.cluster import KMeans, MiniBatchKMeans, _estimator, _sparse

BOTH = pytest.mark.parametrize("estimator", [KMeans, MiniBatchKMeans])


def sparse_rows(n=300, d=40, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    dense = (
        rng.normal(2, 1, (n, d)) * (rng.random((n, d)) < 0.2) + (rng.random((n, 1)) < 0.5) * np.eye(1, d) * 9
    )
    dense[np.arange(n), rng.integers(d, size=n)] += 1
    return dense.astype(dtype)


@BOTH
@pytest.mark.parametrize("block", [1, 7 * 40, 2**24])
@pytest.mark.parametrize("options", [{}, {"metric": "cosine"}, {"normalize": True}])
@pytest.mark.parametrize("weighted", [False, True])
def test_gives_what_dense_rows_give(estimator, block, options, weighted, monkeypatch):
    monkeypatch.setattr(_sparse, "BLOCK", block)
    monkeypatch.setattr(_estimator, "BLOCK", block)
    dense = sparse_rows()
    rows = scipy.sparse.csr_array(dense)
    weight = np.random.default_rng(1).random(300) if weighted else None
    if estimator is MiniBatchKMeans:
        options = options | {"batch_size": 50, "init_size": 100}
    of_dense, of_sparse = (
        estimator(4, random_state=0, init="random", n_init=2, **options).fit(x, sample_weight=weight)
        for x in (dense, rows)
    )
    assert (of_sparse.labels_ == of_dense.labels_).all()
    np.testing.assert_allclose(of_sparse.cluster_centers_, of_dense.cluster_centers_, rtol=1e-9, atol=1e-12)
    assert of_sparse.inertia_ == pytest.approx(of_dense.inertia_, rel=1e-9)
    np.testing.assert_allclose(of_sparse.counts_, of_dense.counts_)
    assert (of_dense.predict(rows) == of_sparse.predict(dense)).all()
    np.testing.assert_allclose(of_sparse.transform(rows), of_dense.transform(dense), rtol=1e-7, atol=1e-9)
    assert of_sparse.score(rows, sample_weight=weight) == pytest.approx(-of_dense.inertia_, rel=1e-9)


@BOTH
@pytest.mark.parametrize("layout", ["csr", "csc", "coo", "dok", "lil", "bsr"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_every_layout_and_dtype_and_none_is_written_to(estimator, layout, dtype):
    dense = sparse_rows(dtype=dtype)
    rows = scipy.sparse.csr_array(dense).asformat(layout)
    fitted = estimator(3, random_state=0).fit(rows)
    assert fitted.cluster_centers_.dtype == (np.float32 if dtype == np.float32 else np.float64)
    assert fitted.transform(rows).dtype == fitted.cluster_centers_.dtype
    assert (fitted.predict(dense) == fitted.labels_).all()
    assert (rows.toarray() == dense).all()


def test_a_stream_and_starts_by_a_function():
    def first_rows(X, n_clusters, random_state):
        assert scipy.sparse.issparse(X)
        return X[:n_clusters]

    dense = sparse_rows()
    rows = scipy.sparse.csr_array(dense)
    for estimator in (KMeans, MiniBatchKMeans):
        starts = (first_rows, dense[:4])
        options = {"random_state": 0, "n_init": 1}
        by_function, given = (
            MiniBatchKMeans(4, init=init, **options).partial_fit(rows)
            if estimator is MiniBatchKMeans
            else KMeans(4, init=init, **options).fit(rows)
            for init in starts
        )
        np.testing.assert_allclose(by_function.cluster_centers_, given.cluster_centers_, rtol=1e-9)
    streamed = MiniBatchKMeans(4, random_state=0).fit_stream([rows[:150], rows[150:]])
    assert streamed.n_steps_ == 2


@BOTH
def test_refuses_what_it_refuses_of_dense_rows(estimator):
    rows = scipy.sparse.csr_array(sparse_rows())
    bad = rows.copy()
    bad.data[[0, -1]] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"NaN or infinity in 2 of 300 samples; the first are \[0, 299\]"):
        estimator(3).fit(bad)
    empty = rows.tolil()
    empty[5] = 0
    empty = empty.tocsr()
    empty.data[empty.indptr[7] : empty.indptr[8]] = 0  # zeros that are stored
    with pytest.raises(ValueError, match=r"2 zero vectors among 300 samples.* \[5, 7\]"):
        estimator(3, metric="cosine").fit(empty)
    with pytest.raises(ValueError, match="Complex data not supported"):
        estimator(3).fit(rows.astype(np.complex128))
    with pytest.raises(ValueError, match=r"X must have shape \(N, D\), got \(3,\)"):
        estimator(3).fit(scipy.sparse.coo_array(np.ones(3)))
    with pytest.raises(ValueError, match="X holds 0 sample"):
        estimator(3).fit(scipy.sparse.csr_array((0, 3)))
    with pytest.raises(TypeError, match=r"X is sparse.*\.to_dense\(\)"):
        estimator(3).fit(torch.eye(4).to_sparse())
    with pytest.raises(TypeError, match=r"sample_weight is sparse.*\.toarray\(\)"):
        estimator(3).fit(rows, sample_weight=rows[:, :1])


def test_faiss_takes_dense_rows_only():
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match=r"backend='faiss' clusters vectors \(N, D\), not sparse"):
        KMeans(3, backend="faiss").fit(scipy.sparse.csr_array(sparse_rows()))


def test_dense_rows_never_lie_there_together(monkeypatch):
    monkeypatch.setattr(_sparse, "BLOCK", 2**16)
    rows = scipy.sparse.random_array((4096, 4096), density=1e-3, format="csr", rng=np.random.default_rng(0))
    largest = 0

    def watched(step):
        def call(x, *arguments, **options):
            nonlocal largest
            largest = max(largest, x.numel())
            return step(x, *arguments, **options)

        return call

    for name in ("kmeans_assign", "kmeans_step"):
        monkeypatch.setattr(_sparse, name, watched(getattr(_sparse, name)))
    fitted = KMeans(3, random_state=0, max_iter=2).fit(rows)
    assert fitted.labels_.shape == (4096,) and 0 < largest <= 2**16
