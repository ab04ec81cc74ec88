"""Sums of feature rows per class in O(M D), deterministic and without a host synchronisation.

The number of classes is unknown on the host, so nothing may be sized by it: the labels are sorted, and a class is
identified by the position of its first member in sorted order. Its sum is written at that position of an (M, D)
buffer, of which the other rows stay unwritten. One program adds a class in sorted order (a stable sort, hence always
the same order).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Below, counting the smaller labels of each row (M^2 comparisons of integers) costs less than the several launches of
# torch.sort, and keeps small problems within few launches.
LARGEST_RANKED = 4096
RANKED_PER_PROGRAM = 16
CLASS_DEPTH = 128


class SortedLabels(NamedTuple):
    """``labels[order] == values``; ``programs`` of :func:`rank_labels` are still to write both (0: they are there)."""

    values: Tensor
    order: Tensor
    programs: int


def sort_labels(labels: Tensor) -> SortedLabels:
    """Sorted labels, or buffers and the number of programs that will fill them."""
    if len(labels) > LARGEST_RANKED:
        return SortedLabels(*torch.sort(labels, stable=True), 0)
    return SortedLabels(
        torch.empty_like(labels), torch.empty_like(labels), triton.cdiv(len(labels), RANKED_PER_PROGRAM)
    )


@triton.jit
def rank_labels(pid, labels_ptr, sorted_ptr, order_ptr, n, BLOCK: tl.constexpr):
    """Program ``pid`` of a stable sort by counting: a row's place is the number of rows that come before it."""
    SEARCH: tl.constexpr = 128
    i = pid * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    own = tl.load(labels_ptr + i, mask=inside, other=0)
    rank = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, n, SEARCH):
        j = first + tl.arange(0, SEARCH)
        other = tl.load(labels_ptr + j, mask=j < n, other=0)
        before = (other[None, :] < own[:, None]) | (
            (other[None, :] == own[:, None]) & (j[None, :] < i[:, None])
        )
        rank += tl.sum((before & (j < n)[None, :]).to(tl.int32), 1)
    tl.store(sorted_ptr + rank, own, mask=inside)
    tl.store(order_ptr + rank, i.to(tl.int64), mask=inside)


@triton.jit
def find_class(sorted_ptr, n, steps, label, inside):
    """First position of each label among the sorted ones, and whether it occurs; ``steps`` = n.bit_length()."""
    low = tl.zeros_like(label)
    high = low + n
    for _ in range(0, steps):
        middle = (low + high) // 2
        searching = low < high
        smaller = tl.load(sorted_ptr + middle, mask=searching & inside, other=0) < label
        low = tl.where(searching & smaller, middle + 1, low)
        high = tl.where(searching & (smaller == 0), middle, high)
    found = inside & (low < n)
    found = found & (tl.load(sorted_ptr + low, mask=found, other=0) == label)
    return low, found


@triton.jit
def class_sum_kernel(
    x_ptr,  # (n, D)
    inverse_ptr,  # (n,) inverse norms or None
    weight_ptr,  # (n,) float32 or None
    sorted_ptr,
    order_ptr,
    sum_ptr,  # (n, D) float32
    count_ptr,  # (n,) float32 or None
    n,
    D,
    n_chunks,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    first = (tl.program_id(0) // n_chunks).to(tl.int64)
    d = tl.program_id(0) % n_chunks * DEPTH + tl.arange(0, DEPTH)
    label = tl.load(sorted_ptr + first)
    previous = tl.load(sorted_ptr + first - 1, mask=first > 0, other=0)
    if (first == 0) | (previous != label):
        acc = tl.zeros((BLOCK, DEPTH), tl.float32)
        stop = first
        more = True
        while more:
            position = stop + tl.arange(0, BLOCK)
            same = tl.load(sorted_ptr + position, mask=position < n, other=0) == label
            same = same & (position < n)
            row = tl.load(order_ptr + position, mask=same, other=0)
            mask = same[:, None] & (d < D)[None, :]
            x = tl.load(x_ptr + row[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
            if inverse_ptr is not None:
                x *= tl.load(inverse_ptr + row, mask=same, other=0.0)[:, None]
            if weight_ptr is not None:
                x *= tl.load(weight_ptr + row, mask=same, other=0.0)[:, None]
            acc += x
            members = tl.sum(same.to(tl.int32))
            stop += members
            more = members == BLOCK
        tl.store(sum_ptr + first * D + d, tl.sum(acc, 0), mask=d < D)
        if count_ptr is not None:
            tl.store(count_ptr + first, (stop - first).to(tl.float32))


def class_sums(
    x: Tensor, inverse_norm: Tensor | None, weight: Tensor | None, labels: SortedLabels, count: Tensor | None
) -> Tensor:
    """Sums of ``weight * x`` per class as (n, D) float32, and the member counts; rows normalised by inverse norms.

    Both are written at the first sorted position of each class only. One launch.
    """
    n, width = x.shape
    sums = x.new_empty(n, width, dtype=torch.float32)
    if n:
        chunks = triton.cdiv(width, CLASS_DEPTH)
        class_sum_kernel[(n * chunks,)](
            x, inverse_norm, weight, labels.values, labels.order, sums, count, n, width, chunks,
            BLOCK=16, DEPTH=CLASS_DEPTH,
        )  # fmt: skip
    return sums
