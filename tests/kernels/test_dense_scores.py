"""The launchers of the dense scores against float64 truth."""

from __future__ import annotations

import pytest
import torch

from cmx_fast import reference

pytest.importorskip("triton")
from cmx_fast.kernels.dense_scores import launchers
from cmx_fast.kernels.dense_scores.launchers import dense_scores_bwd, dense_scores_fwd

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
POOLS = {"mean": "max_mean", "sum": "max_sum", "max": "max"}
NAN = float("nan")


@pytest.fixture(params=["kept", "found again"])
def keep(request, monkeypatch):
    """The places of the maxima kept for the backward pass, or found again for one query item at a time."""
    monkeypatch.setattr(launchers, "PLACE_BYTES", 1)
    return request.param == "kept"


def step(device, q, k, q_mask, k_mask, pool, heads, normalize, keep, wanted=(True, True)):
    """Scores, gradients, and the upstream gradient that they are of."""
    tensors = [None if x is None else x.to(device) for x in (q, k, q_mask, k_mask)]
    scores, place, token = dense_scores_fwd(*tensors, pool, heads, normalize, keep)
    pull = torch.randn(scores.shape, generator=torch.Generator().manual_seed(0)).to(device)
    gradients = dense_scores_bwd(pull, *tensors, place, token, pool, heads, normalize, *wanted)
    return scores, *gradients, pull


def check(device, q, k, q_mask, k_mask, pool, heads, normalize, keep):
    *actual, pull = step(device, q, k, q_mask, k_mask, pool, heads, normalize, keep)
    exact = [x.double().requires_grad_() for x in (q, k)]
    expected = reference.dense_scores(
        *exact, pool=POOLS[pool], query_mask=q_mask, key_mask=k_mask, heads=heads, normalize=normalize
    )
    truth = torch.autograd.grad((expected * pull.cpu().double()).sum(), exact)
    for f, right, dtype in zip(
        actual, (expected.detach(), *truth), (torch.float32, q.dtype, q.dtype), strict=True
    ):
        assert f.dtype == dtype and f.shape == right.shape
        assert (f.cpu().double() - right).norm() <= TOLERANCE[q.dtype] * right.norm().clamp_min(1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("b", "m", "p", "t", "heads", "head"), [(1, 1, 1, 1, 1, 1), (2, 3, 70, 5, 3, 6), (3, 2, 5, 130, 1, 70)]
)
@pytest.mark.parametrize("pool", POOLS)
def test_scores_and_gradients(device, b, m, p, t, heads, head, pool, dtype):
    q, k = (torch.randn(n, heads * head, tokens).to(dtype).transpose(1, 2) for n, tokens in ((b, p), (m, t)))
    check(device, q, k.contiguous(), None, None, pool, heads, False, True)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("normalize", [False, True])
def test_nothing_in_a_masked_token_shows(device, pool, normalize, keep):
    q, k = torch.randn(3, 66, 10), torch.randn(2, 65, 10)
    masks = [torch.rand(x.shape[:2]) > 0.5 for x in (q, k)]
    for x, mask in zip((q, k), masks, strict=True):
        mask[:, 3] = True
        x[~mask] = NAN
    *actual, _ = step(device, q, k, *masks, pool, 2, normalize, keep)
    assert all(f.isfinite().all() for f in actual)
    check(device, q.nan_to_num(7.0), k.nan_to_num(7.0), *masks, pool, 2, normalize, keep)


@pytest.mark.parametrize("pool", POOLS)
def test_the_first_of_equal_similarities_gets_the_gradient(device, pool, keep):
    q, k = torch.randint(-1, 2, (2, 70, 4)).float(), torch.randint(-1, 2, (3, 66, 4)).float()
    check(device, q, k, None, None, pool, 2, False, keep)


@pytest.mark.parametrize("pool", POOLS)
def test_nan_shows(device, pool):
    q, k = torch.randn(3, 70, 8), torch.randn(4, 90, 8)
    q[1, 66, 2] = k[2, 80, 3] = NAN
    scores, _, _, _ = step(device, q, k, None, None, pool, 1, False, True)
    assert scores[1].isnan().all() and scores[:, 2].isnan().all() and int(scores.isnan().sum()) == 6


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("side", [0, 1])
def test_an_item_without_a_real_token_has_no_score(device, pool, side):
    q, k = torch.randn(3, 7, 8), torch.randn(4, 9, 8)
    masks = [torch.ones(x.shape[:2], dtype=torch.bool) for x in (q, k)]
    masks[side][1] = False
    scores, dq, dk, _ = step(device, q, k, *masks, pool, 1, False, True)
    assert scores.select(side, 1).isnan().all() and int(scores.isnan().sum()) == (4, 3)[side]
    assert dq.isfinite().all() and dk.isfinite().all() and (dq, dk)[side][1].eq(0).all()


@pytest.mark.parametrize("size", [1e-37, 1e-10, 1e20, 1e37])
def test_magnitudes_of_normalized_tokens(device, size):
    q, k = torch.randn(2, 9, 8), torch.randn(3, 5, 8)
    actual, *gradients, _ = step(device, q * size, k * size, None, None, "mean", 1, True, True)
    assert all(f.isfinite().all() for f in gradients)
    if size > 1e-12:
        right = step(device, q, k, None, None, "mean", 1, True, True)[0]
        torch.testing.assert_close(actual, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("pool", "wanted"), [("mean", (True, False)), ("mean", (False, True)), ("max", (False, True))]
)
def test_only_what_is_needed(device, count_launches, pool, wanted):
    arguments = torch.randn(2, 20, 8), torch.randn(3, 10, 8), None, None, pool, 1, False, True
    whole = step(device, *arguments)
    with count_launches() as count:
        actual = step(device, *arguments, wanted)
    assert count.launches == 2
    for x, right, needed in zip(actual[1:3], whole[1:3], wanted, strict=True):
        assert x.equal(right) if needed else x.numel() == 0


@pytest.mark.parametrize(("b", "m", "d"), [(0, 3, 4), (3, 0, 4), (2, 3, 0)])
@pytest.mark.parametrize("pool", POOLS)
def test_empty_sizes(device, b, m, d, pool):
    q, k = torch.randn(b, 5, d), torch.randn(m, 6, d)
    scores, dq, dk, _ = step(device, q, k, None, None, pool, 1, False, True)
    assert (scores.shape, dq.shape, dk.shape) == ((b, m), q.shape, k.shape)
    assert all(f.eq(0).all() for f in (scores, dq, dk))


def test_double_is_refused(device):
    x = torch.randn(1, 2, 3, dtype=torch.float64, device=device)
    with pytest.raises(TypeError, match=r"take float32, bfloat16 or float16, got torch\.float64"):
        dense_scores_fwd(x, x, None, None, "mean", 1, False, False)
