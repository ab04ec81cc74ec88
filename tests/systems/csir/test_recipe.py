from __future__ import annotations

import pytest

from cmx_fast.systems.csir.recipe import CSIRRecipe


def test_default_is_the_paper():
    recipe = CSIRRecipe()
    assert CSIRRecipe.preset("paper") == recipe
    assert (recipe.n_fft, recipe.hop, recipe.n_mels, recipe.sample_rate, recipe.seconds) == (
        2048,
        441,
        128,
        22050,
        6.0,
    )
    assert (recipe.alpha, recipe.embed_dim, recipe.image_size, recipe.sentences_per_air) == (0.6, 64, 224, 5)
    assert recipe.frames == 301


def test_demo_keeps_the_method():
    demo, paper = CSIRRecipe.preset("demo"), CSIRRecipe()
    for name in (
        "alpha",
        "embed_dim",
        "temperature",
        "contrast",
        "n_fft",
        "hop",
        "seconds",
        "dscmr_alpha",
        "dscmr_beta",
    ):
        assert getattr(demo, name) == getattr(paper, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 1.5}, "alpha must be between 0 and 1; got 1.5"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"contrast": "both"}, "contrast must be joint or cross; got 'both'"),
        ({"crop_seconds": 7.0}, "crop_seconds must be in"),
        ({"cross_batch": 10}, "cross_batch must be a multiple of samples_per_class = 4; got 10"),
        ({"image_encoder": "vgg"}, "image_encoder must be one of"),
        ({"speech_steps": 0}, "speech_steps must be at least 1"),
        ({"colour": 1}, "has no colour; it has alpha"),
    ],
)
def test_bad_numbers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        CSIRRecipe.preset("paper", **change)


def test_unknown_preset():
    with pytest.raises(ValueError, match="preset must be one of paper, demo; got 'tiny'"):
        CSIRRecipe.preset("tiny")
