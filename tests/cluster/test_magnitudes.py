"""The estimators on data whose squares overflow or vanish, and on data that cannot be clustered."""

import numpy as np
import pytest
import torch

from cmx_fast.cluster import KMeans, MiniBatchKMeans

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.cmx_fast, "kmeans_step"), reason="the C++ extension is not built (CMX_NO_EXTENSION)"
)
ESTIMATORS = [KMeans, MiniBatchKMeans]


def normal(dtype, n=500, d=4):
    return np.random.RandomState(0).randn(n, d).astype(dtype)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_value_whose_square_overflows(estimator, dtype):
    x = normal(dtype)
    x[5, 2] = 1e20 if dtype == "float32" else 1e160
    fitted = estimator(3, random_state=0).fit(x)
    assert np.isfinite(fitted.cluster_centers_).all()
    assert fitted.labels_.min() >= 0 and fitted.labels_.max() < 3
    wide, centers = x.astype(np.longdouble), fitted.cluster_centers_.astype(np.longdouble)
    distances = ((wide[:, None] - centers) ** 2).sum(2)
    chosen = distances[np.arange(len(x)), fitted.labels_]
    assert (chosen <= distances.min(1) * (1 + 1e-6)).all()
    assert (fitted.predict(x) == fitted.labels_).all()
    if dtype == "float32":  # in float64 the sum of such squares overflows, too
        assert fitted.inertia_ == pytest.approx(float(chosen.sum()), rel=1e-5)
        assert fitted.score(x) == pytest.approx(-fitted.inertia_, rel=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e18, 1e20, 1e30])
def test_clusters_do_not_depend_on_the_unit(estimator, scale):
    x = np.concatenate([normal("float32", 100) * 0.1 + centre for centre in (0, 5, 9)])
    # An exact power of two near the scale: the same digits in another unit.
    factor = np.float32(2.0 ** round(np.log2(scale)))
    start = x[[0, 100, 200]]
    one = estimator(3, init=start, n_init=1, random_state=0).fit(x)
    other = estimator(3, init=start * factor, n_init=1, random_state=0).fit(x * factor)
    assert (one.labels_ == other.labels_).all() and len(set(one.labels_[::100])) == 3
    np.testing.assert_allclose(other.cluster_centers_ / factor, one.cluster_centers_, rtol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite(estimator, bad):
    x = normal("float32")
    x[7, 1] = bad
    with pytest.raises(
        ValueError, match=r"X contains NaN or infinity in 1 of 500 samples; the first are \[7\]"
    ):
        estimator(3).fit(x)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_refuses_sums_that_overflow(estimator):
    x = normal("float32") * np.float32(1e37)
    with pytest.raises(ValueError, match="sums of 500 such samples overflow torch.float32.*or use float64"):
        estimator(3).fit(x)
    assert np.isfinite(estimator(3, random_state=0).fit(x.astype("float64")).cluster_centers_).all()
