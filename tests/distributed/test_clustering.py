"""C2L's clustering in several processes is one process's; and what it keeps is as large as announced."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from distributed_clustering import CASES, announced, cluster
from process_groups import run_ranks

from cmx_fast.systems.c2l.pseudo_labels import clustering_bytes
from cmx_fast.systems.c2l.recipe import C2LRecipe


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("torch.distributed without gloo")
    return {world: run_ranks(cluster, world, tmp_path_factory.mktemp(str(world))) for world in (1, 2)}


@pytest.mark.parametrize("case", CASES)
def test_centroids_are_those_of_one_process_with_all_rows(runs, case):
    (whole,), parts = runs[1], runs[2]
    for part in parts:
        torch.testing.assert_close(part[case][0], whole[case][0], rtol=1e-5, atol=1e-6)
        assert part[case][1].equal(whole[case][1])
        torch.testing.assert_close(part[case][2], whole[case][2], rtol=1e-5, atol=1e-6)
        assert part[case][0].equal(parts[0][case][0])
    kept = [part[f"{case}, kept"] for part in parts]  # of the start's first two batches
    assert sum(kept) == whole[f"{case}, kept"] == (68 if "drawn" in case else 275)
    assert max(kept) < 0.7 * sum(kept)


def test_an_epochs_labels_are_those_of_one_process(runs):
    (whole,), parts = runs[1], runs[2]
    for part in parts:
        for value, first, expected in zip(part["epoch"], parts[0]["epoch"], whole["epoch"], strict=True):
            assert value.equal(first)
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
        assert part["figures"][0] == pytest.approx(whole["figures"][0], rel=1e-4)
        torch.testing.assert_close(part["final"], whole["final"], rtol=1e-4, atol=1e-5)
        assert part["step"] == whole["step"] == [2, 6]  # of 13 pictures in all
    assert len(whole["epoch"][0].unique()) == 4


def test_each_process_sees_its_share_of_the_pictures(runs):
    # 13 pictures in batches of 4: the last has one, which the process without a picture takes, too.
    assert runs[1][0]["asked"] == 13 and [part["asked"] for part in runs[2]] == [7, 7]


def test_running_statistics_are_averaged(runs):
    for part in runs[2]:
        assert part["norm"][0].tolist() == [0.5, 0.5] and part["norm"][1].tolist() == [2.0, 2.0]


def test_what_is_kept_is_as_large_as_announced():
    """The start's vectors of both views, the labels, and the features of one view of a batch."""
    recipe = C2LRecipe.preset(
        "demo",
        size=64,
        width=16,
        heads=2,
        cluster_batch=4,
        init_batches=3,
        init_pixels=600,
        init_iterations=1,
    )
    kept = announced(recipe, 14)
    assert kept.start == 2 * 600 * 16 * 4
    assert kept.labels == 2 * 14 * 16 * 16
    assert kept.features == 4 * 16 * 16 * 16 * 4
    assert clustering_bytes(recipe, 14, 16) == kept.start + kept.labels + kept.features


def test_few_pictures_have_fewer_pixels_than_asked_for():
    recipe = C2LRecipe.preset("demo", width=16, cluster_batch=4)
    assert clustering_bytes(recipe, 14, 16) == 14 * 256 * 2 * (16 * 4 + 1) + 4 * 256 * 16 * 4


def test_the_papers_numbers_stay_below_three_gigabytes():
    recipe = C2LRecipe()
    assert 2.7e9 < clustering_bytes(recipe, 6000, 80) < 2.9e9
    assert clustering_bytes(recipe, 6000, 80, processes=8) < 0.5e9
