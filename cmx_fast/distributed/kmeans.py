"""A k-means step over the rows of all processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from cmx_fast import ops
from cmx_fast.distributed.exchange import Exchange


@torch.compiler.disable
def kmeans_step(
    x: Tensor,
    centroids: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    weight: Tensor | None = None,
    metric: str = "l2",
    normalize: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`cmx_fast.ops.kmeans_step` of the rows that all processes hold together.

    Args:
        x: this process's rows or maps; their number may differ between processes, and be 0.
        centroids: (K, D), the same in all processes; those made of the last step's results are, bit for bit.
        group: the process group, by default the default one. Without a group the result is the operator's. The other
            options are the operator's.

    Returns:
        The labels of this process's rows; sums, counts and inertia of all, the same in every process. They are
        float32's and int64's sums of the processes' own: K (D + 1) + 1 numbers travel, in one message each.

    Raises:
        TypeError, ValueError: as the operator.
    """
    together = Exchange(group, "gather")
    labels, *totals = ops.kmeans_step(
        x, centroids, weight=weight, metric=metric, normalize=normalize, impl=impl
    )
    sums, counts, inertia = (together.sum(total) for total in totals)
    return labels, sums, counts, inertia


class RowsOfAll:
    """The processes of a group, by which :class:`cmx_fast.cluster.PiCIEClustering` clusters the rows of all together.

    Args:
        group: the process group, by default the default one.

    Attributes:
        rank, size: this process's number in the group, and the group's size.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self._group, self._exchange = group, Exchange(group, "gather")
        self.rank, self.size = self._exchange.rank, self._exchange.size

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, a new tensor without gradient."""
        return self._exchange.sum(tensor)

    def kmeans_step(self, x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """:func:`kmeans_step` of the unit rows."""
        return kmeans_step(x, centroids, group=self._group, normalize=True)
