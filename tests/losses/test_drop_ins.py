"""The losses against the packages they stand in for: losses and gradients, in float64 where they can."""

from __future__ import annotations

import ast
import copy
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.benchmarks.peers import formulas, packages
from cmx_fast.losses import ClipLoss, InfoNCE, InfoNCELoss, NTXentLoss, SigLipLoss, SupConLoss


def original(make, *args, **kwargs):
    try:
        return make(*args, **kwargs)
    except packages.MissingPeerError as error:
        pytest.skip(str(error))


def rows(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return F.normalize(
        torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


def assert_same(ours, theirs, *inputs: Tensor, rtol: float = 1e-9) -> None:
    """Equal losses, and equal gradients of every input."""
    results = []
    for function in (ours, theirs):
        leaves = [value.clone().requires_grad_() for value in inputs]
        loss = function(*leaves)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for mine, other in zip(*results, strict=True):
        assert (mine - other).norm() <= rtol * max(other.norm(), 1e-3), (mine, other)


@pytest.mark.parametrize("n", [1, 2, 37])
def test_clip_loss_is_open_clips(n):
    theirs = original(packages.open_clip_loss)
    inputs = rows(n, 24), rows(n, 24, seed=1), torch.tensor(30.0, dtype=torch.float64)
    assert_same(ClipLoss(), theirs, *inputs)
    assert_same(formulas.clip, theirs, *inputs)


def test_clip_loss_takes_open_clips_arguments():
    theirs = type(original(packages.open_clip_loss))
    arguments = {
        "local_loss": True,
        "gather_with_grad": True,
        "cache_labels": True,
        "rank": 0,
        "world_size": 1,
    }
    inputs = rows(9, 8), rows(9, 8, seed=1), 20.0
    ours = ClipLoss(**arguments)(*inputs, output_dict=True)
    expected = theirs(**arguments)(*inputs, output_dict=True)
    assert ours.keys() == expected.keys()
    torch.testing.assert_close(ours["contrastive_loss"], expected["contrastive_loss"])


@pytest.mark.parametrize(
    "scale",
    [30, numpy.float32(30), numpy.float64(30), numpy.int64(30), torch.tensor(30), torch.tensor([30.0])],
    ids=lambda scale: type(scale).__name__,
)
def test_clip_loss_takes_open_clips_scales(scale):
    theirs = original(packages.open_clip_loss)
    assert_same(
        lambda *x: ClipLoss()(*x, scale), lambda *x: theirs(*x, scale), rows(9, 8), rows(9, 8, seed=1)
    )


@pytest.mark.parametrize(("rank", "world_size"), [(0, 0), (0, 1), (3, 1)])
def test_clip_loss_of_one_process_takes_any_rank(rank, world_size):
    theirs = type(original(packages.open_clip_loss))
    both = [cls(rank=rank, world_size=world_size) for cls in (ClipLoss, theirs)]
    assert_same(*(lambda *x, loss=loss: loss(*x, 20.0) for loss in both), rows(9, 8), rows(9, 8, seed=1))


def on_our_clip_loss(name: str) -> type:
    """One of OpenCLIP's classes, from its source, on this package's ClipLoss."""
    module = type(original(packages.open_clip_loss)).forward
    source = Path(module.__code__.co_filename).read_text()
    (node,) = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == name]
    namespace = {**module.__globals__, "ClipLoss": ClipLoss}
    exec(ast.get_source_segment(source, node), namespace)
    return namespace[name]


def test_clip_loss_carries_open_clips_distillation():
    ours = on_our_clip_loss("DistillClipLoss")()
    theirs = type(original(packages.open_clip_loss)).forward.__globals__["DistillClipLoss"]()
    features = [rows(9, 8, seed=seed) for seed in range(4)]
    teachers = 10.0, *features[2:], 15.0
    for term in ("contrastive_loss", "distill_loss"):
        assert_same(
            *(
                lambda *x, loss=loss, term=term: loss(*x, *teachers, output_dict=True)[term]
                for loss in (ours, theirs)
            ),
            *features[:2],
        )


def test_clip_loss_carries_open_clips_captions():
    arguments = {"caption_loss_weight": 2.0, "clip_loss_weight": 3.0, "rank": 0, "world_size": 1}
    both = (
        on_our_clip_loss("CoCaLoss")(**arguments),
        type(original(packages.open_clip_loss)).forward.__globals__["CoCaLoss"](**arguments),
    )
    words = torch.arange(36).reshape(9, 4) % 5
    assert_same(
        *(lambda *x, loss=loss: sum(loss(*x, words, 20.0)) for loss in both),
        rows(9, 8),
        rows(9, 8, seed=1),
        rows(9, 4, 5, seed=2),
    )


@pytest.mark.parametrize("bias", [None, -10.0, torch.tensor(3.0)])
def test_clip_loss_gives_open_clips_logits(bias):
    theirs = original(packages.open_clip_loss)
    image, text = rows(9, 8), rows(9, 8, seed=1)
    for result, truth in zip(
        ClipLoss().get_logits(image, text, 20.0, bias),
        theirs.get_logits(image, text, 20.0, bias),
        strict=True,
    ):
        torch.testing.assert_close(result, truth)
    assert ClipLoss().get_ground_truth(image.device, 9).equal(theirs.get_ground_truth(image.device, 9))


def test_clip_loss_bias_cancels_and_still_gets_its_gradient():
    theirs = original(packages.open_clip_loss)
    bias = torch.tensor(-10.0, dtype=torch.float64)
    image, text = rows(9, 8), rows(9, 8, seed=1)
    assert_same(lambda b: ClipLoss()(image, text, 20.0, b), lambda b: theirs(image, text, 20.0, b), bias)


@pytest.mark.parametrize("n", [1, 2, 37])
@pytest.mark.parametrize("chunk_size", [0, 5])
def test_siglip_loss_is_open_clips(n, chunk_size):
    theirs = original(packages.open_clip_loss, "SigLipLoss")
    numbers = torch.tensor(30.0, dtype=torch.float64), torch.tensor(-10.0, dtype=torch.float64)
    ours = SigLipLoss(chunk_size=chunk_size)
    assert_same(ours, theirs, rows(n, 24), rows(n, 24, seed=1), *numbers)
    assert_same(lambda *x: ours(*x, 20), lambda *x: theirs(*x, 20, None), rows(n, 24), rows(n, 24, seed=1))


@pytest.mark.parametrize("dist_impl", [None, "bidir", "shift", "reduce", "gather"])
def test_siglip_loss_takes_open_clips_arguments(dist_impl):
    theirs = type(original(packages.open_clip_loss, "SigLipLoss"))
    arguments = {"cache_labels": True, "rank": 0, "world_size": 1, "dist_impl": dist_impl}
    inputs = rows(9, 8), rows(9, 8, seed=1), 20.0, -3.0
    ours = SigLipLoss(**arguments)(*inputs, output_dict=True)
    expected = theirs(**arguments)(*inputs, output_dict=True)
    assert ours.keys() == expected.keys()
    torch.testing.assert_close(ours["contrastive_loss"], expected["contrastive_loss"])


def test_siglip_loss_refuses_what_open_clip_refuses():
    with pytest.raises(ValueError, match="dist_impl must be one of 'bidir', .*; got 'ring'"):
        SigLipLoss(dist_impl="ring")
    with pytest.raises(
        ValueError, match="SigLipLoss was told rank=0, world_size=2, but torch.distributed says"
    ):
        SigLipLoss(world_size=2)(rows(9, 8), rows(9, 8, seed=1), 20.0, -3.0)


@pytest.mark.parametrize("bias", [None, -10.0, torch.tensor(3.0)])
@pytest.mark.parametrize("negative_only", [False, True])
def test_siglip_loss_gives_open_clips_logits_and_labels(bias, negative_only):
    theirs = original(packages.open_clip_loss, "SigLipLoss")
    image, text = rows(9, 8), rows(9, 8, seed=1)
    torch.testing.assert_close(
        SigLipLoss().get_logits(image, text, 20.0, bias), theirs.get_logits(image, text, 20.0, bias)
    )
    of_labels = image.device, image.dtype, 9, negative_only
    assert SigLipLoss().get_ground_truth(*of_labels).equal(theirs.get_ground_truth(*of_labels))


@pytest.mark.parametrize(
    ("labels", "seed"), [([0, 0, 1, 1, 2, 2, 2, 5, 6], 0), ([3] * 8 + [4], 1), (list(range(9)), 2)]
)
def test_supcon_loss_is_metric_learnings(labels, seed):
    theirs = original(packages.metric_learning_supcon, 0.1)
    labels = torch.tensor(labels)
    features = torch.randn(18, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ours = SupConLoss(0.1, base_temperature=0.1, normalize=True, reduction="mean_nonzero")
    both = labels.repeat(2)  # positives even where the labels are distinct
    assert_same(lambda x: ours(x, both), lambda x: theirs(x, both), features)


def test_supcon_loss_averages_nonzero_anchors_as_metric_learning_does():
    theirs = original(packages.metric_learning_supcon, 0.1)
    features, labels = rows(7, 12), torch.tensor([0, 0, 0, 1, 2, 3, 4])
    ours = SupConLoss(0.1, base_temperature=0.1, normalize=True, reduction="mean_nonzero")
    assert_same(lambda x: ours(x, labels), lambda x: theirs(x, labels), features)
    mean = SupConLoss(0.1, base_temperature=0.1)(features, labels)
    torch.testing.assert_close(mean * 7, ours(features, labels) * 3)


@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_ntxent_loss_is_lightlys(temperature):
    theirs = original(packages.lightly_ntxent, temperature)
    inputs = 3 * rows(13, 16), rows(13, 16, seed=1)
    assert_same(NTXentLoss(temperature), theirs, *inputs)
    assert_same(lambda a, b: formulas.ntxent(a, b, temperature), theirs, *inputs)


def test_ntxent_loss_with_a_bank_is_lightlys_over_many_steps():
    theirs = original(packages.lightly_ntxent, 0.2, rows(24, 16, dtype=torch.float32))
    ours = NTXentLoss(0.2, memory_bank_size=(24, 16))
    ours.memory_bank.rows = theirs.memory_bank.bank.clone()
    for step in range(7):  # the bank turns over twice
        out0, out1 = (
            rows(8, 16, dtype=torch.float32, seed=step),
            rows(8, 16, dtype=torch.float32, seed=100 + step),
        )
        bank = theirs.memory_bank.bank.clone()
        again = copy.deepcopy(ours)
        assert_same(
            lambda a, b, bank=bank: formulas.ntxent_with_bank(a, b, bank, 0.2), again, out0, out1, rtol=1e-5
        )
        assert_same(ours, theirs, out0, out1, rtol=1e-5)
    assert set(ours.state_dict()) == set(theirs.state_dict()) == set()


def test_ntxent_loss_leaves_the_bank_alone_in_evaluation():
    theirs = original(packages.lightly_ntxent, 0.5, rows(24, 16, dtype=torch.float32))
    ours = NTXentLoss(0.5, memory_bank_size=(24, 16))
    for loss, bank in ((theirs, lambda: theirs.memory_bank.bank), (ours, lambda: ours.memory_bank.rows)):
        before = bank().clone()
        loss(rows(8, 16, dtype=torch.float32), rows(8, 16, dtype=torch.float32, seed=1))
        torch.testing.assert_close(bank(), before)
        loss(rows(8, 16, dtype=torch.float32).requires_grad_(), rows(8, 16, dtype=torch.float32, seed=1))
        assert not torch.equal(bank(), before)


NEGATIVES = [None, ("unpaired", 1), ("unpaired", 24), ("unpaired", 0), ("paired", 1), ("paired", 24)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("negatives", NEGATIVES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 13])
def test_info_nce_is_info_nce_pytorchs(n, negatives, learned, dtype):
    """Loss and gradients; where they round, ours are no further from float64's than 1.5 times theirs."""
    theirs = original(packages.load, "info_nce").InfoNCE
    mode, m = negatives or ("unpaired", 0)
    inputs = [3 * rows(n, 16), rows(n, 16, seed=1)]
    if negatives:
        inputs.append(2 * (rows(n, m, 16, seed=2) if mode == "paired" else rows(m, 16, seed=2)))
    inputs = [x.to(dtype) for x in inputs]
    for reduction in ("mean", "sum", "none"):
        results = []
        for make, kind in ((InfoNCE, dtype), (theirs, dtype), (theirs, torch.float64)):
            leaves = [x.to(kind, copy=True).requires_grad_(i < 2 or learned) for i, x in enumerate(inputs)]
            loss = make(0.3, reduction, mode)(*leaves)
            pull = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
            loss.backward(pull)
            results.append([loss.detach().double(), *(x.grad.double() for x in leaves if x.requires_grad)])
        for mine, other, truth in zip(*results, strict=True):
            assert mine.shape == truth.shape
            # In float64 theirs is the truth: room for the rounding of either.
            floor = 1e-13 if dtype == torch.float64 else 2 * torch.finfo(dtype).eps
            limit = 1.5 * (other - truth).norm() + floor * truth.norm().clamp(min=0.1)
            assert (mine - truth).norm() <= limit


def test_info_nce_has_info_nce_pytorchs_defaults():
    theirs = original(packages.load, "info_nce").InfoNCE
    inputs = rows(7, 16), rows(7, 16, seed=1), rows(9, 16, seed=2)
    assert_same(InfoNCE(), theirs(), *inputs)
    assert_same(InfoNCE(), theirs(), *inputs[:2])


def test_info_nce_loss_normalises_its_bank_as_info_nce_pytorch_does():
    theirs = original(packages.info_nce_pytorch, 0.1)
    query, key, bank = rows(8, 16), rows(8, 16, seed=1), 5 * rows(24, 16, seed=2)
    ours = InfoNCELoss(0.1, in_batch=False, symmetric=False, normalize=True)
    for given in (bank, [bank], (bank[:10], bank[10:])):
        assert_same(lambda q, k, b=given: ours(q, k, b), lambda q, k: theirs(q, k, bank), query, key)


def test_info_nce_is_traced_whole():
    query, key, bank = rows(8, 16), rows(8, 16, seed=1), rows(24, 16, seed=2).requires_grad_()
    traced = torch.compile(InfoNCE(), fullgraph=True, backend="aot_eager")
    assert_same(traced, InfoNCE(), query, key, bank)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: InfoNCE(0), ValueError, "temperature must be positive"),
        (lambda: InfoNCE(reduction="avg"), ValueError, "reduction must be one of"),
        (lambda: InfoNCE(negative_mode="pair"), ValueError, "negative_mode must be one of"),
        (lambda: InfoNCE()(rows(4, 8), rows(5, 8)), ValueError, "query and positive_key must both"),
        (lambda: InfoNCE()(rows(4, 8), rows(4, 8), rows(5, 9)), ValueError, "negative_keys has 9 features"),
        (lambda: InfoNCE()(rows(4, 8), rows(4, 8), rows(4, 5, 8)), ValueError, r"must have shape \(M, D\)"),
        (lambda: InfoNCE(negative_mode="paired")(rows(4, 8), rows(4, 8), rows(4, 8)), ValueError, r"shape \(4, M, D\)"),
        (lambda: InfoNCE(negative_mode="paired")(rows(4, 8), rows(4, 8), rows(3, 5, 8)), ValueError, r"\(4, M, D\)"),
        (lambda: InfoNCE()(rows(4, 8), rows(4, 8), rows(5, 8).float()), TypeError, "negative_keys is torch.float32"),
        (lambda: InfoNCE()(rows(4, 8), rows(4, 8), [[1.0]]), TypeError, "negative_keys must be a tensor"),
    ],
)  # fmt: skip
def test_info_nce_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_bank_formula_is_info_nce_pytorchs():
    theirs = original(packages.info_nce_pytorch, 0.3)
    query, key, bank = rows(8, 16), rows(8, 16, seed=1), rows(24, 16, seed=2)
    assert_same(
        lambda q, k: formulas.ntxent_with_bank(q, k, bank, 0.3), lambda q, k: theirs(q, k, bank), query, key
    )
