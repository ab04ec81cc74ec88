from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pseudo_labels import cross_entropy, pseudo_labelled
from scipy.optimize import linear_sum_assignment

from cmx_fast.systems.c2l.model import C2L, PartContrast, PixelConsistency, code_loss, part_loss
from cmx_fast.systems.c2l.recipe import C2LRecipe

SMALL = {"size": 32, "width": 16, "heads": 2, "atoms": 8, "clusters": 3, "part_width": 4, "cross_view": False}
RECIPE = C2LRecipe.preset("demo", **SMALL)


def started(feed_forward: str, **changes: object) -> PixelConsistency:
    """The module after some training: its branches no longer at zero."""
    pixels = PixelConsistency(C2LRecipe.preset("demo", **SMALL, **changes), feed_forward)
    for parameter in pixels.project.parameters():
        torch.nn.init.normal_(parameter)
    if pixels.mlp is not None:
        torch.nn.init.normal_(pixels.mlp[2].weight)
    return pixels


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(shape), dim=-1)


def test_default_is_the_paper():
    recipe = C2LRecipe()
    assert C2LRecipe.preset("paper") == recipe
    assert (recipe.size, recipe.width, recipe.batch, recipe.cluster_batch) == (320, 128, 96, 192)
    assert (recipe.part_weight, recipe.code_weight, recipe.backbone) == (0.5, 0.3, "resnet18")


def test_demo_keeps_the_method():
    demo, paper = C2LRecipe.preset("demo"), C2LRecipe()
    for name in (
        "part_weight",
        "code_weight",
        "temperature",
        "proportional_weights",
        "width",
        "heads",
        "code_steps",
        "code_penalty",
    ):
        assert getattr(demo, name) == getattr(paper, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 100}, "size must be a positive multiple of 32; got 100"),
        ({"test_clusters": 1}, "test_clusters must be at least 2; got 1"),
        ({"clusters": 1}, "clusters must be at least 2; got 1"),
        ({"heads": 3}, "heads must be a divisor of width = 128; got 3"),
        ({"attention_stride": 3}, "attention_stride must be a divisor of size / 4 = 80; got 3"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"part_weight": -1.0}, "part_weight must be at least 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"dff_stage": 5}, "dff_stage must be between 1 and 4"),
        ({"backbone": "vgg"}, "backbone must be resnet18 or resnet10; got 'vgg'"),
        ({"colour": 1}, "the recipe has no colour"),
    ],
)
def test_bad_numbers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        C2LRecipe.preset("paper", **change)


def test_parts_are_k_unit_vectors_that_do_not_mix():
    parts = PartContrast(16, 3, 4)
    maps = torch.randn(2, 16, 8, 8)
    found = parts(maps)
    assert found.shape == (2, 3, 4)
    torch.testing.assert_close(found.norm(dim=2), torch.ones(2, 3))
    with torch.no_grad():
        parts.reduce.weight[4:8] *= -1  # the second part's channels
    changed = (parts(maps) - found).abs().amax((0, 2)) > 1e-3
    assert changed.tolist() == [False, True, False]


def test_parts_follow_the_picture_not_constants():
    parts = PartContrast(16, 3, 4)
    torch.testing.assert_close(parts(torch.zeros(1, 16, 8, 8)), torch.zeros(1, 3, 4))


def test_part_loss_is_eq_1_under_the_hungarian_matching():
    view1, view2 = unit(5, 4, 6), unit(5, 4, 6)
    expected = 0.0
    for g, t in zip(view1, view2):
        _, own = linear_sum_assignment((g @ t.T).numpy(), maximize=True)
        logits = g @ t.T / 0.07
        expected += sum((logits[i].logsumexp(0) - logits[i, own[i]]).item() for i in range(4)) / 5
    assert part_loss(view1, view2, 0.07).item() == pytest.approx(expected, rel=1e-5)


def test_part_loss_does_not_mind_the_parts_order():
    view1, view2 = unit(3, 4, 6), unit(3, 4, 6)
    shuffled = view2[:, [2, 0, 3, 1]]
    torch.testing.assert_close(part_loss(view1, shuffled, 0.07), part_loss(view1, view2, 0.07))
    assert part_loss(view1, view1[:, [2, 0, 3, 1]], 0.01) < 0.05
    assert part_loss(torch.ones(1, 3, 4), torch.ones(1, 3, 4), 0.07).item() == pytest.approx(3 * math.log(3))


def test_an_untrained_module_leaves_the_encoders_map():
    maps = torch.randn(2, 16, 4, 4)
    assert torch.equal(PixelConsistency(RECIPE, "mlp")(maps)[0], maps)


def test_attention_written_out():
    pixels = started("mlp")
    maps = torch.randn(2, 16, 4, 6)
    x = maps.flatten(2).transpose(1, 2)
    query, (key, value) = pixels.query(x), pixels.key_value(x).chunk(2, dim=2)
    heads = []
    for h in range(2):
        q, k, v = (t[..., 8 * h : 8 * h + 8] for t in (query, key, value))
        heads.append((q @ k.transpose(1, 2) / math.sqrt(8)).softmax(-1) @ v)
    attended = x + pixels.project(torch.cat(heads, dim=2))
    torch.testing.assert_close(pixels.attend(maps), attended)
    refined, found = pixels(maps)
    expected = attended + pixels.mlp(attended)
    torch.testing.assert_close(refined, expected.transpose(1, 2).unflatten(2, (4, 6)))
    assert not found


def test_attention_over_averaged_cells():
    pixels = started("mlp", attention_stride=2)
    even = torch.randn(2, 16, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    strided = pixels.attend(even)
    pixels.stride = 1
    torch.testing.assert_close(strided, pixels.attend(even))  # cells of one value: their average says it all


def test_sparse_code_is_the_feed_forward():
    pixels = started("sparse")
    maps = 3 * torch.randn(2, 16, 4, 4)
    tokens = pixels.attend(maps)
    rebuilt, codes = pixels.code(tokens)
    assert codes.shape == (2, 16, 8)
    assert (codes >= 0).all()
    refined, found = pixels(maps)
    torch.testing.assert_close(refined.flatten(2).transpose(1, 2), tokens + codes @ pixels.code.dictionary.T)
    error = (tokens - rebuilt).square().sum(2) / 2 + 0.1 * codes.sum(2)
    torch.testing.assert_close(found["code"], error.mean() / 16)
    assert found["active"].item() == pytest.approx((codes > 0).float().mean().item())


def test_code_loss_of_known_codes():
    tokens = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]])
    codes = torch.tensor([[[2.0, 1.0], [0.0, 0.0]]])
    assert code_loss(tokens, torch.zeros(1, 2, 2), codes, 0.1).item() == pytest.approx((2.5 + 0.3) / 2 / 2)


@pytest.mark.parametrize("variant", ["part", "part+pixel", "c2l"])
def test_objective_is_eq_8(variant):
    model, batch = C2L(RECIPE, variant), pseudo_labelled()
    outputs = model(batch)
    losses = model.losses(outputs, batch)
    within = cross_entropy(outputs["view1"], batch, 1) + cross_entropy(outputs["view2"], batch, 2)
    expected = within + 0.5 * part_loss(outputs["parts1"], outputs["parts2"], 0.07)
    if variant == "c2l":
        expected = expected + 0.3 * (outputs["code1"] + outputs["code2"]) / 2
    torch.testing.assert_close(losses["loss"], expected)
    assert {"code", "active"} <= losses.keys() if variant == "c2l" else "code" not in losses
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.encoder.parameters())


def test_cross_view_takes_picies_objective():
    model, batch = C2L(C2LRecipe.preset("demo", **{**SMALL, "cross_view": True}), "part"), pseudo_labelled()
    outputs = model(batch)
    losses = model.losses(outputs, batch)
    four = [cross_entropy(outputs[f"view{a}"], batch, b) for a in (1, 2) for b in (1, 2)]
    torch.testing.assert_close(losses["loss"], sum(four) / 4 + 0.5 * losses["part"])


def test_what_is_clustered_is_what_is_trained():
    model, batch = C2L(RECIPE).eval(), pseudo_labelled()
    outputs = model(batch)
    torch.testing.assert_close(model.features(batch["image2"], batch["warp"]), outputs["view2"])
    assert not torch.allclose(model.encoder(batch["image1"]), outputs["view1"])


def test_projection_keeps_the_dictionarys_columns():
    model = C2L(RECIPE)
    with torch.no_grad():
        model.pixels.code.dictionary *= 5
    model.project_()
    assert (model.pixels.code.dictionary.norm(dim=0) <= 1 + 1e-6).all()
    C2L(RECIPE, "part").project_()


def test_unknown_variant():
    with pytest.raises(ValueError, match="variant must be one of part, part\\+pixel, c2l; got 'pixel'"):
        C2L(RECIPE, "pixel")
