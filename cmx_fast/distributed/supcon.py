"""The supervised contrastive loss whose positives and negatives are the rows of all processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cmx_fast import ops
from cmx_fast.distributed.exchange import Exchange, chunks, own_rows, whole_batch
from cmx_fast.ops import _checks
from cmx_fast.ops.softmax_block import block_gradients, block_statistics, join, softmax_slopes
from cmx_fast.ops.supcon import check_arguments


@torch.compiler.disable
def supcon(
    features: Tensor,
    labels: Tensor,
    logit_scale: Tensor | float = _checks.DEFAULT_SCALE,
    *,
    group: dist.ProcessGroup | None = None,
    exchange: str = "ring",
    averaged: bool = True,
    ref_features: Tensor | None = None,
    ref_labels: Tensor | None = None,
    normalize: bool = False,
    reduction: str = "mean",
    impl: str = "auto",
    temperature: Tensor | float | None = None,
) -> Tensor:
    """:func:`cmx_fast.ops.supcon` of the batch that all processes hold together; labels mean the same in all of them.

    Args:
        features: (M, D), labels: (M,); M may differ between processes, and be 0. ``ref_features`` (R, D) likewise.
        group, exchange, averaged: as for :func:`cmx_fast.distributed.info_nce`. The other options are the operator's.

    Returns:
        The loss of the whole batch, the same in every process; with ``reduction="none"`` the (M,) losses of this
        process's rows.

    Raises:
        TypeError, ValueError: as the operator, and an unknown exchange. An error in one process leaves the others
            waiting, as with every collective. NotImplementedError: second derivatives.

    Memory: as the operator, and with "ring" the rows of two processes, with "gather" of all. Cost of a process: a
    product of its rows with all rows, and twice that backward (with ``ref_features`` twice more). One wait for the
    device (the lengths).
    """
    _checks.check_flags(normalize=normalize, averaged=averaged)
    features, labels, scale, ref_features, ref_labels = check_arguments(
        features, labels, logit_scale, ref_features, ref_labels, reduction, temperature
    )
    together = Exchange(group, exchange)
    if together.size == 1:
        return ops.supcon(
            features, labels, scale, ref_features=ref_features, ref_labels=ref_labels, normalize=normalize,
            reduction=reduction, impl=impl,
        )  # fmt: skip
    if normalize:
        features = F.normalize(features.to(scale.dtype), dim=1).to(features.dtype)
        if ref_features is not None:
            ref_features = F.normalize(ref_features.to(scale.dtype), dim=1).to(features.dtype)
    columns = features if ref_features is None else ref_features
    counts = together.counts(features, columns)
    of_columns = labels if ref_labels is None else ref_labels
    settings = _Settings(together, counts, labels, of_columns, impl)
    losses = _SupCon.apply(features, ref_features, scale, settings)
    if reduction == "none":
        return own_rows(losses, together, averaged)
    divisor: float | Tensor = 1
    if reduction == "mean":
        divisor = sum(count[0] for count in counts)
    elif reduction == "mean_nonzero":
        # "not <= 0" rather than "> 0": a NaN must stay visible in the mean.
        divisor = together.sum((~(losses <= 0)).sum()).clamp_min(1)
    return whole_batch(losses.sum() / divisor, together, averaged)


@dataclass(frozen=True)
class _Settings:
    exchange: Exchange
    counts: list[list[int]]
    labels: Tensor
    of_columns: Tensor
    impl: str


class _Classes:
    """Labels (n,) as indices into their distinct values."""

    def __init__(self, labels: Tensor):
        self.values, self.of_row = labels.unique(return_inverse=True)

    def find(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The indices (k,) of the labels that are among the classes, and a mask (len(labels),) bool of those labels."""
        if len(self.values) == 0:
            return labels[:0], torch.zeros_like(labels, dtype=torch.bool)
        at = torch.searchsorted(self.values, labels).clamp_max(len(self.values) - 1)
        there = self.values[at] == labels
        return at[there], there


class _Positives:
    """The numbers of positives that this process's rows have in all processes, and their only positives."""

    def __init__(self, s: _Settings, itself: bool):
        self.classes = _Classes(s.labels)
        count = torch.zeros_like(self.classes.values)
        owner, place = torch.zeros_like(count), torch.zeros_like(count)
        # Labels are small beside rows: they go round first, and tell the columns to leave out of the softmax.
        for rank, theirs in s.exchange.rounds({1: s.of_columns}, s.counts):
            at, there = self.classes.find(theirs[1])
            count.index_add_(0, at, torch.ones_like(at))
            owner.index_add_(0, at, torch.full_like(at, rank))
            place.index_add_(0, at, there.nonzero().flatten())
        of_row = self.classes.of_row
        self.count = count[of_row] - int(itself)
        self.single = self.count == 1
        # The sums over a class less the row itself are its other row's, where there is one other.
        here = torch.arange(len(of_row), device=of_row.device)
        self.process = torch.where(self.single, owner[of_row] - s.exchange.rank * int(itself), -1)
        self.column = torch.where(self.single, place[of_row] - here * int(itself), -1)

    def excluded(self, rank: int) -> Tensor:
        """The column of a process that is each row's only positive, else -1: (M,)."""
        return torch.where(self.process == rank, self.column, -1)


class _SupCon(torch.autograd.Function):
    """The losses (M,) of this process's rows. An only positive stays out of the softmax, as in the operator."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, ref_features: Tensor | None, scale: Tensor, s: _Settings
    ) -> Tensor:
        itself = ref_features is None
        positives = _Positives(s, itself)
        x = features.detach()
        columns = x if ref_features is None else ref_features.detach()
        blocks = []
        sums = x.new_zeros(len(positives.classes.values), x.shape[1], dtype=torch.float64)
        for rank, theirs in s.exchange.rounds({0: columns, 1: s.of_columns}, [[n[1]] * 2 for n in s.counts]):
            other = None if itself and rank == s.exchange.rank else theirs[0]
            blocks.append(block_statistics(x, other, scale, excluded=positives.excluded(rank), impl=s.impl))
            _add_to_classes(sums, positives.classes, theirs[1], theirs[0])
        statistics = join(torch.stack(blocks), scale)
        top, log_sum, mean, _ = statistics
        toward, of_positives = scale.new_empty(x.shape), torch.empty_like(mean)
        for rows in chunks(x):
            own = x[rows].double()
            towards = sums[positives.classes.of_row[rows]] - int(itself) * own
            of_positives[rows] = (own * towards).sum(1) / positives.count[rows].clamp_min(1)
            toward[rows] = towards.to(toward.dtype)
        difference = scale * (top - of_positives) + log_sum
        losses = torch.where(positives.single, F.softplus(difference), difference)
        # 0 times an infinity is NaN: it stays visible where the exponential swallowed it, or without a positive.
        losses = torch.where(positives.count > 0, losses, 0.0) + 0 * (mean + of_positives)
        ctx.settings, ctx.positives = s, positives
        ctx.save_for_backward(features, ref_features, scale, statistics, toward, of_positives)
        return losses.to(scale.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        s: _Settings = ctx.settings
        positives: _Positives = ctx.positives
        features, ref_features, scale, statistics, toward, of_positives = ctx.saved_tensors
        top, log_sum, mean, _ = statistics
        itself = ref_features is None
        need_x, need_ref = ctx.needs_input_grad[:2]
        weight = torch.where(positives.count > 0, grad.double(), 0.0)
        share = torch.sigmoid(scale * (top - of_positives) + log_sum)
        weight = torch.where(positives.single, weight * share, weight)
        pull = weight / positives.count.clamp_min(1)
        dscale = (weight * (mean - of_positives)).sum()

        x = features.detach()
        softmax = softmax_slopes(statistics, weight, torch.zeros_like(weight), scale).T.contiguous()
        dx = scale.new_zeros(x.shape) if need_x else None
        dref = scale.new_zeros(ref_features.shape) if need_ref else None
        columns = x if itself else ref_features.detach()
        of_column = _Classes(s.of_columns)
        pulled = x.new_zeros(len(of_column.values), x.shape[1], dtype=torch.float64)
        travelling = {} if itself or not need_x else {0: columns}
        if itself or need_ref:
            travelling |= {1: x, 2: softmax, 3: pull, 4: s.labels}
        if need_ref:
            travelling |= {5: positives.process, 6: positives.column}
        tables = [[n[1], *[n[0]] * 6] for n in s.counts]
        for rank, theirs in s.exchange.rounds(travelling, tables):
            own = rank == s.exchange.rank
            if dx is not None:
                other = None if itself and own else theirs[1 if itself else 0]
                of_other = theirs[2].T if itself and not own else None
                dx += block_gradients(
                    x, other, scale, softmax.T, of_other, excluded=positives.excluded(rank), impl=s.impl
                )[0]
            if 4 in theirs:
                _add_to_classes(pulled, of_column, theirs[4], theirs[1], theirs[3])
            if dref is not None:
                left_out = torch.where(theirs[5] == s.exchange.rank, theirs[6], -1)
                dref += block_gradients(
                    theirs[1], columns, scale, theirs[2].T, excluded=left_out, need_x=False, need_y=True, impl=s.impl
                )[1]  # fmt: skip
        if dx is not None:
            for rows in chunks(x):
                away = pull[rows, None] * toward[rows]
                if itself:
                    away = away + pulled[of_column.of_row[rows]] - pull[rows, None] * x[rows].double()
                dx[rows] -= scale * away
            dx = dx.to(x.dtype)
        if dref is not None:
            for rows in chunks(columns):
                dref[rows] -= scale * pulled[of_column.of_row[rows]]
            dref = dref.to(ref_features.dtype)
        return dx, dref, dscale.to(scale.dtype), None


def _add_to_classes(
    sums: Tensor, classes: _Classes, labels: Tensor, x: Tensor, weight: Tensor | None = None
) -> None:
    """Add rows (n, D), weighted, to the float64 sums of those of the classes that their labels name."""
    for rows in chunks(x):
        at, there = classes.find(labels[rows])
        part = x[rows][there].double()
        sums.index_add_(0, at, part if weight is None else weight[rows][there, None] * part)
