"""Backward pass of SupCon.

With weights w_i (the incoming gradient, 0 without positives) and the log-sum-exps L, a row of a square problem needs

    sum_j [w_i exp(z_ij - L_i) + w_j exp(z_ij - L_j)] x_j  =  ((G + G^T) X)_i

which is one matrix kernel because the similarity is symmetric. The positives' share is, with a_i = scale w_i / |P(i)|,

    -a_i sum_{p in P(i)} x_p - sum_{i' in P(i)} a_i' x_i'

the row that the forward pass saved and a weighted class sum. Square: four launches; with references: five.
"""

import torch
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
from cmx_fast.kernels.common.gradient import RowGradient, Softmax, row_gradient
from cmx_fast.kernels.common.norms import (
    DEPTH,
    ROWS_PER_PROGRAM,
    allocate_rows,
    finish_tile,
    inverse_norm,
    measure_rows,
    norm_arguments,
    norm_programs,
    through_normalization,
)
from torch import Tensor

BLOCK = 16  # rows of one program of the weights


@triton.jit
def weights_kernel(
    grad_loss_ptr,
    x_ptr,  # (M, D)
    labels_ptr,
    scale_ptr,
    stats_ptr,  # (3, M)
    class_rows_ptr,  # (M, D)
    weight_ptr,  # out, (M,): of the softmax
    positive_ptr,  # out: of the positives
    dscale_part_ptr,  # out, one per program
    sorted_ptr,  # out, (M,)
    order_ptr,  # out
    matrices,
    inverses,
    squared,
    counts,
    M,
    D,
    rank_programs,
    NORMALIZE: tl.constexpr,
    N_MATRICES: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
    RANKED: tl.constexpr,
):
    pid = tl.program_id(0)
    weight_programs = tl.cdiv(M, BLOCK)
    if pid < weight_programs:
        i = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = i < M
        positive = tl.zeros((BLOCK,), tl.float32)
        squares = tl.zeros((BLOCK,), tl.float32)
        for d0 in range(0, D, DEPTH):
            d = d0 + tl.arange(0, DEPTH)
            mask = inside[:, None] & (d < D)[None, :]
            x = tl.load(x_ptr + i[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
            rows = tl.load(class_rows_ptr + i[:, None] * D + d[None, :], mask=mask, other=0.0)
            positive += tl.sum(x * rows, 1)
            squares += tl.sum(x * x, 1)
        if NORMALIZE:
            positive *= inverse_norm(squares)
        scale = tl.load(scale_ptr)
        count = tl.load(stats_ptr + 2 * tl.cast(M, tl.int64) + i, mask=inside, other=0.0)
        g = tl.load(grad_loss_ptr + i, mask=inside, other=0.0)
        g = tl.where(count > 0, g, 0.0)
        g = tl.where(scale > 0, g, float("nan"))
        share = g / tl.maximum(count, 1.0)
        tl.store(weight_ptr + i, g, mask=inside)
        tl.store(positive_ptr + i, scale * share, mask=inside)
        dscale = g * tl.load(stats_ptr + M + i, mask=inside, other=0.0) - share * positive
        tl.store(dscale_part_ptr + pid, tl.sum(tl.where(inside, dscale, 0.0)))
    pid -= weight_programs
    if (pid >= 0) & (pid < rank_programs):
        rank_labels(pid, labels_ptr, sorted_ptr, order_ptr, M, RANKED)
    measure_rows(pid - rank_programs, matrices, inverses, squared, counts, D, N_MATRICES, ROWS, DEPTH)


@triton.jit
def finish_rows(
    pid,
    x_ptr,  # (n, D): the rows whose gradient is finished
    labels_ptr,  # (n,)
    class_rows_ptr,  # (n, D), or None for references
    positive_ptr,  # (n,)
    sorted_ptr,  # (M,): of the features
    sum_ptr,  # (M, D): weighted class sums of the features, or None
    part_ptr,  # (slots, n, D)
    slots,
    out_ptr,
    n,
    M,
    D,
    steps,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    rows = pid.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)
    inside = rows < n
    mask = inside[:, None] & (d < D)[None, :]
    where = rows[:, None] * D + d[None, :]
    x = tl.load(x_ptr + where, mask=mask, other=0.0).to(tl.float32)
    if NORMALIZE:
        squares = tl.sum(x * x, 1)
        scale = inverse_norm(squares)
        x *= scale[:, None]
    gradient = tl.zeros((ROWS, WIDTH), tl.float32)
    if part_ptr is not None:
        for slot in range(0, slots):
            gradient += tl.load(part_ptr + tl.cast(slot, tl.int64) * n * D + where, mask=mask, other=0.0)
    if class_rows_ptr is not None:
        factor = tl.load(positive_ptr + rows, mask=inside, other=0.0)
        gradient -= factor[:, None] * tl.load(class_rows_ptr + where, mask=mask, other=0.0)
    if sum_ptr is not None:
        first, found = find_class(
            sorted_ptr, M, steps, tl.load(labels_ptr + rows, mask=inside, other=0), inside
        )
        total = tl.load(sum_ptr + first[:, None] * D + d[None, :], mask=mask & found[:, None], other=0.0)
        if class_rows_ptr is not None:
            # A row is not its own positive.
            total -= factor[:, None] * x
        gradient -= total
    if NORMALIZE:
        gradient = through_normalization(gradient, x, squares, scale)
    tl.store(out_ptr + where, gradient.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def finish_kernel(
    x_ptr,
    labels_ptr,
    ref_ptr,
    ref_labels_ptr,
    class_rows_ptr,
    positive_ptr,
    sorted_ptr,
    sum_ptr,
    part_ptr,
    slots,
    ref_part_ptr,
    ref_slots,
    dx_ptr,
    dref_ptr,
    dscale_part_ptr,
    dscale_ptr,
    n_dscale_parts,
    M,
    R,
    D,
    steps,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SEARCH: tl.constexpr,
):
    pid = tl.program_id(0)
    if pid == 0:
        total = tl.zeros((SEARCH,), tl.float32)
        for first in range(0, n_dscale_parts, SEARCH):
            index = first + tl.arange(0, SEARCH)
            total += tl.load(dscale_part_ptr + index, mask=index < n_dscale_parts, other=0.0)
        tl.store(dscale_ptr, tl.sum(total))
    row_programs = 0
    if dx_ptr is not None:
        row_programs += tl.cdiv(M, ROWS)
        if pid < row_programs:
            finish_rows(
                pid, x_ptr, labels_ptr, class_rows_ptr, positive_ptr, sorted_ptr, sum_ptr if ref_ptr is None else None,
                part_ptr, slots, dx_ptr, M, M, D, steps, NORMALIZE, ROWS, WIDTH,
            )  # fmt: skip
    if dref_ptr is not None:  # noqa: SIM102 - the first condition is one of compilation
        if pid >= row_programs:
            finish_rows(
                pid - row_programs, ref_ptr, ref_labels_ptr, None, positive_ptr, sorted_ptr, sum_ptr, ref_part_ptr,
                ref_slots, dref_ptr, R, M, D, steps, NORMALIZE, ROWS, WIDTH,
            )  # fmt: skip


@on_own_device
def supcon_bwd(
    grad_loss: Tensor,
    features: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    ref_features: Tensor | None,
    ref_labels: Tensor | None,
    normalize: bool,
    stats: Tensor,
    class_rows: Tensor,
    saved: Tensor,
    need_features: bool,
    need_ref: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``sum(grad_loss * loss)`` of :func:`supcon_fwd`.

    The operator ``cmx_fast::supcon_bwd`` for CUDA; ``saved`` is accepted and ignored.

    Args:
        grad_loss: (M,) float32. features, labels, logit_scale, references and ``normalize``: as in the forward pass.
        stats, class_rows: what the forward pass returned.

    Returns:
        dfeatures and dref in the features' dtype, each (0,) when not needed, and the 0-d float32 dscale.

    Memory: the gradients in float32, times the number of column splits where few rows would leave the chip idle.
    Cost: two M x R x D products per needed side; for bfloat16 one more, of the bits that G loses in bfloat16: the
    positives are part of the softmax here and cancel against their class sums.
    """
    check_dtype(features)
    grad_loss, features, labels, ref_features, ref_labels, stats, class_rows = contiguous(
        grad_loss, features, labels, ref_features, ref_labels, stats, class_rows
    )
    m, width = features.shape
    square = ref_features is None
    r = m if square else len(ref_features)
    need_ref = need_ref and not square
    dfeatures = torch.empty_like(features) if need_features else features.new_empty(0)
    dref = torch.empty_like(ref_features) if need_ref else features.new_empty(0)
    dscale = torch.empty_like(logit_scale)
    if m == 0:
        return dfeatures.zero_(), dref.zero_(), dscale.zero_()
    rows = allocate_rows(features[None], normalize, False)
    columns = [] if square else [allocate_rows(ref_features, normalize, False)]
    weight, positive = logit_scale.new_empty(2, m).unbind()
    order = sort_labels(labels)
    weight_programs = triton.cdiv(m, BLOCK)
    dscale_part = logit_scale.new_empty(weight_programs)
    measured = norm_arguments([rows, *columns])
    weights_kernel[(weight_programs + order.programs + norm_programs(measured[-1]),)](
        grad_loss,
        features,
        labels,
        logit_scale,
        stats,
        class_rows,
        weight,
        positive,
        dscale_part,
        order.values,
        order.order,
        *measured,
        m,
        width,
        order.programs,
        NORMALIZE=normalize,
        N_MATRICES=len(measured[-1]),
        ROWS=ROWS_PER_PROGRAM,
        DEPTH=DEPTH,
        BLOCK=BLOCK,
        RANKED=RANKED_PER_PROGRAM,
    )
    sums = None
    if need_ref or (need_features and square):
        sums = class_sums(features, rows.inverse_norm, positive, order, None)
    softmax = Softmax(stats[:1], weight[None])
    part = ref_part = RowGradient()
    if need_features:
        part, _ = row_gradient(
            rows, softmax, None, None, columns, None, logit_scale,
            exclude="nothing", cross_row=False, within=square, similarity="dot", split_gradient=True,
        )  # fmt: skip
    if need_ref:
        references = columns[0]._replace(data=ref_features[None])
        ref_part, _ = row_gradient(
            references, None, rows, softmax, [], None, logit_scale,
            exclude="nothing", cross_row=False, within=False, similarity="dot", split_gradient=True,
        )  # fmt: skip
    rows_per_program, padded = finish_tile(width)
    programs = (triton.cdiv(m, rows_per_program) if need_features else 0) + (
        triton.cdiv(r, rows_per_program) if need_ref else 0
    )
    finish_kernel[(max(1, programs),)](
        features,
        labels,
        ref_features,
        ref_labels,
        class_rows,
        positive,
        order.values,
        sums,
        part.data,
        part.splits,
        ref_part.data,
        ref_part.splits,
        dfeatures if need_features else None,
        dref if need_ref else None,
        dscale_part,
        dscale,
        weight_programs,
        m,
        r,
        width,
        m.bit_length(),
        NORMALIZE=normalize,
        ROWS=rows_per_program,
        WIDTH=padded,
        SEARCH=1024,
    )
    return dfeatures, dref, dscale
