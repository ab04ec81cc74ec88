"""Derivatives in every direction PyTorch has: right, or refused by name, of every operator, loss and layer."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.distributed as dist
from sized_calls import CALLS, public_names
from torch import Tensor
from torch.autograd import forward_ad
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils import _pytree as pytree

from cmx_fast import distributed, losses, ops
from cmx_fast.ops._implementations import HAS_EXTENSION, OPERATORS, choose

#: With gradients.
SMOOTH = [name for name, call in CALLS.items() if call.leaves and name != "NTXentLoss-bank"]
#: In float32 whatever comes in; all else is compared in float64.
SINGLE = {"LogMel", "LogFilterbank"}
#: Made of torch.nn.functional.grid_sample, which has no tangents in PyTorch and says so.
SAMPLED = {
    "warp", "SpatialTransformer", "ThinPlateTransformer", "RecurrentAttentionCrop", "RecurrentAttentionCNN",
}  # fmt: skip


def test_every_operator_loss_and_layer_is_tried():
    tried = {one.strip() for call in CALLS.values() for one in call.names.split(",")}
    assert tried == public_names()


def scalar_function(name):
    """Of the leaves: one number of all results, and the leaves. What draws at random draws the same."""
    call = CALLS[name]
    module = call.build()
    inputs = call.inputs(4, 9)
    if name not in SINGLE:
        module, inputs = module.double(), pytree.tree_map_only(Tensor, wide, inputs)
    weights: list[Tensor] = []

    def function(*leaves):
        torch.manual_seed(3)
        results = pytree.tree_leaves(module(*leaves, *inputs[call.leaves :]))
        results = [x for x in results if isinstance(x, Tensor) and x.is_floating_point()]
        if not weights:
            weights.extend(torch.linspace(0.5, 1.5, x.numel()).to(x).view(x.shape) for x in results)
        return sum((x * w).sum() for x, w in zip(results, weights, strict=True))

    leaves = tuple(x.detach() for x in inputs[: call.leaves])
    function(*leaves)
    return function, leaves


def wide(x):
    return x.double() if x.is_floating_point() else x


def slope(function, leaves, tangents):
    """The derivative along the tangents in reverse mode, by the kernels."""
    inputs = [x.clone().requires_grad_() for x in leaves]
    gradients = torch.autograd.grad(function(*inputs), inputs, materialize_grads=True)
    return gradients, sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))


@pytest.mark.parametrize("name", SMOOTH)
def test_transforms_give_what_autograd_gives(name):
    function, leaves = scalar_function(name)
    tangents = tuple(torch.randn_like(x) for x in leaves)
    gradients, truth = slope(function, leaves, tangents)
    assert truth != 0
    close = {"rtol": 1e-4, "atol": 1e-5} if name in SINGLE else {}
    found = torch.func.grad(function, argnums=tuple(range(len(leaves))))(*leaves)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, **close)
    if name in SAMPLED:
        with pytest.raises(NotImplementedError, match="forward AD with grid_sampler"):
            torch.func.jvp(function, leaves, tangents)
        return
    _, along = torch.func.jvp(function, leaves, tangents)
    torch.testing.assert_close(along, truth, **close)
    with forward_ad.dual_level():
        dual = function(*(forward_ad.make_dual(x, t) for x, t in zip(leaves, tangents, strict=True)))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, truth, **close)


#: Of operators alone: what is built on them is made of nothing else.
OPERATIONS = [name for name in SMOOTH if CALLS[name].names.startswith("ops.")]


@pytest.mark.parametrize("name", OPERATIONS)
def test_vmap_and_second_derivatives(name):
    function, leaves = scalar_function(name)
    several = torch.stack([leaves[0], leaves[0] + 0.01 * torch.randn_like(leaves[0])])
    axes = (0, *[None] * (len(leaves) - 1))
    each = torch.stack([function(x, *leaves[1:]) for x in several])
    torch.testing.assert_close(torch.func.vmap(function, axes)(several, *leaves[1:]), each)
    per_sample = torch.func.vmap(torch.func.grad(function), axes)(several, *leaves[1:])
    for x, found in zip(several, per_sample, strict=True):
        torch.testing.assert_close(found, torch.func.grad(function)(x, *leaves[1:]))

    def along(step):
        return function(leaves[0] + step * direction, *leaves[1:])

    direction, zero, epsilon = torch.randn_like(leaves[0]), torch.zeros((), dtype=torch.float64), 1e-5
    slopes = [torch.func.grad(along)(zero + step) for step in (epsilon, -epsilon)]
    curvature = torch.func.hessian(along)(zero)
    by_difference = (slopes[0] - slopes[1]) / (2 * epsilon)
    torch.testing.assert_close(curvature, by_difference, rtol=1e-3, atol=1e-3)

    # Through the kernels, which have no second derivatives.
    x = leaves[0].clone().requires_grad_()
    (first,) = torch.autograd.grad(function(x, *leaves[1:]), x, create_graph=True)
    if first.requires_grad:
        with contextlib.suppress(NotImplementedError):
            (second,) = torch.autograd.grad((first * direction).sum(), x, materialize_grads=True)
            torch.testing.assert_close((second * direction).sum(), curvature, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["attention", "channel_gate", "info_nce"])
def test_compiled_forward_mode_is_not_zero(name):
    function, leaves = scalar_function(name)
    tangents = tuple(torch.randn_like(x) for x in leaves)

    def along(leaves, tangents):
        return torch.func.jvp(function, leaves, tangents)[1]

    torch._dynamo.reset()
    compiled = torch.compile(along, backend="eager")
    torch.testing.assert_close(compiled(leaves, tangents), slope(function, leaves, tangents)[1])


def test_a_bank_moves_outside_of_transforms_only():
    loss = losses.NTXentLoss(memory_bank_size=(40, 24))
    one, other = torch.randn(2, 4, 24)
    rows = loss.memory_bank.rows.clone()
    _, along = torch.func.jvp(lambda x: loss(x, other), (one,), (other,))
    with pytest.raises(
        NotImplementedError, match="can't move a bank; give info_nce the bank's rows in them, and"
    ):
        torch.func.grad(lambda x: loss(x, other))(one)
    assert loss.memory_bank.rows.equal(rows)

    def by_hand(x):
        return ops.info_nce(x, other, 2.0, bank=rows, in_batch=False, symmetric=False, normalize=True)

    gradient = torch.func.grad(by_hand)(one)
    torch.testing.assert_close(along, (gradient * other).sum())
    loss(one.requires_grad_(), other).backward()
    torch.testing.assert_close(one.grad, gradient)
    assert loss.memory_bank.rows[:36].equal(rows[4:])


@pytest.mark.skipif(not HAS_EXTENSION, reason="the C++ extension is not built (CMX_NO_EXTENSION)")
@pytest.mark.parametrize("op", OPERATORS)
def test_a_kernel_asked_for_by_name_refuses(op):
    message = rf"{op}: impl='cpp' can't run here: .*torch.func.*use impl='reference'"
    with forward_ad.dual_level(), pytest.raises(ValueError, match=message):
        choose(op, "cpp", "cpu", torch.float32, 8)
    for transform in (torch.func.grad, torch.func.vmap, lambda f: lambda x: torch.func.jvp(f, (x,), (x,))):
        with pytest.raises(ValueError, match=message):
            transform(lambda x: (choose(op, "cpp", "cpu", torch.float32, 8), x.sum())[1])(torch.ones(3))
    assert choose(op, "cpp", "cpu", torch.float32, 8) == "cpp"


def test_values_are_checked_below_grad_and_not_below_vmap():
    q, k = torch.randn(2, 5, 8)
    with pytest.raises(ValueError, match="logit_scale must be positive"):
        torch.func.grad(lambda scale: ops.info_nce(q, k, scale))(torch.tensor(-1.0))
    losses = torch.func.vmap(lambda scale: ops.info_nce(q, k, scale))(torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(losses, torch.stack([ops.info_nce(q, k, 1.0), ops.info_nce(q, k, 2.0)]))


def test_vmap_of_what_has_no_gradient():
    x, centroids, weight = torch.randn(3, 40, 6), torch.randn(5, 6), torch.rand(40)
    together = torch.func.vmap(lambda x: ops.kmeans_step(x, centroids, weight=weight))(x)
    several = torch.func.vmap(lambda c: ops.kmeans_step(x[0], c, weight=weight))(centroids.expand(2, -1, -1))
    for i in range(3):
        for found, right in zip(together, ops.kmeans_step(x[i], centroids, weight=weight), strict=True):
            torch.testing.assert_close(found[i], right)
    for found, right in zip(several, ops.kmeans_step(x[0], centroids, weight=weight), strict=True):
        torch.testing.assert_close(found[1], right)


def test_what_has_no_gradient_says_so():
    x, y, scale = torch.randn(5, 4), torch.randn(6, 4), torch.tensor(2.0)
    for leaf in (x, y, scale):
        leaf.requires_grad_()
        with pytest.raises(ValueError, match=r"requires a gradient, which a block of a softmax has not; use"):
            ops.block_statistics(x, y, scale)
        with pytest.raises(ValueError, match=r"requires a gradient, which a block of a softmax has not; use"):
            ops.block_gradients(x, y, scale, torch.rand(3, 5))
        leaf.requires_grad_(False)
    labels, distance = ops.kmeans_assign(x.requires_grad_(), y)
    assert not labels.requires_grad and not distance.requires_grad


def test_process_groups_refuse():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        x, labels = torch.randn(4, 8), torch.arange(4)
        for loss in (
            lambda x: distributed.info_nce(x, x),
            lambda x: distributed.supcon(x, labels),
            lambda x: distributed.sigmoid_contrastive(x, x),
            lambda x: distributed.kmeans_step(x, x[:2])[3],
        ):
            for transform in (torch.func.grad, lambda f: lambda x: torch.func.jvp(f, (x,), (x,))):
                with pytest.raises(NotImplementedError, match="impl='reference' on rows that are all in"):
                    transform(loss)(x)
    finally:
        dist.destroy_process_group()
