"""Supervised contrastive loss on the GPU: launchers of the forward pass and of the backward pass.

Forward: norms (only to normalise), a scan of the logits for every row's softmax and positives (kernels/supcon/scan.py),
then the losses. Two launches, three to normalise, whatever the number of rows and labels.

A program of the loss kernel owns BLOCK rows: it merges their slots and writes

    loss = log-sum-exp of the candidates less the mean logit of the positives

as ``log_sum_above(mean positive, ...)``, that is scale * (maximum - mean positive) + log(total), so that similarities
meet before the scale multiplies them: Note [Difference first], kernels/common/logits.py. The positives are candidates
of their own softmax here, unlike InfoNCE's: Khosla et al.'s L_out has all of P(i) in the denominator.
"""

import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.arguments import check_dtype, contiguous, on_own_device
from cmx_fast.kernels.common.grids import ceil_div
from cmx_fast.kernels.common.logits import (
    add_partials,
    base_two,
    empty_statistics,
    log_sum_above,
)
from cmx_fast.kernels.common.norms import measure
from cmx_fast.kernels.supcon.backward import sides, supcon_bwd
from cmx_fast.kernels.supcon.scan import scan

__all__ = ["supcon_bwd", "supcon_fwd"]

BLOCK = 32  # rows of one program of the losses


@triton.jit
def supcon_loss_kernel(
    scale_ptr,
    part_ptr,  # (slots, 3, M)
    slots,
    positive_ptr,  # (slots, M, 2)
    loss_ptr,  # out, (M,)
    stats_ptr,  # out, (4, M): top, pull, share, inverse, as supcon_fwd returns them
    M,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < M
    maximum, total, weighted, plain = empty_statistics(BLOCK)
    scale = tl.load(scale_ptr)
    maximum, total, weighted, plain = add_partials(
        maximum, total, weighted, plain, part_ptr, slots, M, i, inside, base_two(scale), False, BLOCK
    )
    # Of no columns the sums are 0, or NaN if a similarity was -inf: keep that visible.
    inverse = 1 / tl.where(total == 0, 1.0, total)
    mean = weighted * inverse
    stride = tl.cast(M, tl.int64)
    positive = tl.zeros((BLOCK,), tl.float32)
    count = tl.zeros((BLOCK,), tl.float32)
    for slot in range(0, slots):
        # (BLOCK,) each
        part = positive_ptr + 2 * (slot * stride + i)
        positive += tl.load(part, mask=inside, other=0.0)
        count += tl.load(part + 1, mask=inside, other=0.0)
    paired = count > 0
    share = 1 / tl.maximum(count, 1.0)
    positive *= share
    unusable = tl.where(scale > 0, 0.0, float("nan"))
    # 0 * mean: what is not finite stays visible where the exponential swallowed it.
    loss = tl.where(paired, log_sum_above(positive, maximum, total, scale), 0.0) + 0 * mean
    # (BLOCK,) each, as all that follows.
    tl.store(loss_ptr + i, loss + unusable, mask=inside)
    # Without positives there is no gradient: above an infinite similarity the exponentials are 0.
    tl.store(stats_ptr + i, tl.where(paired, maximum, float("inf")) + unusable, mask=inside)
    pull = tl.where(paired, mean - positive, 0 * mean)
    tl.store(stats_ptr + stride + i, pull + unusable, mask=inside)
    # total * inverse is 1 but for the inverse's rounding, which the softmax has too: with it in the share of a
    # positive, a softmax that is right, uniform over the positives, cancels.
    tl.store(stats_ptr + 2 * stride + i, tl.where(paired, share * (total * inverse), 0.0), mask=inside)
    tl.store(stats_ptr + 3 * stride + i, tl.where(paired, inverse, 0.0), mask=inside)


@on_own_device
def supcon_fwd(
    features: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    ref_features: Tensor | None,
    ref_labels: Tensor | None,
    normalize: bool,
    cache: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per-row supervised contrastive losses and what the backward pass needs.

    The operator ``cmx_fast::supcon_fwd`` for CUDA; ``cache`` is accepted and ignored, the backward pass recomputes.

    Args:
        features: (M, D) float32, bfloat16 or float16; labels: (M,) int64.
        logit_scale: 0-d float32 on the device; not positive gives NaN.
        ref_features, ref_labels: (R, D) and (R,), the columns; None for ``features`` themselves without the diagonal.

    Returns:
        loss (M,), 0 for a row without positives; stats (4, M): the row's largest similarity, infinite without
        positives; the softmax-weighted mean similarity less the positives' mean; 1 / number of positives, or 0; 1 / sum
        of the exponentials above the largest similarity, or 0; an empty tensor; and the inverse norms of rows and
        references (M + R,), empty unless ``normalize``. All float32.

    Memory: 5 floats per row and column split (at most 32). Cost: one M x R x D product. Two launches, three with
    ``normalize``. No synchronisation, no atomics.
    """
    check_dtype(features)
    features, labels, ref_features, ref_labels = contiguous(features, labels, ref_features, ref_labels)
    m = len(features)
    loss, stats = logit_scale.new_empty(m), logit_scale.new_empty(4, m)
    class_rows = logit_scale.new_empty(0)
    r = 0 if ref_features is None else len(ref_features)
    norms = logit_scale.new_empty(m + r if normalize else 0)
    rows, columns = sides(features, ref_features, norms, normalize)
    measure([rows] if columns is None else [rows, columns])
    if m == 0:
        return loss, stats, class_rows, norms
    part, positives = scan(rows, columns, labels, ref_labels, logit_scale)
    supcon_loss_kernel[(ceil_div(m, BLOCK),)](logit_scale, *part, positives, loss, stats, m, BLOCK=BLOCK)
    return loss, stats, class_rows, norms
