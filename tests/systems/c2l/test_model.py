from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pseudo_labels import cross_entropy, pseudo_labelled
from scipy.optimize import linear_sum_assignment

from cmx_fast.systems.c2l.model import (
    C2L,
    AssignedParts,
    GroupParts,
    PixelConsistency,
    code_loss,
    quantile,
    suppress_border,
)
from cmx_fast.systems.c2l.picie import PiCIE
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
    parts = GroupParts(16, 3, 4)
    maps = torch.randn(2, 16, 8, 8)
    found = parts(maps, {})
    assert found.shape == (2, 3, 4)
    torch.testing.assert_close(found.norm(dim=2), torch.ones(2, 3))
    with torch.no_grad():
        parts.reduce.weight[4:8] *= -1  # the second part's channels
    changed = (parts(maps, {}) - found).abs().amax((0, 2)) > 1e-3
    assert changed.tolist() == [False, True, False]


def test_parts_follow_the_picture_not_constants():
    parts = GroupParts(16, 3, 4)
    torch.testing.assert_close(parts(torch.zeros(1, 16, 8, 8), {}), torch.zeros(1, 3, 4))


def test_part_loss_is_eq_1_under_the_hungarian_matching():
    view1, view2 = unit(5, 4, 6), unit(5, 4, 6)
    expected = 0.0
    for g, t in zip(view1, view2):
        _, own = linear_sum_assignment((g @ t.T).numpy(), maximize=True)
        logits = g @ t.T / 0.07
        expected += sum((logits[i].logsumexp(0) - logits[i, own[i]]).item() for i in range(4)) / 5
    assert GroupParts.loss(view1, view2, 0.07).item() == pytest.approx(expected, rel=1e-5)


def test_part_loss_does_not_mind_the_parts_order():
    view1, view2 = unit(3, 4, 6), unit(3, 4, 6)
    shuffled = view2[:, [2, 0, 3, 1]]
    torch.testing.assert_close(GroupParts.loss(view1, shuffled, 0.07), GroupParts.loss(view1, view2, 0.07))
    assert GroupParts.loss(view1, view1[:, [2, 0, 3, 1]], 0.01) < 0.05
    assert GroupParts.loss(torch.ones(1, 3, 4), torch.ones(1, 3, 4), 0.07).item() == pytest.approx(
        3 * math.log(3)
    )


@pytest.mark.parametrize("cross_view", [True, False])
def test_without_the_part_contrast_the_objective_is_picies(cross_view):
    recipe = C2LRecipe.preset("demo", **{**SMALL, "cross_view": cross_view, "part_weight": 0.0})
    torch.manual_seed(1)
    ours, batch = C2L(recipe, "part"), pseudo_labelled()
    theirs = PiCIE(recipe)
    theirs.encoder.load_state_dict(ours.encoder.state_dict())
    losses = [model.losses(model(batch), batch)["loss"] for model in (ours, theirs)]
    torch.testing.assert_close(*losses)


def test_assigned_parts_are_means_over_their_clusters_pixels():
    parts, labels = AssignedParts(16, 3, 4), torch.randint(2, (2, 8, 8))  # nothing is given to the third
    maps = torch.randn(2, 16, 8, 8)
    result = parts(maps, {"labels1": labels})
    tokens = parts.project(maps)
    expected = F.normalize(tokens[1][:, labels[1] == 0].mean(1), dim=0)
    torch.testing.assert_close(result[1, 0], expected)
    assert (result[:, 2] == 0).all()


def test_assigned_parts_leave_absent_ones_out():
    view1, view2 = unit(4, 3, 8), unit(4, 3, 8)
    view1[2, 1], view2[2, 1] = 0, 0
    rows, keys = (torch.cat([view[:2].flatten(0, 1), view[2, [0, 2]], view[3]]) for view in (view1, view2))
    logits = rows @ keys.T / 0.07
    expected = F.cross_entropy(logits, torch.arange(11), reduction="sum") / 4
    torch.testing.assert_close(AssignedParts.loss(view1, view2, 0.07), expected)


def test_only_parts_by_content_tell_pictures_apart():
    """The paper's module is satisfied by any two pictures; parts by content by two views of one picture alone."""
    maps = F.interpolate(torch.randn(8, 16, 4, 4), (8, 8), mode="bilinear")
    other = maps + 0.05 * torch.randn_like(maps)
    batch = {"labels1": torch.randint(3, (8, 8, 8))}
    grouped, assigned = GroupParts(16, 18, 32), AssignedParts(16, 3, 32)
    first, same, unrelated = (grouped(x, batch) for x in (maps, other, maps.roll(1, 0)))
    assert grouped.loss(first, unrelated, 0.07) < 0.1 < math.log(18)
    first, same, unrelated = (assigned(x, batch) for x in (maps, other, maps.roll(1, 0)))
    assert assigned.loss(first, unrelated, 0.07) > 3 * assigned.loss(first, same, 0.07) + 1


def test_the_background_is_one_point_whatever_it_looks_like():
    """A figure on a background of its own in each picture: only the figure is left, and less than ``share`` of it."""
    backgrounds, figure = torch.randn(3, 16, 1, 1), torch.randn(1, 16, 1, 1)
    maps = backgrounds.expand(3, 16, 12, 12).clone() + 0.01 * torch.randn(3, 16, 12, 12)
    maps[:, :, 4:9, 5:8] = figure + 0.01 * torch.randn(3, 16, 5, 3)
    left = suppress_border(maps, 0.75)
    inside = torch.zeros(12, 12, dtype=torch.bool)
    inside[4:9, 5:8] = True
    lengths = left.norm(dim=1)
    assert (lengths[:, inside] > 0.1).all()
    assert (lengths[:, ~inside] < 0.05).all()
    assert ((lengths == 0).flatten(1).float().mean(1) - 0.75).abs().max() < 0.01
    with pytest.raises(ValueError, match="suppressed must be in"):
        C2LRecipe.preset("demo", suppressed=1.0)


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
    expected = within + 0.5 * GroupParts.loss(outputs["parts1"], outputs["parts2"], 0.07)
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


def test_pictures_are_represented_some_at_a_time_without_gradient(monkeypatch):
    model = C2L(RECIPE, "c2l").eval()
    model.pixels = started("sparse").eval()
    images, seen = torch.rand(5, 3, 32, 32), []
    with torch.no_grad():
        whole = model.features(images)
        monkeypatch.setattr("cmx_fast.systems.c2l.picie.CHUNK", 2)
        represent = model.represent
        model.represent = lambda maps: seen.append(len(maps)) or represent(maps)
        torch.testing.assert_close(model.features(images), whole)
    assert seen == [2, 2, 1]
    model.features(images)
    assert seen[3:] == [5]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.7, 1.0])
def test_the_quantile_is_torchs(share):
    rows = torch.rand(3, 37, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(quantile(rows, share), rows.quantile(share, dim=1))
