"""One block of a softmax whose other blocks lie in other processes: launchers over the scan and the gradient kernel.

The kernels are kernels/common/scan.py and kernels/common/gradient_kernel.py, with a batch of one and label smoothing's
fourth statistic; here their splits are merged by a few PyTorch operations on (splits, N). Why it is right: statistics
of blocks merge like those of splits, to the common maximum, in whichever process they were made.
"""

import torch
from torch import Tensor

from cmx_fast.kernels.common.arguments import check_dtype, contiguous, on_own_device
from cmx_fast.kernels.common.gradient import RowGradient, Softmax, row_gradient
from cmx_fast.kernels.common.norms import Rows
from cmx_fast.kernels.common.scan import scan

__all__ = ["softmax_block_bwd", "softmax_block_fwd"]


def _rows(x: Tensor, similarity: str) -> Rows:
    squares = None if similarity == "dot" else x.float().square().sum(1)[None]
    return Rows(x[None], None, squares)


def _exclusion(y: Tensor | None, excluded: Tensor | None) -> str:
    if y is None:
        return "column of row" if excluded is None else "column of row and itself"
    return "nothing" if excluded is None else "column of row"


def _softmax(softmax: Tensor) -> Softmax:
    top, weight, share = softmax[:, None].contiguous()
    return Softmax(top, weight, share)


def _finish(part: RowGradient, x: Tensor, similarity: str, like: Tensor) -> Tensor:
    """Gradient of x: the sum over the splits; for distances less the rows' own part, sum_j H_ij x_i."""
    if part.data is None:
        return like.new_zeros(x.shape)
    gradient = part.data.sum(0)[0]
    if similarity != "dot":
        assert part.sums is not None
        gradient -= part.sums.sum(0)[0, :, None] * x
    return gradient


@on_own_device
def softmax_block_fwd(
    x: Tensor, y: Tensor | None, logit_scale: Tensor, excluded: Tensor | None, similarity: str
) -> Tensor:
    """Statistics (4, N) float32, those of :func:`cmx_fast.ops.softmax_block.block_statistics`."""
    check_dtype(x)
    x, y, excluded = contiguous(x, y, excluded)
    statistics = logit_scale.new_zeros(4, len(x))
    if len(x) == 0 or (y is not None and len(y) == 0):
        statistics[:2] = float("-inf")
        return statistics
    rows = _rows(x, similarity)
    parts, _ = scan(
        rows, rows if y is None else _rows(y, similarity), [], None if excluded is None else excluded[None],
        logit_scale, exclude=_exclusion(y, excluded), within=False, similarity=similarity, smooth=True,
    )  # fmt: skip
    assert parts.data is not None
    maximum, total, weighted, plain = parts.data.unbind(1)
    largest = maximum.amax(0)
    factor = torch.exp(logit_scale * (maximum - torch.where(largest == float("-inf"), 0.0, largest)))
    total, weighted = (total * factor).sum(0), (weighted * factor).sum(0)
    statistics[0], statistics[1] = largest, total.log()
    statistics[2] = torch.where(total == 0, weighted, weighted / total)
    statistics[3] = plain.sum(0)
    return statistics


@on_own_device
def softmax_block_bwd(
    x: Tensor,
    y: Tensor | None,
    logit_scale: Tensor,
    excluded: Tensor | None,
    similarity: str,
    row_softmax: Tensor,
    column_softmax: Tensor | None,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor, Tensor]:
    """dx (N, D) and dy (M, D) in float32, each (0,) when not needed."""
    x, y, excluded = contiguous(x, y, excluded)
    rows, columns = _rows(x, similarity), None if y is None else _rows(y, similarity)
    softmax = _softmax(row_softmax)
    other = softmax if y is None else None if column_softmax is None else _softmax(column_softmax)
    target = None if excluded is None else excluded[None]
    dx = dy = logit_scale.new_empty(0)
    common = {"within": False, "similarity": similarity}
    empty = len(x) == 0 or (y is not None and len(y) == 0)
    if need_x:
        part, _ = (RowGradient(), None) if empty else row_gradient(
            rows, softmax, rows if columns is None else columns, other, [], target, logit_scale,
            exclude=_exclusion(y, excluded), cross_row=True, **common,
        )  # fmt: skip
        dx = _finish(part, x, similarity, logit_scale)
    if need_y:
        assert y is not None
        assert columns is not None
        part, _ = (RowGradient(), None) if empty else row_gradient(
            columns, other, rows, softmax, [], target, logit_scale,
            exclude="nothing" if excluded is None else "row of column", cross_row=other is not None, **common,
        )  # fmt: skip
        dy = _finish(part, y, similarity, logit_scale)
    return dx, dy
