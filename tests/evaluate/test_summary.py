from __future__ import annotations

import pytest
from rich.console import Console

from cmx_fast.evaluate.summary import SeedScores, mean_and_spread, percent


def shown(table) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_mean_and_sample_deviation_of_what_is_known():
    assert mean_and_spread([0.5, None, 0.7, 0.9]) == (pytest.approx(0.7), pytest.approx(0.2))
    assert mean_and_spread([0.5]) == (0.5, 0.0)
    assert mean_and_spread([None]) is None


def test_percent_in_words():
    assert percent((0.7, 0.2), True) == "70.0±20.0"
    assert percent((0.7, 0.2), False) == "70.0"
    assert percent(None, True) == percent((float("nan"), 0.0), False) == "–"


@pytest.mark.parametrize("seeds", [1, 2])
def test_scores_of_seeds_as_numbers_and_as_a_table(seeds):
    scores = SeedScores(["one", "two"])
    for model, value in (("one", 0.25), ("two", 0.5)):
        for seed in range(seeds):
            scores.add(model, {"accuracy": value + seed / 4, "loss": 9.0})
    assert scores.seeds == seeds and scores.measures == ["accuracy", "loss"]
    stored = scores.as_dict(["accuracy"])
    assert stored["seeds"] is scores.by_model
    assert stored["mean_and_spread"]["two"] == {"accuracy": scores.spread("two", "accuracy")}
    table = scores.table("Held out, %", {"accuracy": "right"}, {"one": "First", "two": "Second"})
    text = " ".join(shown(table).split())
    assert ("mean±std of 2 seeds" in text) == (seeds == 2)
    assert "right" in text and ("25.0" if seeds == 1 else "37.5±17.7") in text
    assert scores.for_page("two", "accuracy") == ("50.0" if seeds == 1 else "62.5 ± 17.7")
