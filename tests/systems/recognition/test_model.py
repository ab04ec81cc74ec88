"""The networks of recognition on random maps: shapes, gradients, and which module is for which task."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import shufflenet_v2_x0_5

from cmx_fast.evaluate.detection import Boxes, average_precision
from cmx_fast.networks.visual_encoders import Preprocessing, VisualEncoder
from cmx_fast.networks.visual_trunks import SequentialTrunk
from cmx_fast.nn import warp
from cmx_fast.systems.recognition.attentions import LAYERS
from cmx_fast.systems.recognition.classifiers import ProposalStart
from cmx_fast.systems.recognition.data import READERS, cropped_boxes
from cmx_fast.systems.recognition.evaluation import cost
from cmx_fast.systems.recognition.model import Joint, Levels, Plan, pixel_loss
from cmx_fast.systems.recognition.networks import ON_PICTURES, new_model
from cmx_fast.systems.recognition.options import ATTENTIONS, LAYOUTS, choose_attentions, of_task
from cmx_fast.systems.recognition.recipe import RecognitionRecipe

TINY = {
    "size": 64, "width": 16, "heads": 2, "codewords": 4, "proposal_width": 8, "batch": 3, "scales": 2,
}  # fmt: skip
RECIPE = RecognitionRecipe.preset("demo", **TINY)
LEVELS = Levels((1, 2), (6, 8), (8, 4))


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return VisualEncoder("tiny", SequentialTrunk(shufflenet_v2_x0_5(weights=None)), Preprocessing(64))


def batch_of(task, **more):
    maps = {f"map{n}": torch.randn(3, c, s, s) for n, (c, s) in enumerate(zip(*LEVELS[1:]))}
    if task == "segment":
        return {**maps, "mask": torch.randint(-1, 4, (3, 64, 64)), **more}
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    return {**maps, "label": torch.tensor([0, 3, 1]), "box": boxes, **more}


def learn(model, batch):
    """The losses of a step, after which every parameter has a gradient."""
    losses = model.losses(model(batch), batch)
    losses["loss"].backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    return losses


@pytest.mark.parametrize("attention", of_task("segment"))
def test_every_segmenter_learns(attention):
    model = new_model("segment", Plan(RECIPE, attention, 4, LEVELS, None)).train()
    batch = batch_of("segment")
    assert model(batch)["logits"].shape == (3, 4, 8, 8)
    losses = learn(model, batch)
    assert losses["loss"].isfinite()
    named = {"danet": {"logits", "positions", "channels"}, "encnet": {"logits", "presence"}}
    assert losses.keys() == {"loss"} | named.get(attention, set())
    paid = cost(model, batch)
    assert paid.parameters == sum(p.numel() for p in model.parameters()) and paid.kept > 0


@pytest.mark.parametrize("attention", [name for name in of_task("classify") if name not in ON_PICTURES])
def test_every_classifier_of_maps_learns(attention):
    model = new_model("classify", Plan(RECIPE, attention, 4, LEVELS, None)).train()
    batch = batch_of("classify")
    losses = learn(model, batch)
    assert losses["loss"].isfinite()
    logits = model.eval()(batch)["logits"]
    assert logits.shape == (3, 4) and logits.equal(model(batch)["logits"])


@pytest.mark.parametrize("attention", ["stn", "stn-thin-plate"])
def test_transformed_pictures_start_as_they_are(encoder, attention):
    levels = Levels.of(encoder, RECIPE)
    model = new_model("classify", Plan(RECIPE, attention, 4, levels, encoder)).train()
    batch = {"picture": torch.rand(3, 3, 64, 64), "label": torch.tensor([0, 3, 1])}
    maps = encoder.maps(batch["picture"])
    torch.testing.assert_close(model.maps(batch)[-1], maps[-1], rtol=1e-2, atol=1e-3)
    learn(model, batch)
    assert not any(p.requires_grad for p in encoder.parameters())
    assert {id(p) for group in model.groups() for p in group["params"]}.isdisjoint(
        map(id, encoder.parameters())
    )


def test_scales_take_turns(encoder):
    model = new_model("classify", Plan(RECIPE, "ra-cnn", 4, Levels.of(encoder, RECIPE), encoder)).train()
    batch = {"picture": torch.rand(3, 3, 64, 64), "label": torch.tensor([0, 3, 1])}

    def learners(outputs):
        outputs["loss"].backward()
        names = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        model.zero_grad()
        return {name.split(".")[1] for name in names}

    for turn, learner in (("networks", "classifiers"), ("proposals", "proposals")):
        assert learners(model.losses(model(batch, turn), batch, turn)) == {learner}
    start = ProposalStart(model)
    assert learners(start.losses(start(batch), batch)) == {"proposals"}
    torch.testing.assert_close(model(batch)["logits"].exp().sum(1), torch.ones(3))


def test_an_encoder_that_learns_has_a_rate_of_its_own(encoder):
    recipe = RecognitionRecipe.preset("paper", **TINY)
    learning = copy.deepcopy(encoder).unfreeze()
    model = new_model("segment", Plan(recipe, "se", 4, Levels.of(encoder, recipe), learning))
    rates = [(group["lr"], len(group["params"])) for group in model.groups()]
    assert [rate for rate, _ in rates] == [recipe.encoder_lr, recipe.lr]
    assert sum(count for _, count in rates) == len(list(model.parameters()))


def objects_batch(boxes, labels, difficult):
    maps = {f"map{n}": torch.randn(2, c, s, s) for n, (c, s) in enumerate(zip(*LEVELS[1:]))}
    return {
        **maps,
        "boxes": torch.tensor(boxes),
        "labels": torch.tensor(labels),
        "difficult": torch.tensor(difficult),
    }


@pytest.mark.parametrize("attention", of_task("detect"))
def test_every_detector_learns_and_detects(attention):
    model = new_model("detect", Plan(RECIPE, attention, 3, LEVELS, None)).train()
    half, corner, none = [0.0, 0.0, 0.5, 0.9], [0.7, 0.6, 1.0, 1.0], [0.0] * 4
    batch = objects_batch([[half, corner], [none, none]], [[1, 3], [0, 0]], [[0, 1], [0, 0]])
    assert [labels.tolist() for _, labels in model.objects(batch)] == [[1], []]
    losses = learn(model, batch)
    assert losses["loss"].isfinite()
    assert cost(model, batch).kept > 0
    with torch.no_grad():
        found = model.eval().detections(model(batch))
    assert len(found) == 2
    for boxes, labels, scores, _ in found:
        assert boxes.shape == (len(labels), 4) and len(labels) > 0 and set(labels.tolist()) <= {1, 2, 3}
        assert (scores.diff() <= 0).all()


@pytest.mark.parametrize("attention", of_task("detect"))
def test_detectors_find_what_they_have_learnt(attention):
    model = new_model("detect", Plan(RECIPE, attention, 3, LEVELS, None)).train()
    batch = objects_batch(
        [[[0.1, 0.1, 0.5, 0.6], [0.5, 0.5, 0.9, 0.95]], [[0.3, 0.2, 0.7, 0.9], [0.0] * 4]],
        [[1, 3], [2, 0]],
        [[0, 0], [0, 0]],
    )
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model.losses(model(batch), batch)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval().detections(model(batch))
    objects = [Boxes(boxes, labels) for boxes, labels in model.objects(batch)]
    assert [average_precision(found, objects, label) for label in (1, 2, 3)] == [1, 1, 1]


def test_ssd_has_a_box_for_every_score():
    model = new_model("detect", Plan(RECIPE, "ssd", 3, LEVELS, None))
    outputs = model(objects_batch([[[0.0] * 4]] * 2, [[0]] * 2, [[0]] * 2))
    count = 8 * 8 * 4 + 4 * 4 * 6 + 2 * 2 * 4 + 4  # maps of 8 and 4, and of 2 and 1 behind them
    assert len(model.boxes) == count
    assert outputs["offsets"].shape == (2, count, 4) and outputs["logits"].shape == (2, count, 4)


def test_joint_is_a_convolution_of_the_maps_side_by_side():
    joint = Joint((6, 8), 5).eval()
    fine, coarse = torch.randn(2, 6, 8, 8), torch.randn(2, 8, 4, 4)
    side_by_side = torch.cat([fine, F.interpolate(coarse, (8, 8), mode="bilinear")], 1)
    weight = torch.cat([part.weight for part in joint.parts], 1)
    expected = F.relu(joint.norm(F.conv2d(side_by_side, weight)))
    torch.testing.assert_close(joint([fine, coarse]), expected, rtol=1e-4, atol=1e-5)


def test_pixels_that_do_not_count_do_not_count():
    logits, mask = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    mask[0, :2] = -1
    expected = F.cross_entropy(logits[0].flatten(1).T[8:], mask.flatten()[8:])
    torch.testing.assert_close(pixel_loss(logits, mask), expected)
    assert pixel_loss(logits, torch.full_like(mask, -1)) == 0


def test_boxes_go_with_their_picture():
    theta = torch.tensor([[[-0.6, 0.0, 0.2], [0.0, 0.5, -0.3]]])
    picture = torch.zeros(1, 1, 80, 80)
    picture[:, :, 20:50, 30:60] = 1.0
    rows, columns = (warp(picture, theta)[0, 0] > 0.5).nonzero().unbind(1)
    found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 80
    boxes, inside = cropped_boxes(torch.tensor([[[30, 20, 60, 50], [70, 70, 80, 80]]]) / 80, theta)
    torch.testing.assert_close(boxes[0, 0], found, rtol=0, atol=0.02)
    assert inside.tolist() == [[True, False]]


def test_modules_are_for_their_tasks():
    assert choose_attentions(["sanet", "none", "none"], "segment") == ["none", "sanet"]
    assert choose_attentions(["all"], "segment") == of_task("segment")
    assert {"se", "cbam", "non-local", "danet", "ocnet", "encnet", "sanet"} <= set(of_task("segment"))
    assert set(ATTENTIONS) == {*of_task("segment"), *of_task("classify"), *of_task("detect")}
    assert set(LAYERS) == set(of_task("segment"))
    assert {task: set(sets) for task, sets in READERS.items()} == {
        task: set(sets) for task, sets in LAYOUTS.items()
    }
    with pytest.raises(ValueError, match="attention danet is made for cmx train segment; cmx train classify"):
        choose_attentions(["danet"], "classify")
    with pytest.raises(ValueError, match="attention fcan is made for cmx train classify; cmx train segment"):
        choose_attentions(["se", "fcan"], "segment")
    with pytest.raises(ValueError, match="attention must be one or more of none, se, .*, all; got sennet"):
        choose_attentions(["sennet"], "segment")


def test_levels_refuse_what_does_not_fit(encoder, monkeypatch):
    assert Levels.of(encoder, RECIPE).sides == (8, 4, 2)
    with pytest.raises(ValueError, match="none of 64 or more"):
        encoder.map_shapes(64, 64)
    with pytest.raises(ValueError, match=f"size must be a multiple of {encoder.multiple} for"):
        encoder.map_shapes(65, 8)
    monkeypatch.setattr(encoder, "any_size", False)
    monkeypatch.setattr(encoder, "size", 96)
    with pytest.raises(ValueError, match="size must be 96 for tiny; got 64: --set size=..."):
        Levels.of(encoder, RECIPE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 100}, "size must be a positive multiple of 32; got 100"),
        ({"width": 20}, "width must be a multiple of 8; got 20"),
        ({"heads": 3}, "heads must be a divisor of width = 16; got 3"),
        ({"reduction": 32}, "reduction must be at most width = 16; got 32"),
        ({"part_size": 2}, "part_size must be odd; got 2"),
    ],
)
def test_recipes_refuse(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **changes)
