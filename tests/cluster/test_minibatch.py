import weakref

import numpy as np
import pytest
import sklearn.cluster
import torch
from cluster_data import blobs

from cmx_fast.cluster import EmptyClusterWarning, KMeans, MiniBatchKMeans


@pytest.mark.parametrize("weighted", [False, True])
def test_same_start_same_batches_same_result_as_scikit_learn(weighted):
    x = blobs(1800)
    first, rng = x[:7], np.random.default_rng(0)
    theirs = sklearn.cluster.MiniBatchKMeans(7, init=first, n_init=1, reassignment_ratio=0)
    ours = MiniBatchKMeans(7, init=first, reassignment_ratio=0)
    for begin in range(0, 1800, 300):
        batch = x[begin : begin + 300]
        weight = rng.random(300) if weighted else None
        theirs.partial_fit(batch, sample_weight=weight)
        ours.partial_fit(batch, sample_weight=weight)
        np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-9, atol=1e-10)
        assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-9)
        assert (ours.labels_ == theirs.labels_).all()
    np.testing.assert_allclose(ours.counts_, theirs._counts)
    assert ours.n_steps_ == theirs.n_steps_ == 6


def test_fit_comes_close_to_lloyd():
    x = blobs(4000, components=6)
    full = KMeans(6, n_init=5, random_state=0).fit(x).inertia_
    fitted = MiniBatchKMeans(6, batch_size=256, n_init=5, random_state=0).fit(x)
    assert fitted.inertia_ < 1.1 * full
    assert fitted.labels_.shape == (4000,) and fitted.n_iter_ >= 1
    assert fitted.inertia_ == pytest.approx(-fitted.score(x), rel=1e-9)
    short = MiniBatchKMeans(6, batch_size=256, tol=1e3, random_state=0).fit(x)
    assert short.n_steps_ < fitted.n_steps_


def test_a_stream_is_never_held_and_gives_what_partial_fit_gives():
    alive = []
    x = torch.from_numpy(blobs(200))

    def stream():
        for part in x.split(25):
            batch = part.clone()
            alive.append(weakref.ref(batch))
            assert sum(reference() is not None for reference in alive) <= 2
            yield batch
            del batch

    fitted = MiniBatchKMeans(4, random_state=0).partial_fit(x + 50).fit_stream(stream())
    by_batch = MiniBatchKMeans(4, random_state=0)
    for part in x.split(25):
        by_batch.partial_fit(part)
    assert fitted.n_steps_ == by_batch.n_steps_ == 8
    assert fitted.cluster_centers_.equal(by_batch.cluster_centers_)
    assert fitted.counts_.equal(by_batch.counts_)
    assert not hasattr(fitted, "labels_") and fitted.predict(blobs(50)).max() < 4


def test_a_stream_stops_at_a_bad_batch_with_the_centroids_so_far():
    batches = list(torch.from_numpy(blobs(100)).split(25))
    good = MiniBatchKMeans(4, random_state=0).fit_stream(batches[:2])
    bad = torch.full((9, 5), torch.nan)
    fitted = MiniBatchKMeans(4, random_state=0)
    with pytest.raises(
        ValueError, match="batch 2 of the stream: X contains NaN or infinity in 9 of 9 samples"
    ):
        fitted.fit_stream([*batches[:2], bad, *batches[2:]])
    assert fitted.cluster_centers_.equal(good.cluster_centers_)
    for first in (bad, batches[0][:3]):
        with pytest.raises(ValueError, match="batch 0 of the stream: "):
            fitted.fit_stream([first, *batches])
    with pytest.raises(ValueError, match="the stream holds no batch"):
        fitted.fit_stream(iter([]))
    assert fitted.cluster_centers_.equal(good.cluster_centers_) and fitted.n_steps_ == 2
    assert fitted.partial_fit(batches[2]).n_steps_ == 3


def test_a_refused_batch_changes_nothing():
    fitted = MiniBatchKMeans(3, random_state=0).partial_fit(torch.from_numpy(blobs(60)))
    before = fitted.cluster_centers_.clone(), fitted.counts_.clone(), fitted.n_steps_
    for bad in (torch.full((9, 5), torch.nan), torch.ones(9, 4), torch.ones(5)):
        with pytest.raises(ValueError, match="^X "):
            fitted.partial_fit(bad)
        assert fitted.cluster_centers_.equal(before[0]) and fitted.counts_.equal(before[1])
        assert fitted.n_steps_ == before[2]
    with pytest.raises(ValueError, match="n_samples=2 should be >= n_clusters=3"):
        MiniBatchKMeans(3).partial_fit(torch.ones(2, 5))


def test_starved_clusters_are_moved_and_reported():
    x = blobs(2000)
    far = np.concatenate([x[:5], x[:1] + 1000])
    with pytest.warns(EmptyClusterWarning, match="a cluster that saw too few samples was moved"):
        fitted = MiniBatchKMeans(6, init=far, batch_size=200, random_state=0).fit(x)
    assert fitted.n_reassigned_ >= 1 and (fitted.counts_ > 0).all()
    assert np.abs(fitted.cluster_centers_).max() < 100


def test_maps_on_their_device_as_tensors():
    maps = torch.randn(4, 8, 6, 6)
    fitted = MiniBatchKMeans(3, metric="cosine", random_state=0).fit(maps)
    assert fitted.labels_.shape == (4, 6, 6)
    torch.testing.assert_close(fitted.cluster_centers_.norm(dim=1), torch.ones(3))
    again = MiniBatchKMeans(3, metric="cosine", random_state=0).fit(maps)
    assert again.cluster_centers_.equal(fitted.cluster_centers_)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"tol": -1.0}, "tol must be a number of at least 0, got -1.0"),
        ({"n_init": 0}, "n_init must be 'auto' or an integer of at least 1, got 0"),
        ({"reassignment_ratio": -1.0}, "reassignment_ratio must be a number from 0 to 1, got -1.0"),
        ({"n_clusters": 900}, "n_samples=60 should be >= n_clusters=900"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        MiniBatchKMeans(**{"n_clusters": 2} | options).fit(blobs(60))
