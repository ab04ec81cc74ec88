"""One block of a softmax over several blocks of columns, from which losses over many processes are made.

Rows x face columns y that lie in this process; the softmax of a row runs over the columns of all processes. So its
statistics are found block by block and joined, and then, block by block, the gradients through the whole softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.ops._implementations import HAS_EXTENSION, choose, register_triton


def block_statistics(
    x: Tensor,
    y: Tensor | None,
    logit_scale: Tensor,
    *,
    excluded: Tensor | None = None,
    similarity: str = "dot",
    impl: str = "auto",
) -> Tensor:
    """Statistics of the rows of logits ``logit_scale * sim(x_i, y_j)``, for :func:`join` to join with other blocks'.

    Args:
        x: (N, D) float32, float64, bfloat16 or float16. y: (M, D) of that dtype, or None: x's other rows.
        logit_scale: 0-d float32 (float64 for float64 x).
        excluded: (N,) int64, a column that row i doesn't see; any number outside [0, M) excludes none.
        similarity: "dot", "l2" (minus the distance) or "sql2" (minus its square).
        impl: "auto", "reference", "cpp" (CPU) or "triton" (CUDA).

    Returns:
        (4, N) in logit_scale's dtype: a similarity t about as large as the largest, the logarithm of the sum of
        exp(z - logit_scale * t), the softmax-weighted mean of the similarities, and their sum. t and the logarithm are
        -inf without columns. Together they are the log-sum-exp, and keep their digits where logits are large. No
        gradient: that is :func:`block_gradients`, when the other blocks are known.

    Raises:
        ValueError: an input that asks for a gradient.

    Memory: a tile. Cost: one N x M x D product, half of it without y on the CPU.
    """
    _check_constant(x=x, y=y, logit_scale=logit_scale)
    impl = choose("softmax_block", impl, x.device.type, x.dtype, x.shape[1])
    if impl == "reference":
        return reference.block_statistics(x, y, logit_scale, excluded=excluded, similarity=similarity)
    return torch.ops.cmx_fast.softmax_block_fwd(x, y, logit_scale, excluded, similarity)


def join(statistics: Tensor, logit_scale: Tensor) -> Tensor:
    """The statistics (4, N), float64, of the union of disjoint blocks, from theirs (blocks, 4, N)."""
    similarity, log_sum, mean, plain = statistics.double().unbind(1)
    top = similarity.amax(0)
    above = similarity - torch.where(top == float("-inf"), 0.0, top)
    shares = torch.exp(logit_scale.double() * above + log_sum)
    total = shares.sum(0)
    mean = (shares * mean).sum(0) / torch.where(total == 0, 1.0, total)
    return torch.stack([top, total.log(), mean, plain.sum(0)])


def softmax_slopes(statistics: Tensor, weight: Tensor, share: Tensor, like: Tensor) -> Tensor:
    """The softmax as :func:`block_gradients` takes it, (3, N): similarity, weight over the sum, share.

    Args:
        statistics: (4, N) joined. weight: (N,) upstream weight of each row's softmax. share: (N,) constant subtracted
            from each of its entries. like: the tensor whose dtype the result has.
    """
    similarity, log_sum = statistics[:2]
    empty = log_sum == float("-inf")
    # Above an infinite similarity all exponentials are 0: those of no candidates must not meet their weight of 0.
    similarity = torch.where(empty, float("inf"), similarity)
    return torch.stack([similarity, torch.where(empty, 0.0, weight * torch.exp(-log_sum)), share]).to(
        like.dtype
    )


def block_gradients(
    x: Tensor,
    y: Tensor | None,
    logit_scale: Tensor,
    row_softmax: Tensor,
    column_softmax: Tensor | None = None,
    *,
    excluded: Tensor | None = None,
    similarity: str = "dot",
    need_x: bool = True,
    need_y: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Gradients through one block, for the logits' gradient

    .. math:: G_{ij} = w_i e^{z_{ij} - s t_i} - e_i + v_j e^{z_{ij} - s r_j} - f_j, \qquad s = \mathrm{logit\_scale}

    Args:
        x, y, logit_scale, excluded, similarity: as for :func:`block_statistics`.
        row_softmax: (3, N): similarities t over all blocks, weights w, each divided by the row's sum of exponentials
            above t, and constants e, as :func:`softmax_slopes` makes them.
        column_softmax: (3, M): r, v, f of the columns' softmax, None if they have none. Without y it is the rows' own
            and not given.
        need_x, need_y: which gradients are wanted.

    Returns:
        dx (N, D) and dy (M, D) in logit_scale's dtype, each (0,) where not needed; sums over the other blocks are the
        caller's. Without y there is no dy. No second derivatives.

    Raises:
        ValueError: an input that asks for a gradient.

    Memory: the gradients and a tile; on the CPU a panel of 32 MiB for dy. Cost: one N x M x D product for the
    similarities and one for each gradient; on a GPU two for each.
    """
    _check_constant(x=x, y=y, logit_scale=logit_scale, row_softmax=row_softmax, column_softmax=column_softmax)
    impl = choose("softmax_block", impl, x.device.type, x.dtype, x.shape[1])
    if impl == "reference":
        return reference.block_gradients(
            x, y, logit_scale, row_softmax, column_softmax, excluded=excluded, similarity=similarity, need_x=need_x,
            need_y=need_y,
        )  # fmt: skip
    return torch.ops.cmx_fast.softmax_block_bwd(
        x, y, logit_scale, excluded, similarity, row_softmax, column_softmax, need_x, need_y
    )


def _check_constant(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, which a block of a softmax has not; use {name}.detach()"
            )


if HAS_EXTENSION:

    @torch.library.register_fake("cmx_fast::softmax_block_fwd")
    def _(x, y, logit_scale, excluded, similarity):
        return logit_scale.new_empty(4, x.shape[0])

    @torch.library.register_fake("cmx_fast::softmax_block_bwd")
    def _(x, y, logit_scale, excluded, similarity, row_softmax, column_softmax, need_x, need_y):
        return (
            logit_scale.new_empty(x.shape if need_x else (0,)),
            logit_scale.new_empty(y.shape if need_y else (0,)),
        )

    register_triton("softmax_block_fwd", "softmax_block.softmax_block_fwd")
    register_triton("softmax_block_bwd", "softmax_block.softmax_block_bwd")
