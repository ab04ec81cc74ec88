import pytest
import torch
import torch.nn.functional as F
from operator_contract import run, vector_error

from cmx_fast.losses import DenseContrastiveLoss
from cmx_fast.ops import dense_contrastive, dense_scores, info_nce


def pairs(b=6, dtype=torch.float64):
    return torch.randn(b, 8, 3, 5).to(dtype), torch.randn(b, 11, 8).to(dtype)


@pytest.mark.parametrize("pool", ["max_mean", "sum_max", "max", "mean"])
def test_it_is_the_cross_entropy_of_the_scores(pool):
    image, audio = pairs()
    real = torch.rand(6, 11) > 0.3
    real[:, 0] = True

    def eager(image, audio, scale):
        logits = scale * dense_scores(
            image, audio, pool=pool, key_mask=real, normalize=True, impl="reference"
        )
        own = torch.arange(6)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    def ours(image, audio, scale):
        return dense_contrastive(image, audio, scale, pool=pool, key_mask=real, normalize=True)

    inputs = image, audio, torch.tensor(7.0, dtype=torch.float64)
    for f, truth in zip(run(ours, *inputs), run(eager, *inputs), strict=True):
        assert vector_error(f, truth) < 1e-12


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_of_single_tokens_it_is_info_nce(symmetric, reduction):
    query, key = torch.randn(2, 9, 8)
    options = {"target": torch.randperm(9), "symmetric": symmetric, "reduction": reduction, "normalize": True}
    of_tokens = dense_contrastive(query[:, None], key[:, None], 5.0, **options)
    torch.testing.assert_close(of_tokens, info_nce(query, key, 5.0, **options))


def test_one_way_takes_more_keys_than_queries():
    image, audio = pairs(dtype=torch.float32)
    target = torch.tensor([5, 0, 5])
    loss = dense_contrastive(image[:3], audio, 2.0, target=target, symmetric=False)
    expected = F.cross_entropy(2 * dense_scores(image[:3], audio), target)
    torch.testing.assert_close(loss, expected)


def test_the_module_is_the_function():
    image, audio = pairs(dtype=torch.float32)
    real = torch.arange(11) < torch.tensor([11, 3, 5, 1, 11, 7])[:, None]
    target = torch.randperm(6)
    loss = DenseContrastiveLoss(0.2, pool="mean_max", heads=2, normalize=True, reduction="sum")
    expected = dense_contrastive(
        image, audio, temperature=0.2, pool="mean_max", heads=2, normalize=True, reduction="sum", key_mask=real,
        target=target,
    )  # fmt: skip
    torch.testing.assert_close(loss(image, audio, key_mask=real, target=target), expected)
    torch.testing.assert_close(
        DenseContrastiveLoss(logit_scale=5.0)(image, audio), dense_contrastive(image, audio, 5.0)
    )
    assert "pool='mean_max', heads=2" in repr(loss)
    with pytest.raises(ValueError, match="temperature must be positive"):
        DenseContrastiveLoss(0.0)


def test_a_learned_scale_has_a_gradient():
    image, audio = pairs()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: dense_contrastive(image, audio, s), (scale,))
    temperature = torch.tensor(0.5, requires_grad=True)
    dense_contrastive(image, audio, temperature=temperature).backward()
    assert temperature.grad.isfinite()


def test_half_precision_has_a_float32_loss():
    image, audio = pairs(dtype=torch.bfloat16)
    loss, dimage, daudio = run(lambda *x: dense_contrastive(*x, 5.0), image, audio)
    assert (loss.dtype, dimage.dtype, daudio.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)


X = torch.ones(3, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((1, X), {}, TypeError, "query must be a tensor"),
        ((X, X[:2]), {}, ValueError, "symmetric needs as many keys as queries, got 2 and 3"),
        ((X, X[:2]), {"symmetric": False}, ValueError, "3 queries but 2 keys: pass target"),
        ((X, X), {"target": torch.tensor([0, 1, 3])}, ValueError, r"target must lie in \[0, 3\)"),
        ((X, X), {"target": torch.tensor([0, 1, 1])}, ValueError, "symmetric needs a target that is a permutation"),
        ((X, X), {"target": torch.ones(2)}, TypeError, "target must be an int64 tensor"),
        ((X, X, -1.0), {}, ValueError, "logit_scale must be positive"),
        ((X, X, 2.0), {"temperature": 0.1}, ValueError, "logit_scale and temperature can't both be given"),
        ((X, X), {"reduction": "max"}, ValueError, "reduction must be one of 'mean'"),
        ((X, X), {"symmetric": 1}, TypeError, "symmetric must be True or False"),
        ((X, X), {"pool": "median"}, ValueError, "pool must be one of"),
    ],
)  # fmt: skip
def test_refuses(arguments, options, error, message):
    with pytest.raises(error, match=message):
        dense_contrastive(*arguments, **options)
