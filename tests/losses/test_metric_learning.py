"""pytorch-metric-learning's losses under its own defaults, with its miners, wrappers, distances and reducers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmx_fast import losses
from cmx_fast.benchmarks.peers import packages
from cmx_fast.losses.metric_learning import SupConLoss

try:
    peer = packages.load("pytorch_metric_learning")
    packages.load("pytorch_metric_learning.losses")
    packages.load("pytorch_metric_learning.miners")
except packages.MissingPeerError as error:
    pytest.skip(str(error), allow_module_level=True)

LABELS = {
    "classes": [0, 0, 1, 1, 2, 2, 2, 5, 6],
    "one class": [3] * 9,
    "no positives": list(range(9)),
    "one left out": [3] * 8 + [4],
    "two": [1, 1],
    "one row": [1],
}


def draw(n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return 3 * torch.randn(n, 12, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def assert_same(ours, theirs, *inputs: Tensor, rtol: float = 1e-6) -> None:
    """Equal losses, and equal gradients of every input; theirs adds 1e-6 to every count of positives."""
    results = []
    for loss in (ours, theirs):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = loss(*leaves)
        results.append((value.detach(), *torch.autograd.grad(value, leaves, materialize_grads=True)))
    for mine, other in zip(*results, strict=True):
        assert mine.dtype == other.dtype
        assert (mine.double() - other.double()).norm() <= rtol * max(other.double().norm(), 1e-3), (
            mine,
            other,
        )


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels(labels):
    labels = torch.tensor(labels)
    x, ref = draw(len(labels)), draw(len(labels) + 1, seed=1)
    ref_labels = torch.cat([labels, labels[:1]])
    ours, theirs = SupConLoss(), peer.losses.SupConLoss()
    assert_same(lambda x: ours(x, labels), lambda x: theirs(x, labels), x)
    assert_same(
        lambda *x: ours(x[0], labels, ref_emb=x[1], ref_labels=ref_labels),
        lambda *x: theirs(x[0], labels, ref_emb=x[1], ref_labels=ref_labels),
        x, ref,
    )  # fmt: skip


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("clone", [False, True])
def test_pairs_of_a_row_with_itself(other, clone):
    """The very tensor of labels leaves them out, a copy of it does not."""
    labels = torch.tensor(LABELS["classes"])
    x, ref, ref_labels = draw(9), draw(9, seed=1), labels.clone() if clone else labels
    assert_same(
        *(
            lambda x, r, loss=loss: loss(x, labels, ref_emb=r if other else x, ref_labels=ref_labels) + 0 * r.sum()
            for loss in (SupConLoss(), peer.losses.SupConLoss())
        ),
        x, ref,
    )  # fmt: skip


def test_few_columns():
    """A single positive and a single negative pair count as none."""
    label = torch.tensor([1])
    for labels in torch.tensor([[1, 2], [1, 1], [2, 3]]):
        both = [
            lambda x, ref, loss=loss, labels=labels: loss(x, label, None, ref, labels)
            for loss in (SupConLoss(), peer.losses.SupConLoss())
        ]
        assert_same(*both, draw(1), draw(2, seed=1))


@pytest.mark.parametrize("miner", ["MultiSimilarityMiner", "TripletMarginMiner", "PairMarginMiner"])
def test_miners(miner):
    labels = torch.arange(24) % 5
    x, ref = draw(24), draw(30, seed=1)
    ours, theirs = SupConLoss(0.2), peer.losses.SupConLoss(0.2)
    pairs = getattr(peer.miners, miner)()(x, labels)
    assert any(len(index) for index in pairs)
    assert_same(lambda x: ours(x, labels, pairs), lambda x: theirs(x, labels, pairs), x)
    assert_same(lambda x: ours(x, indices_tuple=pairs), lambda x: theirs(x, indices_tuple=pairs), x)
    pairs = getattr(peer.miners, miner)()(x, labels, ref, torch.arange(30) % 5)
    assert_same(lambda *x: ours(x[0], None, pairs, x[1]), lambda *x: theirs(x[0], None, pairs, x[1]), x, ref)


@pytest.mark.parametrize(
    "pairs",
    [
        ([], [], [], []),
        ([0], [1], [0], [2]),
        ([0], [1], [], []),
        ([0, 1], [1, 0], [3], [2]),
        ([0, 0], [1, 1], [2, 2]),
    ],
)
def test_few_pairs(pairs):
    pairs = tuple(torch.tensor(index, dtype=torch.int64) for index in pairs)
    assert_same(
        lambda x: SupConLoss()(x, None, pairs), lambda x: peer.losses.SupConLoss()(x, None, pairs), draw(4)
    )


@pytest.mark.parametrize("with_miner", [False, True])
def test_cross_batch_memory(with_miner):
    miner = peer.miners.MultiSimilarityMiner() if with_miner else None
    ours, theirs = (
        peer.losses.CrossBatchMemory(loss, 12, memory_size=20, miner=miner)
        for loss in (SupConLoss(), peer.losses.SupConLoss())
    )
    for step in range(4):
        labels = (torch.arange(9) + step) % 4
        assert_same(lambda x: ours(x, labels), lambda x: theirs(x, labels), draw(9, seed=step))  # noqa: B023


@pytest.mark.parametrize("symmetric", [False, True])
def test_self_supervised(symmetric):
    both = (
        peer.losses.SelfSupervisedLoss(loss, symmetric=symmetric)
        for loss in (SupConLoss(), peer.losses.SupConLoss())
    )
    assert_same(*both, draw(9), draw(9, seed=1))


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("option", ["LpDistance", "DotProductSimilarity", "MeanReducer", "PerAnchorReducer"])
def test_distances_and_reducers(option, labels):
    labels = torch.tensor(labels)
    kind = "distance" if hasattr(peer.distances, option) else "reducer"
    made = getattr(getattr(peer, f"{kind}s"), option)()
    if option == "PerAnchorReducer":
        made = peer.reducers.PerAnchorReducer(peer.reducers.AvgNonZeroReducer())
    both = (cls(0.3, **{kind: made}) for cls in (SupConLoss, peer.losses.SupConLoss))
    assert_same(*(lambda x, loss=loss: loss(x, labels) for loss in both), draw(len(labels)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mined", [False, True])
def test_other_dtypes(dtype, mined):
    labels = torch.arange(24) % 5
    x = draw(24, dtype)
    pairs = peer.miners.TripletMarginMiner()(x.float(), labels) if mined else None
    both = [lambda x, loss=loss: loss(x, labels, pairs) for loss in (SupConLoss(), peer.losses.SupConLoss())]
    assert_same(*both, x, rtol=16 * torch.finfo(dtype).eps)
    with torch.autocast("cpu", torch.bfloat16):
        assert both[0](x).dtype == torch.float32


def test_nan_shows():
    x, labels = draw(9), torch.tensor(LABELS["one class"])
    x[3, 4] = torch.nan
    assert SupConLoss()(x, labels).isnan()
    assert SupConLoss()(x, torch.tensor(LABELS["classes"])).isnan()
    assert SupConLoss()(
        x, None, ([0, 1], [1, 3], [2], [5])[:0] or tuple(map(torch.tensor, ([0, 1], [1, 3], [2], [5])))
    ).isnan()


def test_traced_whole():
    x, labels = draw(9), torch.tensor(LABELS["classes"])
    traced = torch.compile(SupConLoss(), fullgraph=True, backend="aot_eager")
    pairs = tuple(map(torch.tensor, ([0, 1, 4], [1, 0, 5], [0, 2], [3, 5])))
    for arguments in ((labels,), (None, pairs)):
        assert_same(lambda x: traced(x, *arguments), lambda x: SupConLoss()(x, *arguments), x)  # noqa: B023


PAIRS = tuple(map(torch.tensor, ([0, 1], [1, 0], [2, 9], [0, 1])))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SupConLoss(0), ValueError, "temperature must be positive"),
        (lambda: SupConLoss()(draw(4)), ValueError, "labels .* or indices_tuple must be given"),
        (lambda: SupConLoss()(draw(4), ref_emb=draw(4)), ValueError, "labels .* or indices_tuple must be given"),
        (lambda: SupConLoss()(draw(4), torch.arange(4), ref_emb=draw(4)), ValueError, "ref_labels"),
        (lambda: SupConLoss()(draw(4), torch.arange(4), ref_labels=torch.arange(4)), ValueError, "without ref_emb"),
        (lambda: SupConLoss()(draw(4), torch.arange(5)), ValueError, r"labels must have shape \(4,\).* got \(5,\)"),
        (lambda: SupConLoss()(draw(4), torch.ones(4)), TypeError, "labels must be integers, got torch.float32"),
        (lambda: SupConLoss()(draw(4)[0], torch.arange(12)), ValueError, r"embeddings must have shape \(N, D\)"),
        (lambda: SupConLoss()(draw(9), None, PAIRS), ValueError, r"rows in \[0, 9\), got 2 to 9"),
        (lambda: SupConLoss()(draw(9), None, tuple(-p for p in PAIRS)), ValueError, r"rows in \[0, 9\), got -1 to 0"),
        (lambda: SupConLoss()(draw(9), None, PAIRS[:2]), ValueError, "3 tensors .* or 4 .* got 2"),
        (lambda: SupConLoss()(draw(9), None, PAIRS[:2] * 2), ValueError, "both positive and negative"),
        (lambda: losses.SupConLoss()(draw(10), torch.arange(10), PAIRS), ValueError, "can't both be given"),
        (lambda: losses.SupConLoss()(draw(10), mask=PAIRS), TypeError, "miner's tuple use .*metric_learning"),
    ],
)  # fmt: skip
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
