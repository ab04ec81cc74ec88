import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cmx_fast.cluster import PiCIEClustering
from cmx_fast.cluster.picie import _split_largest


def clustered_maps(batch=4, d=12, side=9, components=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(components, d, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(components, (batch, side, side), generator=generator)
    return (centres[labels] + torch.randn(batch, side, side, d, generator=generator)).movedim(-1, 1)


def test_updates_are_those_of_the_reference_loop():
    clustering = PiCIEClustering(5, init_batches=2, init_iterations=3)
    for seed in range(2):
        clustering.update(clustered_maps(seed=seed))
    centroids, counts = clustering.cluster_centers_.numpy().copy(), clustering.counts_.numpy().copy()
    assert counts.sum() == 2 * 4 * 81
    distances = []
    for seed in range(2, 6):
        maps = clustered_maps(seed=seed)
        clustering.update(maps)
        rows = F.normalize(maps, dim=1).movedim(1, -1).reshape(-1, 12).numpy()
        squares = ((rows[:, None] - centroids[None]) ** 2).sum(2)
        labels = squares.argmin(1)
        distances.append(squares.min(1).mean())
        for k in np.unique(labels):
            counts[k] += (labels == k).sum()
            rate = (labels == k).sum() / (counts[k] + 1e-6)
            centroids[k] = (1 - rate) * centroids[k] + rate * rows[labels == k].mean(0)
    np.testing.assert_allclose(clustering.cluster_centers_.numpy(), centroids, rtol=1e-5, atol=1e-6)
    assert clustering.counts_.tolist() == counts.tolist()
    assert clustering.loss_.item() == pytest.approx(np.mean(distances), rel=1e-5)


def test_the_start_finds_the_clusters_and_labels_follow():
    clustering = PiCIEClustering(5, init_batches=50, random_state=3)
    for seed in range(3):
        clustering.update(clustered_maps(seed=seed))
    with pytest.raises(RuntimeError, match="no centroids yet"):
        clustering.assign(clustered_maps())
    clustering.flush()
    truth = torch.randint(5, (4, 9, 9), generator=torch.Generator().manual_seed(0))
    labels = clustering.assign(clustered_maps())
    table = torch.zeros(5, 5).index_put_(
        (truth.flatten(), labels.flatten()), torch.ones(324), accumulate=True
    )
    assert table.max(1).values.sum() > 0.85 * 324


def test_groups_update_together_and_an_open_one_is_left_out():
    single, double = PiCIEClustering(3, init_batches=1), PiCIEClustering(3, init_batches=1, update_every=2)
    batches = [clustered_maps(seed=seed) for seed in range(4)]
    for batch in (batches[0], torch.cat(batches[1:3])):
        single.update(batch)
    for batch in batches:
        double.update(batch)
    torch.testing.assert_close(single.cluster_centers_, double.cluster_centers_, rtol=1e-5, atol=1e-6)
    assert single.counts_.equal(double.counts_)


def test_empty_clusters_take_halves_of_the_largest():
    centroids = torch.tensor([[0.0, 0.0], [4.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    split = _split_largest(centroids, torch.tensor([0, 50, 7, 0]))
    assert split[0].tolist() == pytest.approx([4 * (1 - 1 / 1024), 2 * (1 + 1 / 1024)])
    assert split[1].tolist() == pytest.approx([4 * (1 + 1 / 1024), 2 * (1 - 1 / 1024)])
    assert split[3].tolist() == pytest.approx([1 - 1 / 1024, 1 + 1 / 1024])
    assert _split_largest(centroids, torch.ones(4, dtype=torch.int64)).equal(centroids)
    crowded = _split_largest(centroids, torch.tensor([0, 9, 0, 0]))
    torch.testing.assert_close(crowded, centroids[1].expand(4, 2), rtol=2e-3, atol=0)


def test_an_update_does_not_wait_for_the_device():
    class Waits(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names = ("_local_scalar_dense", "nonzero", "_to_copy", "masked_select", "item")
            self.seen += [name for name in names if name in func.name()]
            return func(*args, **(kwargs or {}))

    clustering = PiCIEClustering(3, init_batches=1)
    maps = clustered_maps()
    clustering.update(maps)
    # What the operator looks at on the CPU, where it is free, a GPU's tensors are spared (see _checks.readable).
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmx_fast.ops._checks.readable", lambda tensor: False)
        with Waits() as waits:
            clustering.update(maps)
    assert waits.seen == []


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_state_continues_to_the_same_numbers(stop):
    options = {"init_batches": 2, "update_every": 2}
    straight, first, resumed = (PiCIEClustering(3, **options) for _ in range(3))
    batches = [clustered_maps(seed=seed) for seed in range(6)]
    for number, batch in enumerate(batches):
        straight.update(batch)
        if number < stop:
            first.update(batch)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file))
    for batch in batches[stop:]:
        resumed.update(batch)
    assert resumed.cluster_centers_.equal(straight.cluster_centers_)
    assert resumed.counts_.equal(straight.counts_) and resumed.loss_.equal(straight.loss_)
    with pytest.raises(ValueError, match="the state has 3 clusters, this clustering 4"):
        PiCIEClustering(4).load_state_dict(straight.state_dict())


def bad_maps():
    maps = clustered_maps()
    maps[1, 2, 0, 3] = torch.nan
    maps[3, 0, 8, 8] = torch.inf
    return maps


REFUSED = [
    (bad_maps, r"NaN or infinity in 2 of 324 vectors; the first are \[84, 323\]"),
    (lambda: torch.randn(2, 11, 9, 9), "features have 11 channels on cpu, those before had 12"),
    (lambda: torch.randn(2, 12, 9), r"must have shape \(B, D, H, W\)"),
    (lambda: torch.randn(0, 12), "without a 0"),
]


@pytest.mark.parametrize(("bad", "message"), REFUSED)
@pytest.mark.parametrize("init_batches", [1, 9])
def test_a_refused_batch_changes_nothing(bad, message, init_batches):
    clustering, untouched = (PiCIEClustering(3, init_batches=init_batches) for _ in range(2))
    for each in (clustering, untouched):
        each.update(clustered_maps())
    with pytest.raises(ValueError, match=message):
        clustering.update(bad())
    for each in (clustering, untouched):
        each.update(clustered_maps(seed=1))
        each.flush()
    assert clustering.cluster_centers_.equal(untouched.cluster_centers_)
    assert clustering.counts_.equal(untouched.counts_) and clustering.loss_.equal(untouched.loss_)


@pytest.mark.parametrize("option", ["n_clusters", "init_batches", "init_iterations", "update_every"])
@pytest.mark.parametrize("value", [0, 2.5, float("nan"), "3", True])
def test_refuses_an_option_by_its_name(option, value):
    with pytest.raises(ValueError, match=f"{option} must be an integer of at least 1, got {value!r}"):
        PiCIEClustering(**{"n_clusters": 2} | {option: value})


def test_refuses():
    with pytest.raises(TypeError, match="features must be float32"):
        PiCIEClustering(2).update(torch.ones(4, 3, dtype=torch.int64))
    few = PiCIEClustering(20, init_batches=2)
    few.update(torch.randn(1, 4, 3, 3))
    with pytest.raises(ValueError, match="9 feature vectors came, fewer than the 20 clusters"):
        few.flush()
    few.update(torch.randn(2, 4, 3, 3))
    assert few.cluster_centers_.shape == (20, 4)


def test_the_start_keeps_no_more_pixels_than_asked_for():
    maps = [clustered_maps(seed=seed) for seed in range(3)]
    clustering = PiCIEClustering(5, init_batches=3, init_pixels=300)
    for batch in maps[:2]:
        clustering.update(batch)
    assert [tuple(kept.shape) for kept in clustering._start] == [(100, 12)] * 2
    rows = {tuple(row.tolist()) for row in maps[0].flatten(2).transpose(1, 2).flatten(0, 1)}
    assert {tuple(row.tolist()) for row in clustering._start[0]} <= rows
    clustering.update(maps[2])
    assert clustering.counts_.sum() == 300


def test_plus_plus_finds_what_random_pixels_miss():
    """Nine of ten vectors are zero, as where the background is suppressed: random centroids would be zero too."""
    maps = torch.zeros(4, 6, 10, 10)
    for direction in range(4):
        maps[direction, direction, :1] = 1
    clustering = PiCIEClustering(5, init_batches=1, init="k-means++")
    clustering.update(maps)
    norms = clustering.cluster_centers_.norm(dim=1).sort().values
    torch.testing.assert_close(norms, torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]))
    assert clustering.loss_ == 0


def test_refuses_an_unknown_start():
    with pytest.raises(ValueError, match=r"init must be one of 'k-means\+\+', 'random'; got 'first'"):
        PiCIEClustering(3, init="first")
