"""The parts that the loss modules add to the operators: conventions, the bank's order, and refusals."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy
import pytest
import torch
import torch.nn.functional as F

from cmx_fast.benchmarks.peers import formulas
from cmx_fast.losses import ClipLoss, InfoNCELoss, MemoryBank, NTXentLoss, SupConLoss
from cmx_fast.ops import info_nce


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(
        torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


def test_info_nce_loss_passes_every_option_on():
    query, key, bank, target = unit(6, 8), unit(6, 8, seed=1), unit(5, 8, seed=2), torch.randperm(6)
    options = {
        "in_batch": True,
        "within": True,
        "similarity": "l2",
        "symmetric": False,
        "normalize": True,
        "label_smoothing": 0.1,
        "reduction": "none",
    }
    ours = InfoNCELoss(0.2, **options)(2 * query, key, bank, target)
    expected = info_nce(2 * query, key, 5.0, bank=bank, target=target, impl="reference", **options)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_supcon_mask_and_labels_agree(mode, views):
    features, labels = unit(8, views, 3, 4), torch.tensor([0, 0, 1, 1, 2, 3, 3, 3])
    mask = labels[:, None] == labels[None, :]
    for reduction in ("mean", "mean_nonzero", "sum", "none"):
        loss = SupConLoss(0.1, mode, reduction=reduction, normalize=True)
        torch.testing.assert_close(loss(features, labels), loss(features, mask=mask))


def test_supcon_one_view_as_anchor():
    features, labels = unit(6, 2, 8), torch.tensor([0, 0, 1, 1, 2, 2])
    every = SupConLoss(reduction="none")(features, labels)
    first = SupConLoss(contrast_mode="one", reduction="none")(features, labels)
    assert every.shape == (12,)
    torch.testing.assert_close(first, every[:6])


def test_supcon_without_labels_is_ntxent():
    view0, view1 = unit(6, 8), unit(6, 8, seed=1)
    simclr = SupConLoss(0.5, base_temperature=0.5)(torch.stack([view0, view1], 1))
    torch.testing.assert_close(simclr, formulas.ntxent(view0, view1, 0.5))
    torch.testing.assert_close(simclr, NTXentLoss(0.5)(view0, view1))


def test_supcon_base_temperature_scales_the_loss():
    features, labels = unit(6, 8), torch.tensor([0, 0, 1, 1, 2, 2])
    expected = formulas.supcon(features.float(), labels, 0.2).double() * (0.2 / 0.07)
    torch.testing.assert_close(SupConLoss(0.2)(features, labels), expected, rtol=1e-5, atol=0)


def test_supcon_weighted_asymmetric_mask():
    features = unit(4, 1, 8)
    mask = torch.tensor([[0, 2, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0.5, 0, 0]], dtype=torch.float64)
    loss = SupConLoss(0.1, base_temperature=0.1, reduction="none")(features, mask=mask)
    logits = (features[:, 0] @ features[:, 0].T / 0.1).fill_diagonal_(-math.inf)
    cost = logits.logsumexp(1, keepdim=True) - logits
    expected = torch.stack([(2 * cost[0, 1] + cost[0, 2]) / 3, cost.new_zeros(()), cost[2, 0], cost[3, 1]])
    torch.testing.assert_close(loss, expected)


def test_identical_rows_cost_the_logarithm_of_the_candidates():
    same = torch.ones(6, 2, 5, dtype=torch.float64)
    assert SupConLoss(0.1, base_temperature=0.1, normalize=True)(same).item() == pytest.approx(math.log(11))
    assert NTXentLoss()(same[:, 0], same[:, 1]).item() == pytest.approx(math.log(11))
    assert ClipLoss()(same[:, 0], same[:, 1], 3.0).item() == pytest.approx(math.log(6))


@pytest.mark.parametrize(
    ("size", "batches"), [(6, [4, 4, 4, 4, 4]), (5, [1] * 17), (3, [8, 2, 3]), (4, [4, 0, 4])]
)
def test_memory_bank_keeps_the_last_keys_in_order(size, batches):
    bank, history = MemoryBank(size, 2), []
    start = bank.rows.clone()
    for number, batch in enumerate(batches):
        keys = torch.full((batch, 2), float(number)) + torch.arange(batch)[:, None] / 100
        bank.enqueue(keys)
        history += list(keys)
        torch.testing.assert_close(bank.rows, torch.stack([*start, *history])[-size:])


def test_memory_bank_rows_in_use_do_not_change():
    """Several losses, then one backward pass: what a ring overwritten in place breaks."""
    loss = NTXentLoss(0.5, memory_bank_size=(8, 4))
    bank0 = loss.memory_bank.rows.clone()
    query = [unit(4, 4, seed=i).float().requires_grad_() for i in range(3)]
    key = [unit(4, 4, seed=10 + i).float() for i in range(3)]
    sum(loss(q, k) for q, k in zip(query, key, strict=True)).backward()
    history = torch.cat([bank0, *key])
    for step in range(3):
        alone = query[step].detach().requires_grad_()
        formulas.ntxent_with_bank(alone, key[step], history[4 * step : 4 * step + 8], 0.5).backward()
        torch.testing.assert_close(query[step].grad, alone.grad)


def test_memory_bank_moves_and_copies():
    bank = MemoryBank(4, 2)
    bank.enqueue(torch.ones(3, 2))
    bank = bank.to(torch.float64)
    bank.enqueue(torch.zeros(1, 2))
    torch.testing.assert_close(
        bank.rows, torch.tensor([[1.0, 1], [1, 1], [1, 1], [0, 0]], dtype=torch.float64)
    )
    assert not bank.state_dict()


def test_memory_bank_in_a_checkpoint():
    bank, other = (MemoryBank(5, 2, persistent=True) for _ in range(2))
    bank.enqueue(torch.ones(3, 2), torch.tensor([7, 8, 9]))
    other.load_state_dict(bank.state_dict())
    assert other.rows.equal(bank.rows) and other.ids.tolist() == [-1, -1, 7, 8, 9]
    for one in (bank, other):
        one.enqueue(torch.zeros(4, 2), torch.tensor([1, 2, 3, 4]))
    assert other.rows.equal(bank.rows) and other.ids.equal(bank.ids)
    assert bank.state_dict()["rows"].untyped_storage().nbytes() == 5 * 2 * 4
    with pytest.raises(RuntimeError, match=r"rows is stored as \(5, 2\), this bank has \(6, 2\)"):
        MemoryBank(6, 2, persistent=True).load_state_dict(bank.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        bank.load_state_dict({})


def test_no_sample_meets_itself_in_the_bank():
    bank = MemoryBank(6, 2)
    bank.enqueue(torch.arange(8.0).reshape(4, 2), torch.tensor([3, 4, 5, 3]))
    assert bank.without(torch.tensor([8, 9])) is bank.rows
    assert bank.without(torch.tensor([3, 9])).equal(bank.rows[[0, 1, 3, 4]])
    bank.enqueue(torch.zeros(7, 2))
    assert bank.ids.tolist() == [-1] * 6 and bank.without(torch.tensor([3])) is bank.rows


def test_the_remoulded_loss_starts_where_all_candidates_are_alike():
    """CMAC's eq. 7 with two banks of 15,000: ln 30001 while every cosine is 0."""
    query, key, banks = torch.zeros(3, 8), torch.zeros(3, 8), [torch.zeros(15000, 8)] * 2
    loss = InfoNCELoss(in_batch=False, symmetric=False)(query, key, bank=banks)
    assert loss.item() == pytest.approx(math.log(30001), rel=1e-6)


@pytest.mark.parametrize("number", [numpy.float32(0.25), numpy.float64(0.25), Fraction(1, 4)])
def test_temperatures_and_shares_of_any_number_type(number):
    x, y = unit(2, 5, 8)
    for result, truth in (
        (NTXentLoss(number)(x, y), NTXentLoss(0.25)(x, y)),
        (InfoNCELoss(number)(x, y), InfoNCELoss(0.25)(x, y)),
        (InfoNCELoss(label_smoothing=number)(x, y), InfoNCELoss(label_smoothing=0.25)(x, y)),
        (
            SupConLoss(number, base_temperature=number)(unit(4, 2, 8)),
            SupConLoss(0.25, "all", 0.25)(unit(4, 2, 8)),
        ),
        (info_nce(x, y, number), info_nce(x, y, 0.25)),
    ):
        assert result.equal(truth)


def test_ntxent_bank_takes_its_width_from_the_first_batch():
    loss = NTXentLoss(memory_bank_size=6)
    assert loss.memory_bank is None
    loss(unit(4, 8).float().requires_grad_(), unit(4, 8, seed=1).float())
    bank = loss.memory_bank
    torch.testing.assert_close(bank.rows[2:], unit(4, 8, seed=1).float())
    loss(unit(4, 8).float().requires_grad_(), unit(4, 8, seed=2).float())
    assert loss.memory_bank is bank
    torch.testing.assert_close(bank.rows[2:], unit(4, 8, seed=2).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_ntxent_bank_follows_the_inputs_dtype(dtype):
    loss = NTXentLoss(memory_bank_size=(8, 4))
    out0 = unit(4, 4).to(dtype).requires_grad_()
    loss(out0, unit(4, 4, seed=1).to(dtype)).backward()
    assert out0.grad.dtype == dtype


def replicas(module, count):
    """DataParallel's replicas, made as ``replicate`` makes them, with every buffer on the CPU."""
    made = [{m: m._replicate_for_data_parallel() for m in module.modules()} for _ in range(count)]
    for copies in made:
        for original, replica in copies.items():
            for name, child in original._modules.items():
                setattr(replica, name, copies[child])
            for name, buffer in original._buffers.items():
                setattr(replica, name, buffer.detach())
    return [copies[module] for copies in made]


def test_keys_are_not_lost_in_data_parallel():
    loss = NTXentLoss(0.5, memory_bank_size=(8, 4))
    before, view0, view1 = loss.memory_bank.rows.clone(), unit(4, 4).float(), unit(4, 4, seed=1).float()
    first, second = replicas(loss, 2)
    for replica in (first, second):
        with pytest.raises(RuntimeError, match="enqueue was called in a replica of DataParallel"):
            replica(view0.clone().requires_grad_(), view1)
        assert replica(view0, view1).equal(loss(view0, view1))  # evaluation only reads the bank
    assert loss.memory_bank.rows.equal(before)
    loss(view0.requires_grad_(), view1)
    torch.testing.assert_close(loss.memory_bank.rows, torch.cat([before[4:], view1]))


REFUSALS = [
    (lambda: ClipLoss(world_size=2)(*unit(2, 4, 8), 3.0), "told rank=0, world_size=2, but .* says 0 and 1"),
    (lambda: ClipLoss(rank=1, world_size=2).get_logits(*unit(2, 4, 8), 3.0), "told rank=1, world_size=2"),
    (lambda: ClipLoss(use_horovod=True), "use_horovod"),
    (lambda: ClipLoss()(*unit(2, 4, 8), numpy.float32(-1)), "logit_scale must be positive and finite .*-1.0"),
    (lambda: ClipLoss()(*unit(2, 4, 8), torch.tensor(0)), "logit_scale must be positive .*got 0"),
    (
        lambda: ClipLoss()(*unit(2, 4, 8), torch.tensor(True)),
        "logit_scale must be a real 0-d tensor, got torch.bool",
    ),
    (
        lambda: ClipLoss()(*unit(2, 4, 8), torch.tensor(1j)),
        "logit_scale must be a real 0-d tensor, got torch.complex",
    ),
    (lambda: InfoNCELoss(0), "temperature must be positive"),
    (lambda: NTXentLoss(-0.5), "temperature must be positive"),
    (lambda: NTXentLoss(memory_bank_size=-1), "memory_bank_size must be 0, K or .*; got -1"),
    (lambda: NTXentLoss(memory_bank_size=(64, -2)), r"memory_bank_size must .*; got \(64, -2\)"),
    (lambda: NTXentLoss(memory_bank_size=(64, 0)), "size and dim must be at least 1, got 64 and 0"),
    (lambda: NTXentLoss(memory_bank_size=(4, 4, 4)), r"memory_bank_size must .*; got \(4, 4, 4\)"),
    (lambda: NTXentLoss()(unit(4, 8), unit(5, 8)), "out0 and out1"),
    (lambda: MemoryBank(0, 4), "at least 1"),
    (lambda: MemoryBank(4, 4).enqueue(torch.ones(2, 3)), "keys must have shape"),
    (lambda: MemoryBank(4, 4).enqueue(torch.ones(2, 4), torch.ones(3).long()), "ids must have shape"),
    (lambda: SupConLoss(contrast_mode="two"), "contrast_mode"),
    (lambda: SupConLoss(base_temperature=0), "base_temperature"),
    (lambda: SupConLoss(reduction="median"), "reduction"),
    (lambda: SupConLoss()(unit(4, 8)), "views"),
    (lambda: SupConLoss()(unit(4, 2, 8), torch.arange(4), torch.eye(4)), "both"),
    (lambda: SupConLoss()(unit(4, 2, 8), torch.arange(8)), "labels must be 4"),
    (lambda: SupConLoss()(unit(4, 2, 8), torch.ones(4)), "labels must be 4"),
    (lambda: SupConLoss()(unit(4, 2, 8), mask=torch.eye(8)), "mask must have shape"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
