"""Samples' weights: none is ignored, and a sample of weight 0 is as if it were not there."""

import numpy as np
import pytest
import torch
from cluster_data import blobs
from hypothesis import given, settings
from hypothesis import strategies as st

from cmx_fast.cluster import KMeans, MiniBatchKMeans
from cmx_fast.cluster._samples import Samples
from cmx_fast.cluster.seeding import choice, draw, sketch, start

BOTH = pytest.mark.parametrize("estimator", [KMeans, MiniBatchKMeans])


def samples_of(x, weight=None):
    return Samples(x, weight, metric="l2", normalize=False)


def mostly_absent(present=40, absent=9960, seed=0):
    """Two blobs that count, near (0, 0) and (10, 10), far apart in the order among others at 50 that don't."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(50, 1, (absent, 2)), rng.normal(0, 1, (present, 2))])
    x[-present // 2 :] += 10
    weight = np.repeat([0.0, 1.0], [absent, present])
    order = rng.permutation(len(x))
    return x[order], weight[order]


@pytest.mark.parametrize("seed", range(8))
def test_starts_are_compared_by_weight(seed):
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(0, 1, 500), rng.normal(8, 1, 500), np.full(1000, 1000.0)])[:, None]
    weight = np.repeat([1.0, 1e-12], 1000)
    best = KMeans(2, init=[[0.0], [8.0]]).fit(x, sample_weight=weight).inertia_
    options = {"init": "random", "n_init": 20, "max_iter": 1, "batch_size": 2000, "random_state": seed}
    assert MiniBatchKMeans(2, **options).fit(x, sample_weight=weight).inertia_ < 1.01 * best


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("light", [0.0, 1e-12])
@pytest.mark.parametrize("init", [[[5.0, 5], [6, 6]], "k-means++", "random"])
def test_batches_and_starts_are_drawn_by_weight(init, light, seed):
    x, weight = mostly_absent()
    best = KMeans(2, init=[[0.0, 0], [10, 10]]).fit(x[weight > 0]).inertia_
    fitted = MiniBatchKMeans(2, init=init, batch_size=100, random_state=seed)
    fitted.fit(x, sample_weight=weight.clip(light))
    assert -fitted.score(x[weight > 0]) < 1.1 * best


@BOTH
def test_ones_are_as_no_weights(estimator):
    x = blobs(3000)
    for options in ({"batch_size": 100, "init_size": 200}, {}) if estimator is MiniBatchKMeans else ({},):
        plain, ones = (
            estimator(5, init="random", random_state=3, **options).fit(x, sample_weight=weight)
            for weight in (None, np.ones(3000))
        )
        assert (plain.cluster_centers_ == ones.cluster_centers_).all()
        assert plain.inertia_ == ones.inertia_ and (plain.counts_ == ones.counts_).all()


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-300, 1e-42, 1e-20, 1e30, 1e300])
def test_only_the_ratio_of_weights_moves_centroids(estimator, dtype, scale):
    x = blobs(500).astype(dtype)
    weight = np.random.default_rng(0).random(500)
    plain, scaled = (
        estimator(4, random_state=2).fit(x, sample_weight=factor * weight) for factor in (1, scale)
    )
    np.testing.assert_allclose(scaled.cluster_centers_, plain.cluster_centers_, rtol=1e-4)
    assert scaled.inertia_ == pytest.approx(plain.inertia_ * scale, rel=1e-5)
    assert scaled.score(x, sample_weight=scale * weight) == pytest.approx(-scaled.inertia_, rel=1e-9)
    if estimator is KMeans:
        np.testing.assert_allclose(scaled.counts_, plain.counts_ * scale, rtol=1e-5)


def test_absent_samples_do_not_loosen_the_tolerance():
    x = blobs(500)
    far = np.concatenate([x, np.full((5, 5), 1e6)])
    weight = np.repeat([1.0, 0.0], [500, 5])
    alone, beside = (
        KMeans(6, init=x[:6], tol=1e-3).fit(data, sample_weight=share)
        for data, share in ((x, None), (far, weight))
    )
    assert alone.n_iter_ == beside.n_iter_ > 2
    np.testing.assert_allclose(beside.cluster_centers_, alone.cluster_centers_, rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_no_centroid_starts_at_or_moves_to_an_absent_sample(init, seed):
    x = blobs(200, seed=seed)
    x[::2] += 1000
    weight = np.tile([0.0, 1.0], 100)
    centroids = start(samples_of(x, weight), 12, init, torch.Generator().manual_seed(seed))
    assert centroids.max() < 500
    # Fewer samples that count than clusters: some of them twice, none of the others.
    few = start(samples_of(x, weight * (np.arange(200) < 8)), 12, init, torch.Generator().manual_seed(seed))
    assert few.max() < 500 and len(few.unique(dim=0)) == 4
    # Nearly every cluster is starved, and moved at each batch.
    fitted = MiniBatchKMeans(12, init=x[1:2].repeat(12, 0), reassignment_ratio=1.0, random_state=seed)
    for _ in range(5):
        with_absent = fitted.partial_fit(x, sample_weight=weight)
    assert with_absent.n_reassigned_ > 10 and with_absent.cluster_centers_.max() < 500


def test_partial_fit_of_absent_samples_is_that_of_the_others():
    x, rng = blobs(900), np.random.default_rng(0)
    alone, beside = (MiniBatchKMeans(7, init=x[:7], reassignment_ratio=0) for _ in "ab")
    for begin in range(0, 900, 300):
        batch, weight = x[begin : begin + 300], rng.random(300) * (rng.random(300) < 0.5)
        beside.partial_fit(batch, sample_weight=weight)
        alone.partial_fit(batch[weight > 0], sample_weight=weight[weight > 0])
    np.testing.assert_allclose(beside.cluster_centers_, alone.cluster_centers_, rtol=1e-9)
    np.testing.assert_allclose(beside.counts_, alone.counts_, rtol=1e-9)


def test_the_first_batch_tries_all_its_starts():
    x = blobs(600, components=8)
    one, several = (
        [
            MiniBatchKMeans(8, init="random", n_init=n_init, random_state=seed).partial_fit(x).inertia_
            for seed in range(6)
        ]
        for n_init in (1, 10)
    )
    assert np.mean(several) < 0.8 * np.mean(one)


def test_a_cluster_far_off_takes_its_first_sample_exactly():
    # 1e20 + (1 - 1e20) would be 0.
    fitted = MiniBatchKMeans(1, init=[[1e20]]).partial_fit([[1.0]], sample_weight=[1e-3])
    assert fitted.cluster_centers_.item() == 1.0


@given(
    weight=st.lists(st.sampled_from([0.0, 1e-30, 0.5, 1.0, 3.0, 1e30]), min_size=1, max_size=40),
    count=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_draws_are_of_samples_that_count(weight, count, seed):
    weight = torch.tensor([*weight, 1.0]).double()
    generator = torch.Generator().manual_seed(seed)
    assert (weight[draw(weight.cumsum(0), count, generator)] > 0).all()
    chosen = choice(weight, min(count, len(weight)), generator)
    assert (weight[chosen] > 0).all()
    assert len(chosen.unique()) == min(len(chosen), int((weight > 0).sum()))


@settings(max_examples=20)
@given(size=st.integers(3, 60), seed=st.integers(0, 99))
def test_a_sketch_stands_for_all(size, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(50, generator=generator).double() ** 4
    weight[::5], weight[3] = 0, 100.0
    x = torch.rand(50, 1, generator=generator).double() + 1
    whole = samples_of(x, weight)
    totals = []
    for _ in range(300):
        part = sketch(whole, size, generator)
        assert part.n == min(size, 50) and part.present == min(size, 40)
        assert (part.x == x[3]).any()  # the heavy one
        totals.append((part.x[:, 0].double() * part.flat_weight()).sum().item() * part.scale)
    error = np.std(totals) / 300**0.5
    assert np.mean(totals) == pytest.approx((weight * x[:, 0]).sum().item(), abs=5 * error + 1e-9)


@BOTH
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.inf, r"finite and not negative, but 1 of 60 are not; the first is sample 7 with inf"),
        (np.nan, "1 of 60 are not; the first is sample 7 with nan"),
        (-1.0, "1 of 60 are not; the first is sample 7 with -1.0"),
    ],
)
def test_refuses_weights_that_are_none(estimator, weight, message):
    weights = np.ones(60)
    weights[7] = weight
    with pytest.raises(ValueError, match=message):
        estimator(3).fit(blobs(60), sample_weight=weights)
