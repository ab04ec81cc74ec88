"""Exact Hungarian matching of a batch of cost matrices, on the CPU's threads."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cmx_fast import reference

HAS_SOLVER = importlib.util.find_spec("cmx_fast._host") is not None


def linear_assignment(cost: Tensor, *, maximize: bool = False) -> tuple[Tensor, Tensor]:
    r"""Pairs of rows and columns at the least total cost, for every matrix of a batch.

    .. math:: \min_\pi \sum_i \mathrm{cost}_{i \pi(i)}

    over one-to-one assignments: of every row where there are at most as many rows as columns, else of every column.
    Exact, in float64, by shortest augmenting paths; among equal totals any assignment. C2L matches the parts of two
    views by it, and evaluation clusters to classes.

    Args:
        cost: (R, C) or (B, R, C), any floating or integer dtype, any device. +inf forbids a pair.
        maximize: find the largest total instead; then -inf forbids. Default no.

    Returns:
        rows, columns: int64 (min(R, C),) or (B, min(R, C)) on the device of ``cost``, in the order of the rows, as
        ``scipy.optimize.linear_sum_assignment`` gives them.

    Raises:
        TypeError, ValueError: not a tensor or not of that shape; a cost that is NaN or -inf (with ``maximize`` +inf);
            a matrix whose every assignment holds a forbidden pair.

    Cost: O(min(R, C)^2 max(R, C)) per matrix at worst, matrices in parallel on PyTorch's number of threads and without
    the interpreter's lock. A GPU's costs come to the host once for the whole batch, which waits for them.

    Example:
        >>> import torch
        >>> from cmx_fast.ops import linear_assignment
        >>> rows, columns = linear_assignment(torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0]]))
        >>> rows.tolist(), columns.tolist()
        ([0, 1], [2, 1])
    """
    if not isinstance(cost, Tensor):
        raise TypeError(f"cost must be a tensor of shape (R, C) or (B, R, C), got {type(cost).__name__}")
    if cost.dim() not in (2, 3):
        raise ValueError(f"cost must have shape (R, C) or (B, R, C), got {tuple(cost.shape)}")
    if cost.is_complex() or cost.dtype == torch.bool:
        raise TypeError(f"cost must be real numbers, got {cost.dtype}")
    costs = cost.detach().to("cpu", torch.float64)
    costs = -costs if maximize else costs
    costs = costs if cost.dim() == 3 else costs[None]
    invalid = (~(costs > -torch.inf)).flatten(1).any(1).nonzero().flatten().tolist()
    if invalid:
        raise ValueError(
            f"cost is NaN or {'+' if maximize else '-'}inf in {len(invalid)} of {len(costs)} matrices; "
            f"the first are {invalid[:10]}"
        )
    rows, columns, solved = _solver()(costs.contiguous().numpy())
    if not solved.all():
        unsolved = np.flatnonzero(~solved).tolist()
        raise ValueError(
            f"{len(unsolved)} of {len(costs)} cost matrices leave no assignment without a forbidden pair; "
            f"the first are {unsolved[:10]}"
        )
    paired = torch.from_numpy(rows).to(cost.device), torch.from_numpy(columns).to(cost.device)
    return paired if cost.dim() == 3 else (paired[0][0], paired[1][0])


def _solver() -> Callable:
    if not HAS_SOLVER:
        return reference.linear_assignment
    from cmx_fast import _host

    return lambda costs: _host.linear_assignment(costs, torch.get_num_threads())
