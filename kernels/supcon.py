"""Supervised contrastive loss on the GPU: launchers of the forward pass and of the backward pass.

Labels never meet the M x M tiles. A row's positives enter through the sum of its class, O(M D); the scan only needs to
know which column is the row itself. Forward: norms and label order, class sums, scan, losses: at most four launches,
plus torch.sort's own beyond 4096 labels.
"""

import triton
import triton.language as tl
from cmx_fast.kernels.common.arguments import check_dtype, contiguous, on_own_device
from cmx_fast.kernels.common.classes import (
    RANKED_PER_PROGRAM,
    class_sums,
    find_class,
    rank_labels,
    sort_labels,
)
from cmx_fast.kernels.common.logits import add_partials, empty_statistics, log_sum_exp_and_mean
from cmx_fast.kernels.common.norms import (
    DEPTH,
    ROWS_PER_PROGRAM,
    allocate_rows,
    measure_rows,
    norm_arguments,
    norm_programs,
)
from cmx_fast.kernels.common.scan import scan
from cmx_fast.kernels.supcon_backward import supcon_bwd
from torch import Tensor

__all__ = ["supcon_bwd", "supcon_fwd"]

BLOCK = 16  # rows of one program of the losses


@triton.jit
def prepare_kernel(
    matrices,
    inverses,
    squared,
    counts,
    D,
    labels_ptr,  # (R,) int64
    sorted_ptr,
    order_ptr,
    R,
    rank_programs,
    N_MATRICES: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    if pid < rank_programs:
        rank_labels(pid, labels_ptr, sorted_ptr, order_ptr, R, BLOCK)
    measure_rows(pid - rank_programs, matrices, inverses, squared, counts, D, N_MATRICES, ROWS, DEPTH)


@triton.jit
def loss_kernel(
    x_ptr,  # (M, D)
    inverse_ptr,  # (M,) inverse norms or None
    labels_ptr,
    sorted_ptr,  # (R,) of the columns
    sum_ptr,  # (R, D) at the first sorted position of each class
    count_ptr,
    scale_ptr,
    part_ptr,
    slots,
    loss_ptr,  # (M,)
    stats_ptr,  # (3, M)
    class_rows_ptr,  # (M, D)
    M,
    R,
    D,
    steps,
    SELF: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < M
    maximum, total, weighted, plain = empty_statistics(BLOCK)
    maximum, total, weighted, plain = add_partials(
        maximum, total, weighted, plain, part_ptr, slots, M, i, inside, False, BLOCK
    )
    lse, mean = log_sum_exp_and_mean(maximum, total, weighted)
    label = tl.load(labels_ptr + i, mask=inside, other=0)
    first, found = find_class(sorted_ptr, R, steps, label, inside)
    count = tl.load(count_ptr + first, mask=found, other=0.0)
    if SELF:
        count -= 1
    positive = tl.zeros((BLOCK,), tl.float32)
    for d0 in range(0, D, DEPTH):
        d = d0 + tl.arange(0, DEPTH)
        mask = inside[:, None] & (d < D)[None, :]
        x = tl.load(x_ptr + i[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
        if inverse_ptr is not None:
            x *= tl.load(inverse_ptr + i, mask=inside, other=0.0)[:, None]
        rows = tl.load(sum_ptr + first[:, None] * D + d[None, :], mask=mask & found[:, None], other=0.0)
        if SELF:
            rows -= x
        tl.store(class_rows_ptr + i[:, None] * D + d[None, :], rows, mask=mask)
        positive += tl.sum(x * rows, 1)
    scale = tl.load(scale_ptr)
    loss = tl.where(count > 0, lse - scale * positive / tl.maximum(count, 1.0), 0.0)
    # 0 * x: what is not finite stays visible where the exponential swallowed it or no positive reads it.
    loss += 0 * mean + 0 * positive
    tl.store(loss_ptr + i, tl.where(scale > 0, loss, float("nan")), mask=inside)
    tl.store(stats_ptr + i, lse, mask=inside)
    tl.store(stats_ptr + M + i, mean, mask=inside)
    tl.store(stats_ptr + 2 * tl.cast(M, tl.int64) + i, count, mask=inside)


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
        loss (M,), 0 for a row without positives; stats (3, M): log-sum-exp of the row's logits, their softmax-weighted
        mean similarity, number of positives; class_rows (M, D), the sum of the row's positives; all float32; and an
        empty tensor.

    Memory: O(M D). Cost: one M x R x D product. No synchronisation, no atomics.
    """
    check_dtype(features)
    features, labels, ref_features, ref_labels = contiguous(features, labels, ref_features, ref_labels)
    m, width = features.shape
    square = ref_features is None
    loss, stats = logit_scale.new_empty(m), logit_scale.new_empty(3, m)
    class_rows = logit_scale.new_empty(m, width)
    saved = logit_scale.new_empty(0)
    if m == 0:
        return loss, stats, class_rows, saved
    rows = allocate_rows(features[None], normalize, False)
    columns = rows if square else allocate_rows(ref_features, normalize, False)
    column_labels = labels if square else ref_labels
    r = len(column_labels)
    order = sort_labels(column_labels)
    measured = norm_arguments([rows] if square else [rows, columns])
    programs = order.programs + norm_programs(measured[-1])
    if programs:
        prepare_kernel[(programs,)](
            *measured, width, column_labels, order.values, order.order, r, order.programs,
            len(measured[-1]), ROWS_PER_PROGRAM, DEPTH, RANKED_PER_PROGRAM,
        )  # fmt: skip
    counts = logit_scale.new_empty(r)
    sums = class_sums(columns.data.view(r, width), columns.inverse_norm, None, order, counts)
    part, _ = scan(
        rows, None, [] if square else [columns], None, logit_scale,
        exclude="nothing", within=square, similarity="dot", smooth=False,
    )  # fmt: skip
    loss_kernel[(triton.cdiv(m, BLOCK),)](
        features,
        rows.inverse_norm,
        labels,
        order.values,
        sums,
        counts,
        logit_scale,
        *part,
        loss,
        stats,
        class_rows,
        m,
        r,
        width,
        r.bit_length(),
        SELF=square,
        BLOCK=BLOCK,
        DEPTH=DEPTH,
    )
    return loss, stats, class_rows, saved
