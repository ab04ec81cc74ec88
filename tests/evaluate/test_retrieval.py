from __future__ import annotations

import dataclasses
import io
import sys

import pytest
import torch
from rich.console import Console

from cmx_fast.evaluate import retrieval
from cmx_fast.evaluate.retrieval import Embeddings


def directions(*degrees: float) -> torch.Tensor:
    angle = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angle.cos(), angle.sin()], dim=1)


@pytest.fixture
def embeddings() -> Embeddings:
    """Three spaces, 0 and 1 indoors: images at 0, 40 and 90 degrees, two utterances each."""
    return Embeddings(
        image=directions(0, 40, 90),
        speech=5 * directions(1, 30, 38, 75, 88, 89),
        image_space=torch.tensor([0, 1, 2]),
        speech_space=torch.tensor([0, 0, 1, 1, 2, 2]),
        image_indoor=torch.tensor([1, 1, 0]),
        speech_indoor=torch.tensor([1, 1, 1, 1, 0, 0]),
        speech_pair=torch.tensor([0, 0, 1, 1, 2, 2]),
    )


def test_rank_orders_by_cosine(embeddings):
    assert retrieval.rank(embeddings.speech, embeddings.image, 2).tolist() == [
        [0, 1],
        [1, 0],
        [1, 0],
        [2, 1],
        [2, 1],
        [2, 1],
    ]
    assert retrieval.rank(embeddings.image, embeddings.speech, 9).shape == (3, 6)


def test_recalls_of_a_ranking_made_by_hand(embeddings):
    found = retrieval.recalls(embeddings)
    # utterances 1 (30 degrees) and 3 (75 degrees) have another space's image nearest
    assert found["sir"]["total"] == {"R@1": pytest.approx(4 / 6), "R@5": 1.0}
    assert found["sir"]["indoor"]["R@1"] == pytest.approx(2 / 4)
    assert found["sir"]["outdoor"]["R@1"] == 1.0
    assert found["isr"]["total"] == {"R@1": 1.0, "R@5": 1.0}


def test_a_smaller_gallery(embeddings):
    found = retrieval.recalls(embeddings, torch.tensor([0, 2]))
    assert found["sir"]["total"]["R@1"] == pytest.approx(4 / 6)  # space 1 has no image left to find
    assert found["sir"]["total"]["R@5"] == pytest.approx(4 / 6)


def test_a_group_without_queries_is_empty(embeddings):
    unknown = {"image_indoor": -torch.ones(3), "speech_indoor": -torch.ones(6)}
    found = retrieval.recalls(dataclasses.replace(embeddings, **unknown))
    assert found["sir"]["indoor"] == found["sir"]["outdoor"] == {"R@1": None, "R@5": None}
    assert found["sir"]["total"]["R@1"] == pytest.approx(4 / 6)
    cells = retrieval.spread([found, found])
    assert cells["sir"]["outdoor"]["R@1"] is None
    assert retrieval.percent(None, True) == "–"


def test_chance(embeddings):
    assert retrieval.chance(embeddings) == pytest.approx(1 / 3)


def test_spread_is_the_mean_and_sample_deviation():
    def result(value: float) -> retrieval.Recalls:
        return {d: {g: {"R@1": value, "R@5": 1.0} for g in retrieval.GROUPS} for d in retrieval.DIRECTIONS}

    mean, deviation = retrieval.spread([result(0.5), result(0.7), result(0.9)])["isr"]["total"]["R@1"]
    assert mean == pytest.approx(0.7)
    assert deviation == pytest.approx(0.2)
    assert retrieval.percent((mean, deviation), True) == "70.0±20.0"
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(retrieval.table({"csir": [result(0.5), result(0.7)], "dscmr": [result(0.2)]}, "Recall"))
    text = console.export_text()
    assert "60.0±14.1" in text
    assert max(map(len, text.splitlines())) <= 80


def test_distinct_images(tmp_path):
    for name, contents in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).write_bytes(contents)
    assert retrieval.distinct_images([tmp_path / n for n in "abc"]).tolist() == [0, 1]


def test_missing_faiss_names_the_extra(embeddings, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"cmx-fast\[cpu\]"):
        retrieval.rank(embeddings.speech, embeddings.image, 1)


def test_embeddings_that_are_not_finite_are_refused(embeddings):
    with pytest.raises(ValueError, match="gallery has embeddings that are not finite"):
        retrieval.rank(embeddings.speech, embeddings.image / 0, 1)
