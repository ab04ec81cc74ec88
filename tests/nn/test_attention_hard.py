"""Hard attention: glimpses, windows, boxes and proposals, and what each is trained by."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cmx_fast.nn.attention import (
    AttentionProposal,
    DefaultBoxes,
    PartAttention,
    PartSequence,
    RecurrentAttention,
    RecurrentAttentionCNN,
    RecurrentAttentionCrop,
    RegionProposals,
    TwoLevelAttention,
    box_iou,
    decode,
    encode,
    glimpses,
    group_filters,
    match_anchors,
    multibox_loss,
    nms,
    part_attention_loss,
    part_places,
    peak_windows,
    proposal_loss,
    proposals,
    ranking_loss,
    recurrent_attention_loss,
)


def test_glimpses_are_patches_with_zeros_around():
    picture = torch.arange(36.0).view(1, 1, 6, 6)
    patches = glimpses(picture, torch.tensor([[0.0, 0.0]]), 2, scales=2)
    assert patches.shape == (1, 2, 1, 2, 2)
    assert patches[0, 0, 0].tolist() == [[14, 15], [20, 21]]
    around = picture[0, 0, 1:5, 1:5]
    assert patches[0, 1, 0].tolist() == F.avg_pool2d(around[None], 2)[0].tolist()
    corner = glimpses(picture, torch.tensor([[-1.0, -1.0]]), 2)
    assert corner[0, 0, 0].tolist() == [[0, 0], [0, 0]]  # its lower right is the first pixel
    for place in ([-1.0, 1.0], [1.0, 1.0], [1.0, -1.0]):
        assert glimpses(picture, torch.tensor([place]), 3, scales=2).isfinite().all()


def test_glimpses_of_each_picture_are_its_own():
    pictures, places = torch.randn(5, 3, 9, 12), torch.rand(5, 2) * 2 - 1
    together = glimpses(pictures, places, 4, scales=2)
    for i in range(5):
        assert together[i].equal(glimpses(pictures[i : i + 1], places[i : i + 1], 4, scales=2)[0])


def test_recurrent_attention_looks_and_is_paid():
    model = RecurrentAttention(3, size=4, steps=5).train()
    sequence = model(torch.randn(6, 1, 12, 12))
    assert sequence.log_probabilities.shape == (6, 3) and sequence.locations.shape == (6, 6, 2)
    assert sequence.baselines.shape == sequence.log_policy.shape == (5, 6)
    assert sequence.locations.abs().max() <= 1 and not sequence.locations.requires_grad
    labels = torch.randint(3, (6,))
    reward = (sequence.log_probabilities.argmax(1) == labels).float()
    expected = (
        F.nll_loss(sequence.log_probabilities, labels)
        + (sequence.baselines - reward).square().mean()
        - 0.01 * ((reward - sequence.baselines.detach()) * sequence.log_policy).sum(0).mean()
    )
    loss = recurrent_attention_loss(sequence, labels)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    # The locator learns by reward alone, and the baseline only itself.
    assert model.locator.fc_lt.weight.grad.abs().sum() > 0
    model.zero_grad()
    F.nll_loss(model(torch.randn(6, 1, 12, 12)).log_probabilities, labels).backward()
    assert model.locator.fc_lt.weight.grad is None and model.baseliner.fc.weight.grad is None


def test_recurrent_attention_evaluates_the_same_twice():
    model, picture = RecurrentAttention(3, size=4).eval(), torch.randn(2, 1, 12, 12)
    assert model(picture).log_probabilities.equal(model(picture).log_probabilities)
    assert model(picture).locations[0].eq(0).all()
    names = {"sensor.fc4.bias", "rnn.h2h.weight", "locator.fc_lt.weight", "baseliner.fc.bias"}
    assert names <= model.state_dict().keys()


def test_a_window_of_the_whole_picture_is_the_picture():
    picture = torch.rand(2, 3, 10, 10)
    whole = torch.tensor([[0.5, 0.5, 0.5]]).expand(2, 3)
    seen = RecurrentAttentionCrop(10, steepness=50)(picture, whole)
    torch.testing.assert_close(seen[:, :, 1:-1, 1:-1], picture[:, :, 1:-1, 1:-1], rtol=1e-4, atol=1e-4)


def test_a_window_enlarges_what_it_holds():
    picture = torch.zeros(1, 1, 12, 12)
    picture[:, :, :6, 6:] = 1
    crop = RecurrentAttentionCrop(8, least=0.1)
    seen = crop(picture, torch.tensor([[0.75, 0.25, 0.2]]))
    assert seen[:, :, 1:-1, 1:-1].min() > 0.95
    mask = crop.mask(torch.tensor([[0.75, 0.25, 0.25]]), 12, 12)
    torch.testing.assert_close(mask[0, 0].round(), picture[0, 0])


def test_windows_learn_to_move():
    picture = torch.zeros(1, 1, 24, 24)
    picture[:, :, 4:10, 13:19] = 1
    proposal = nn.Parameter(torch.tensor([[0.5, 0.5, 0.25]]))
    crop, optimizer = RecurrentAttentionCrop(12, steepness=1.0, least=0.1), torch.optim.Adam([proposal], 0.02)
    for _ in range(100):
        loss = -crop(picture, proposal).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    middle, half = crop.window(proposal)
    torch.testing.assert_close(middle[0], torch.tensor([16 / 24, 7 / 24]), rtol=0, atol=0.06)
    assert half < 0.2


def test_windows_stay_within_the_picture():
    middle, half = RecurrentAttentionCrop(4).window(torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.1, 0.9]]))
    torch.testing.assert_close(half, torch.tensor([1 / 3, 0.5]))
    torch.testing.assert_close(middle, torch.tensor([[1 / 3, 2 / 3], [0.5, 0.5]]))
    assert AttentionProposal(12)(torch.randn(2, 3, 2, 2)).shape == (2, 3)


def test_ranking_loss_wants_finer_scales_surer():
    coarse, fine = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    p, q = (torch.softmax(x, 1)[0, 0] for x in (coarse, fine))
    torch.testing.assert_close(ranking_loss([coarse, fine], torch.tensor([0])), p - q + 0.05)
    assert ranking_loss([fine, 9 * coarse], torch.tensor([0])) == 0


def test_peak_windows_hold_the_answers():
    maps = torch.zeros(2, 3, 6, 8)
    maps[0, :, 0:3, 4:8] = 1.0
    maps[1, 1, 4, 1] = 5.0
    windows = peak_windows(maps)
    assert windows[0].tolist() == [0.75, 0.25, 0.25]
    x, y, half = windows[1].tolist()
    assert abs(x - 1.5 / 8) <= half and abs(y - 4.5 / 6) <= half


def three_scales(steepness=1.0):
    def features():
        return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Tanh())

    return RecurrentAttentionCNN(
        [features() for _ in range(3)],
        [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)) for _ in range(3)],
        [AttentionProposal(4 * side * side, 8) for side in (8, 4)],
        RecurrentAttentionCrop(8, steepness, least=0.1),
    )


def test_each_scale_sees_the_window_of_the_one_before():
    model, picture = three_scales().eval(), torch.rand(2, 1, 16, 16)
    sequence = model(picture)
    assert [logits.shape for logits in sequence.logits] == [(2, 3)] * 3
    window = model.proposals[0](model.features[0](picture))
    second = model.crop(picture, window)
    third = model.crop(second, model.proposals[1](model.features[1](second)))
    torch.testing.assert_close(sequence.windows[0], window)
    torch.testing.assert_close(sequence.logits[2], model.classifiers[2](model.features[2](third)))


def with_gradients(model):
    return {
        name.partition(".")[0]
        for name, value in model.named_parameters()
        if value.grad is not None and value.grad.any()
    }


def test_networks_and_proposals_learn_in_turns():
    model, picture, labels = three_scales(), torch.rand(2, 1, 16, 16), torch.tensor([0, 2])
    sum(F.cross_entropy(logits, labels) for logits in model(picture, "networks").logits).backward()
    assert with_gradients(model) == {"features", "classifiers"}
    model.zero_grad()
    ranking_loss(model(picture, "proposals").logits, labels, margin=1.0).backward()
    assert with_gradients(model) == {"proposals"}
    assert all(proposal.layers[1].weight.grad.any() for proposal in model.proposals)
    model.zero_grad()
    windows, targets = model.proposal_targets(picture)
    assert targets[0].equal(peak_windows(model.features[0](picture)))
    sum(F.mse_loss(*pair) for pair in zip(windows, targets)).backward()
    assert with_gradients(model) == {"proposals"}


def test_scales_refuse_what_does_not_fit():
    linear = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="proposals one fewer; got 2, 2 and 2"):
        RecurrentAttentionCNN([linear] * 2, [linear] * 2, [linear] * 2, RecurrentAttentionCrop(8))
    with pytest.raises(ValueError, match="learner must be all, networks or proposals; got 'crop'"):
        three_scales()(torch.rand(1, 1, 16, 16), "crop")


def test_part_attention_is_the_formula():
    module = PartAttention(6, 4, parts=2, size=3, hidden=5).double().eval()
    x = torch.randn(3, 6, 4, 5).double()
    sequence = module(x)
    seen = [x.mean((2, 3))]
    for part, attend in enumerate(module.attend):
        scores = attend(x)[:, 0]
        weights = (scores.flatten(1).exp() / scores.flatten(1).exp().sum(1, keepdim=True)).view_as(scores)
        torch.testing.assert_close(sequence.maps[:, part], weights)
        glimpses_of_part = []
        for i in range(3):
            row, column = divmod(int(scores[i].argmax()), 5)
            assert sequence.locations[part, i].tolist() == [row, column]
            torch.testing.assert_close(sequence.log_policy[part, i], weights[i, row, column].log())
            around = x[i, :, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            glimpses_of_part.append(around.mean((1, 2)))
        seen.append(torch.stack(glimpses_of_part))
    chances = [layer(features).softmax(1) for layer, features in zip(module.classifiers, seen)]
    for count in range(3):
        expected = sum(chances[: count + 1]) / (count + 1)
        torch.testing.assert_close(sequence.log_probabilities[count].exp(), expected)


def test_a_glimpse_is_paid_at_once():
    def chances(*rows):
        return torch.tensor(rows).log()[:, None]

    labels = torch.tensor([0])
    policy = torch.tensor([[-1.0], [-2.0], [-3.0]])
    # Right; right and likelier; right, but less likely than before.
    rows = chances([0.4, 0.6], [0.6, 0.4], [0.8, 0.2], [0.7, 0.3])
    sequence = PartSequence(rows, torch.ones(1, 3, 1, 1), torch.zeros(3, 1, 2, dtype=torch.int64), policy)
    torch.testing.assert_close(
        part_attention_loss(sequence, labels, 0.5), -torch.tensor(0.7).log() + 0.5 * (1.0 + 2.0)
    )
    assert part_attention_loss(sequence, 1 - labels, 0.5) == -torch.tensor(0.3).log()


def test_glimpses_learn_where_the_class_shows():
    """Two places tell the class, of which the mean of the map knows nothing."""
    torch.manual_seed(0)
    module = PartAttention(2, 2, parts=1, size=1, hidden=4).train()
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(200):
        labels = torch.randint(2, (64,))
        x = 0.1 * torch.randn(64, 2, 4, 4)
        x[:, 0, 1, 2] = 3.0
        x[:, 1, 1, 2] = 6.0 * labels - 3
        x[:, 1, 3, 0] = 3 - 6.0 * labels
        optimizer.zero_grad()
        part_attention_loss(module(x), labels).backward()
        optimizer.step()
    whole, with_glimpse = (module.eval()(x).log_probabilities.argmax(2) == labels).double().mean(1)
    assert whole < 0.75 < 0.95 < with_glimpse


def test_part_maps_learn_by_reward_alone():
    module, x, labels = PartAttention(6, 4), torch.randn(8, 6, 5, 5), torch.randint(4, (8,))
    part_attention_loss(module(x), labels, weight=0.0).backward()
    assert with_gradients(module) == {"classifiers"}
    part_attention_loss(module(x), module(x).log_probabilities[0].argmax(1)).backward()
    assert with_gradients(module) == {"classifiers", "attend"}


def test_part_attention_refuses():
    with pytest.raises(ValueError, match="parts must be at least 1 and size odd, got 2 and 4"):
        PartAttention(8, 3, size=4)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 8, h, w\)"):
        PartAttention(8, 3)(torch.ones(2, 4, 3, 3))


class Red(nn.Module):
    """Sure of class 1 where a patch is red, else of class 0."""

    def forward(self, x):
        red = x[:, 0].mean((1, 2)) > 0.5
        return torch.where(red[:, None], torch.tensor([-5.0, 5.0]), torch.tensor([5.0, -5.0]))


def test_two_levels_classify_the_patches_that_show_it():
    patches = torch.zeros(2, 3, 3, 4, 4)
    patches[0, 1, 0] = 1
    patches[0, 2, 0] = 1
    patches[0, 2, 2] = 1  # red and blue
    blue = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    model = TwoLevelAttention(Red(), blue, [1])
    assert model.selected(patches).tolist() == [[False, True, True], [True, False, False]]
    expected = (blue(patches[0, 1:2]).softmax(1) + blue(patches[0, 2:3]).softmax(1))[0] / 2
    torch.testing.assert_close(model(patches)[0], expected)


def test_filters_of_a_kind_are_grouped():
    centres = torch.randn(3, 40)
    which = torch.arange(30) % 3
    filters = (centres[which] + 0.3 * torch.randn(30, 40)).view(30, 10, 2, 2)
    groups = group_filters(filters)
    for kind in range(3):
        assert len(groups[which == kind].unique()) == 1
    assert len(groups.unique()) == 3 and groups.equal(group_filters(filters))
    maps = torch.zeros(1, 30, 5, 6)
    maps[0, which == 1, 2, 4] = 1.0
    assert part_places(maps, groups, 3)[0, groups[1]].tolist() == [2, 4]
    with pytest.raises(ValueError, match=r"groups must be in \[1, 2\]"):
        group_filters(torch.randn(2, 3, 1, 1))


def boxes(count, seed=0, size=10.0):
    generator = torch.Generator().manual_seed(seed)
    corner = size * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + 0.1 + size * torch.rand(count, 2, generator=generator)], 1)


def test_overlaps():
    overlap = box_iou(
        torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3], [0, 0, 2, 2], [5, 5, 6, 6]])
    )
    torch.testing.assert_close(overlap, torch.tensor([[1 / 7, 1.0, 0.0]]))


@given(st.integers(0, 60), st.floats(0, 1), st.integers(0, 200))
def test_suppression_keeps_the_best_and_nothing_near_it(count, threshold, seed):
    some, scores = boxes(count, seed), torch.rand(count, generator=torch.Generator().manual_seed(seed))
    kept = nms(some, scores, threshold)
    assert (scores[kept].diff() <= 0).all()
    shared = box_iou(some, some)
    alive = torch.zeros(count, dtype=torch.bool)
    alive[kept] = True
    for i in range(count):
        better = alive & ((scores > scores[i]) | ((scores == scores[i]) & (torch.arange(count) < i)))
        assert alive[i] == (not (shared[i][better] > threshold).any())
    if count:
        assert nms(some, scores, threshold, 1).tolist() == [int(scores.argmax())]


def test_suppression_refuses():
    with pytest.raises(ValueError, match=r"boxes must be \(N, 4\) and scores \(N,\)"):
        nms(boxes(3), torch.rand(2), 0.5)
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 2"):
        nms(boxes(3), torch.rand(3), 2)


def test_offsets_and_boxes_are_inverse():
    some, anchors = boxes(20).double(), boxes(20, 1).double()
    for variances in ((1.0, 1.0), (0.1, 0.2)):
        torch.testing.assert_close(decode(encode(some, anchors, variances), anchors, variances), some)


def test_default_boxes_are_ssds():
    module = DefaultBoxes()
    assert len(module) == 8732
    sides = module.boxes[:, 2:] - module.boxes[:, :2]
    middle = (module.boxes[:, 2:] + module.boxes[:, :2]) / 2
    assert sides.min() > 0 and sides.max() <= 1 and middle.min() > 0 and middle.max() <= 1
    # The first place: its middle, and four shapes of which two are turned.
    torch.testing.assert_close(middle[:4] * 300, torch.full((4, 2), 4.0))
    torch.testing.assert_close(sides[:2] * 300, torch.tensor([[30.0, 30], [1800**0.5, 1800**0.5]]))
    torch.testing.assert_close(sides[2] * 300, torch.tensor([30 * 2**0.5, 30 / 2**0.5]))
    torch.testing.assert_close(sides[3], sides[2].flip(0))
    largest = module.boxes[-4:]
    torch.testing.assert_close((largest[0, 2:] - largest[0, :2]).max(), torch.tensor(0.88), atol=1e-3, rtol=0)


def test_every_object_has_a_box():
    module = DefaultBoxes(30, (3, 1), (10, 30), (6, 12, 20), ((2,), (2,)))
    objects = torch.tensor([[0.02, 0.02, 0.2, 0.2], [0.9, 0.9, 0.95, 0.95]])
    matched = module.match(objects, torch.tensor([1, 2]))
    assert set(matched.labels.tolist()) == {0, 1, 2}
    share = box_iou(objects, module.boxes)
    assert matched.labels[share[1].argmax()] == 2 and share[1].max() < 0.5
    above = (share[0] >= 0.5).nonzero()[:, 0]
    assert (matched.labels[above] > 0).all()
    for box in (matched.labels > 0).nonzero()[:, 0]:
        back = decode(matched.offsets[box : box + 1], module.boxes[box : box + 1], (0.1, 0.2))
        torch.testing.assert_close(back[0], objects[matched.labels[box] - 1])
    none = module.match(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert none.labels.eq(0).all() and none.offsets.eq(0).all()


def test_hardest_background_alone_counts():
    module = DefaultBoxes(30, (3, 1), (10, 30), (6, 12, 20), ((2,), (2,)))
    matched = [module.match(torch.tensor([[0.02, 0.02, 0.2, 0.2]]), torch.tensor([1]))]
    offsets, logits = (torch.randn(1, len(module), width).requires_grad_() for width in (4, 3))
    loss = multibox_loss(offsets, logits, matched)
    positive = matched[0].labels > 0
    each = F.cross_entropy(logits[0], matched[0].labels, reduction="none")
    count = int(positive.sum())
    hardest = each[~positive].sort(descending=True).values[: 3 * count]
    places = F.smooth_l1_loss(offsets[0][positive], matched[0].offsets[positive], reduction="sum")
    torch.testing.assert_close(loss, (each[positive].sum() + hardest.sum() + places) / count)
    loss.backward()
    assert (logits.grad[0].abs().sum(1) > 0).sum() == 4 * count
    none = module.match(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert multibox_loss(offsets, logits, [none]) == 0


NO_AREA = {
    "no width": [0.3, 0.2, 0.3, 0.5],
    "no height": [0.1, 0.4, 0.3, 0.4],
    "a point": [0.3, 0.3, 0.3, 0.3],
    "exchanged corners": [0.5, 0.5, 0.2, 0.2],
    "exchanged sides": [0.5, 0.2, 0.2, 0.5],
    "NaN": [0.1, 0.1, float("nan"), 0.5],
    "infinite": [0.1, 0.1, float("inf"), 0.5],
    "wider than numbers": [-3e38, 0.1, 3e38, 0.5],
}


@pytest.mark.parametrize("box", NO_AREA.values(), ids=NO_AREA)
def test_boxes_without_area_are_refused_by_name(box):
    wrong = torch.tensor([[0.1, 0.1, 0.4, 0.4], box])
    module = DefaultBoxes(30, (3, 1), (10, 30), (6, 12, 20), ((2,), (2,)))
    proposed = RegionProposals(2, width=4)(torch.randn(1, 2, 3, 3))
    calls = {
        "objects": [
            lambda: module.match(wrong, torch.tensor([1, 2])),
            lambda: match_anchors(proposed.anchors, wrong, (48, 48)),
            lambda: proposal_loss(proposed, [wrong], (48, 48)),
        ],
        "boxes": [lambda: encode(wrong, wrong[:1].expand(2, 4))],
        "anchors": [
            lambda: encode(wrong[:1].expand(2, 4), wrong),
            lambda: decode(torch.zeros(2, 4), wrong),
            lambda: match_anchors(wrong, wrong[:1], (48, 48)),
        ],
    }
    for name, some in calls.items():
        for call in some:
            with pytest.raises(
                ValueError, match=rf"{name}\[1\] is \[.*, one of 1 without area: give left, top, right"
            ):
                call()


@pytest.mark.parametrize("box", NO_AREA.values(), ids=NO_AREA)
def test_boxes_without_area_are_nan_where_nobody_looks(box, monkeypatch):
    """Values are not checked, as on a GPU, where a check would wait for the device."""
    for module in ("boxes", "default_boxes"):
        monkeypatch.setattr(f"cmx_fast.nn.attention.{module}.is_checked", lambda tensor: False)
    wrong = torch.tensor([[0.1, 0.1, 0.4, 0.4], box])
    right = wrong[:1].expand(2, 4)
    for offsets in (encode(wrong, right), encode(right, wrong), decode(torch.zeros(2, 4), wrong)):
        assert offsets[0].isfinite().all() and offsets[1].isnan().all()
    boxes = DefaultBoxes(30, (3, 1), (10, 30), (6, 12, 20), ((2,), (2,)))
    matched = [boxes.match(wrong, torch.tensor([1, 2]))]
    assert multibox_loss(torch.zeros(1, len(boxes), 4), torch.zeros(1, len(boxes), 3), matched).isnan()
    proposed = RegionProposals(2, width=4)(torch.randn(1, 2, 3, 3))
    assert proposal_loss(proposed, [wrong], (48, 48)).isnan()


def test_targets_that_do_not_fit_are_refused():
    module = DefaultBoxes(30, (3, 1), (10, 30), (6, 12, 20), ((2,), (2,)))
    objects = torch.tensor([[0.02, 0.02, 0.2, 0.2]])
    offsets, logits = torch.zeros(1, len(module), 4), torch.zeros(1, len(module), 3)
    good = module.match(objects, torch.tensor([2]))
    assert multibox_loss(offsets, logits, [good]).isfinite()
    for labels in (good.labels + 1, good.labels - 1):
        with pytest.raises(
            ValueError, match=r"matched must have labels in \[0, 3\) and finite offsets; got labels"
        ):
            multibox_loss(offsets, logits, [good._replace(labels=labels)])
    with pytest.raises(ValueError, match=f"and {4 * len(module)} offsets that are not"):
        multibox_loss(offsets, logits, [good._replace(offsets=good.offsets + torch.inf)])
    with pytest.raises(ValueError, match="matched must be 1, one per picture; got 2"):
        multibox_loss(offsets, logits, [good, good])
    with pytest.raises(ValueError, match="offsets must be"):
        multibox_loss(offsets[:, 1:], logits, [good])
    for labels, message in (
        ([0], "labels must be from 1 on"),
        ([1, 2], r"labels must be \(1,\), one per object"),
    ):
        with pytest.raises(ValueError, match=message):
            module.match(objects, torch.tensor(labels))


def test_later_objects_win_a_box_that_two_would_have():
    module = DefaultBoxes(30, (1,), (30,), (12, 20), ((2,),))
    objects = torch.tensor([[0.4, 0.4, 0.6, 0.6]] * 3)
    matched = module.match(objects, torch.tensor([1, 2, 3]))
    assert matched.labels.tolist() == [3, 0, 0, 0]


def test_nan_does_not_vanish():
    nan = torch.tensor(float("nan"))
    module = DefaultBoxes(30, (3, 1), (10, 30), (6, 12, 20), ((2,), (2,)))
    offsets, scores = torch.zeros(len(module), 4), torch.full((len(module), 3), 0.3)
    with pytest.raises(ValueError, match="scores has 1 NaN: the network has diverged"):
        module.detect(offsets, scores.index_put((torch.tensor(2), torch.tensor(1)), nan))
    with pytest.raises(ValueError, match="offsets has 1 NaN"):
        module.detect(offsets.index_put((torch.tensor(2), torch.tensor(1)), nan), scores)
    with pytest.raises(ValueError, match="scores has 3 NaN"):
        nms(boxes(3), nan.expand(3), 0.5)
    proposed = RegionProposals(2, width=4)(torch.randn(1, 2, 3, 3))
    with pytest.raises(ValueError, match="proposed.logits has 81 NaN"):
        proposals(proposed._replace(logits=proposed.logits * nan), (48, 48))


def test_detections_are_the_objects():
    module = DefaultBoxes(30, (3, 1), (10, 30), (6, 12, 20), ((2,), (2,)))
    objects, labels = torch.tensor([[0.02, 0.02, 0.3, 0.3], [0.6, 0.6, 0.95, 0.95]]), torch.tensor([2, 1])
    matched = module.match(objects, labels)
    scores = F.one_hot(matched.labels, 3).float()
    detected, detected_labels, sure = module.detect(matched.offsets, scores)
    assert sorted(detected_labels.tolist()) == [1, 2] and sure.eq(1).all()
    for box, label in zip(detected, detected_labels):
        torch.testing.assert_close(box, objects[labels == label][0], rtol=1e-3, atol=1e-4)


def test_proposals_score_every_anchor():
    module = RegionProposals(8, width=16)
    proposed = module(torch.randn(2, 8, 5, 7))
    assert proposed.logits.shape == (2, 9 * 35) and proposed.offsets.shape == (2, 9 * 35, 4)
    first = proposed.anchors[:9]
    assert ((first[:, :2] + first[:, 2:]) / 2).unique().tolist() == pytest.approx([8.0], abs=1e-3)
    sides = first[:, 2:] - first[:, :2]
    assert sides.prod(1).sqrt().tolist() == pytest.approx([128] * 3 + [256] * 3 + [512] * 3, rel=1e-4)
    assert (sides[:, 1] / sides[:, 0]).tolist() == pytest.approx([0.5, 1, 2] * 3, rel=1e-4)
    for proposed_boxes, scores in proposals(proposed, (80, 112), before=100, after=10):
        assert len(proposed_boxes) <= 10 and (scores.diff() <= 0).all()
        assert (
            proposed_boxes.min() >= 0
            and proposed_boxes[:, 2].max() <= 112
            and proposed_boxes[:, 3].max() <= 80
        )


def test_anchors_are_matched_as_the_paper_says():
    anchors = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 9, 10], [0, 0, 5, 10], [30, 30, 40, 40], [-5, 0, 5, 10], [0, 0, 10, 4]]
    )
    labels, object_of = match_anchors(anchors, torch.tensor([[0.0, 0, 10, 10], [33, 33, 36, 36]]), (50, 50))
    assert labels.tolist() == [1, 1, -1, 1, -1, -1]
    assert object_of[3] == 1  # the best there is, though it overlaps little
    assert match_anchors(anchors, torch.zeros(0, 4), (50, 50))[0].tolist() == [0, 0, 0, 0, -1, 0]


def test_proposals_learn_where_objects_are():
    torch.manual_seed(1)
    module = RegionProposals(4, stride=8, sizes=(12, 24), ratios=(1.0,), width=16)
    features = torch.randn(1, 4, 8, 8)
    objects = [torch.tensor([[6.0, 10, 18, 22], [30, 28, 56, 54]])]
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        loss = proposal_loss(module(features), objects, (64, 64), sampled=32, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Anchors that leave the picture are never trained, and any of them may score high.
    proposed_boxes, _ = proposals(module(features), (64, 64), after=8)[0]
    assert box_iou(objects[0], proposed_boxes).max(1).values.min() > 0.7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RecurrentAttention(3, steps=0), "must be at least 1"),
        (lambda: RecurrentAttentionCrop(0), "size must be at least 1"),
        (
            lambda: RecurrentAttentionCrop(4)(torch.rand(2, 1, 8, 8), torch.rand(2, 2)),
            r"proposal must have shape \(2, 3\)",
        ),
        (lambda: ranking_loss([torch.ones(1, 2)], torch.tensor([0])), "at least two scales"),
        (lambda: TwoLevelAttention(Red(), Red(), []), "relevant must name a class"),
        (lambda: TwoLevelAttention(Red(), Red(), [1])(torch.ones(2, 3)), r"patches must have shape \(B, P, C, H, W\)"),
        (lambda: DefaultBoxes(maps=(3,)), "maps, steps and ratios must be as many"),
        (lambda: DefaultBoxes(sizes=(30, 60, 111, 0, 213, 264, 315)), "must be above 0; got 0 among them"),
        (lambda: RegionProposals(4, sizes=(128, -1)), "stride, sizes and ratios must be above 0"),
    ],
)  # fmt: skip
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
