"""Sums of vectors by their label for any number of labels: sorted, then added in segments of fixed length.

Algorithm: PyTorch sorts the labels; each label's run of sorted positions is cut into segments of SEGMENT vectors. Tile
and owner: a program owns one segment and DEPTH features, reads its vectors BLOCK at a time through the sorted order and
writes one (DEPTH,) row; a second kernel's program owns one label and DEPTH features and adds the label's segments.

How many segments a label has is not known on the host: there are programs for as many as there can be (N // SEGMENT +
min(K, N)), each finds its label and segment by binary search, and those left over return. Why it is right: the sort is
stable, so a label's vectors are added in the order of the data, at most SEGMENT of them in float32 and the segments in
float64; no atomics, so the same bits every time. Memory: a float32 row per segment.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.grids import ceil_div

SEGMENT = 1024  # vectors that one program adds
BLOCK = 32
DEPTH = 128


@triton.jit
def first_not_below(sorted_ptr, n, steps, value):
    """Position of the first of n sorted numbers not below ``value``, n if there is none; ``steps`` = n.bit_length()."""
    low = tl.zeros_like(value)
    high = low + n
    for _ in range(0, steps):
        middle = (low + high) // 2
        searching = low < high
        below = tl.load(sorted_ptr + middle, mask=searching, other=0) < value
        low = tl.where(searching & below, middle + 1, low)
        high = tl.where(searching & (below == 0), middle, high)
    return low


@triton.jit
def kmeans_segment_sum_kernel(
    x_ptr,  # (B, P, D)
    order_ptr,  # (N,) positions sorted by label
    weight_ptr,  # (N,) or None
    scale_ptr,  # (N,) or None
    first_ptr,  # (K,) place of a label's first vector among the sorted ones
    count_ptr,  # (K,)
    last_segment_ptr,  # (K,) segments of the labels up to this one, inclusive
    sum_ptr,  # (segments, D)
    P,
    K,
    D,
    chunks,
    steps,
    stride_b,
    stride_p,
    stride_d,
    SEGMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    segment = (tl.program_id(0) // chunks).to(tl.int64)
    d = tl.program_id(0) % chunks * DEPTH + tl.arange(0, DEPTH)
    # The first label whose last segment lies beyond this one.
    label = first_not_below(last_segment_ptr, K, steps, segment + 1)
    if label < K:
        before = tl.load(last_segment_ptr + label - 1, mask=label > 0, other=0)
        begin = (segment - before) * SEGMENT
        length = tl.minimum(tl.load(count_ptr + label) - begin, SEGMENT)
        start = tl.load(first_ptr + label) + begin
        total = tl.zeros((DEPTH,), tl.float32)
        for i0 in range(0, length, BLOCK):
            i = i0 + tl.arange(0, BLOCK)
            inside = i < length
            # (BLOCK,)
            p = tl.load(order_ptr + start + i, mask=inside, other=0)
            place = p // P * stride_b + p % P * stride_p
            mask = inside[:, None] & (d < D)[None, :]
            # (BLOCK, DEPTH)
            x = tl.load(x_ptr + place[:, None] + d.to(tl.int64)[None, :] * stride_d, mask=mask, other=0.0)
            x = x.to(tl.float32)
            if scale_ptr is not None:
                x *= tl.load(scale_ptr + p, mask=inside, other=0.0)[:, None]
            if weight_ptr is not None:
                x *= tl.load(weight_ptr + p, mask=inside, other=0.0)[:, None]
            total += tl.sum(x, 0)
        # (DEPTH,)
        tl.store(sum_ptr + segment * D + d, total, mask=d < D)


@triton.jit
def kmeans_add_segments_kernel(
    sum_ptr, last_segment_ptr, out_ptr, D, chunks, BLOCK: tl.constexpr, DEPTH: tl.constexpr
):
    label = (tl.program_id(0) // chunks).to(tl.int64)
    d = tl.program_id(0) % chunks * DEPTH + tl.arange(0, DEPTH)
    begin = tl.load(last_segment_ptr + label - 1, mask=label > 0, other=0)
    end = tl.load(last_segment_ptr + label)
    total = tl.zeros((DEPTH,), tl.float64)
    for segment0 in range(begin, end, BLOCK):
        segment = segment0 + tl.arange(0, BLOCK)
        mask = (segment < end)[:, None] & (d < D)[None, :]
        # (BLOCK, DEPTH)
        part = tl.load(sum_ptr + segment[:, None] * D + d[None, :], mask=mask, other=0.0)
        total += tl.sum(part.to(tl.float64), 0)
    # (DEPTH,)
    tl.store(out_ptr + label * D + d, total.to(tl.float32), mask=d < D)


def sums_of_sorted(
    x: Tensor, labels: Tensor, weight: Tensor | None, scale: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    """Sums (K, D) float32 of ``scale * weight * x`` by label, and counts (K,), int64 or float64 sums of weights.

    Args:
        x: (B, P, D); labels, weight: (B, P); scale: (B * P,); weight and scale may be None.

    Segments are added in float32, their sums in float64, both in sorted order. Nothing waits for the device. Cost: a
    sort of the labels and one read of x, in 128-feature pieces.
    """
    n, width = labels.numel(), x.shape[2]
    if x.stride(2) != 1:
        # A vector whose features lie apart costs a whole memory transaction for each of them.
        x = x.contiguous()
    flat = labels.flatten()
    values, order = torch.sort(flat, stable=True)
    bounds = torch.searchsorted(values, torch.arange(k + 1, device=x.device))
    first, count = bounds[:-1], bounds.diff()
    last_segment = ((count + SEGMENT - 1) // SEGMENT).cumsum(0)
    chunks = ceil_div(width, DEPTH)
    segments = n // SEGMENT + min(k, n)
    partial = x.new_empty(max(segments, 1), width, dtype=torch.float32)
    sums = x.new_empty(k, width, dtype=torch.float32)
    if n:
        kmeans_segment_sum_kernel[(segments * chunks,)](
            x, order, None if weight is None else weight.flatten(), scale, first.contiguous(), count, last_segment,
            partial, x.shape[1], k, width, chunks, k.bit_length(), *x.stride(),
            SEGMENT=SEGMENT, BLOCK=BLOCK, DEPTH=DEPTH,
        )  # fmt: skip
    kmeans_add_segments_kernel[(k * chunks,)](
        partial, last_segment, sums, width, chunks, BLOCK=BLOCK, DEPTH=DEPTH
    )
    if weight is None:
        return sums, count
    # A cumulative sum differs at a label's bounds by its weight, in a fixed order.
    weights = torch.cat([weight.new_zeros(1).double(), weight.flatten()[order].double().cumsum(0)])
    return sums, weights[bounds].diff()
