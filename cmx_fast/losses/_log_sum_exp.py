"""The log-sum-exp of rows' logits against columns, with gradients of both and no logits kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmx_fast.ops.softmax_block import block_gradients, block_statistics, softmax_slopes


def log_sum_exp(rows: Tensor, columns: Tensor, logit_scale: Tensor, excluded: Tensor | None = None) -> Tensor:
    """The log-sum-exp (N,) of the logits ``logit_scale * rows @ columns.T``, in logit_scale's dtype.

    rows (N, D), columns (M, D) of one dtype; logit_scale 0-d, without gradient; excluded (N,) int64, a column that each
    row leaves out. -inf where no column is left.
    """
    return _LogSumExp.apply(rows, columns, logit_scale, excluded)


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, logit_scale: Tensor, excluded: Tensor | None
    ) -> Tensor:
        statistics = block_statistics(rows, columns, logit_scale, excluded=excluded)
        ctx.save_for_backward(rows, columns, logit_scale, excluded, statistics)
        similarity, log_sum = statistics[:2]
        return logit_scale * similarity + log_sum

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, columns, logit_scale, excluded, statistics = ctx.saved_tensors
        needs_rows, needs_columns = ctx.needs_input_grad[:2]
        softmax = softmax_slopes(statistics, grad, torch.zeros_like(grad), grad)
        drows, dcolumns = block_gradients(
            rows, columns, logit_scale, softmax, excluded=excluded, need_x=needs_rows, need_y=needs_columns
        )
        return (
            drows.to(rows.dtype) if needs_rows else None,
            dcolumns.to(columns.dtype) if needs_columns else None,
            None,
            None,
        )
