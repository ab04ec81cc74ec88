"""Losses with pytorch-metric-learning's interface and names; its package is not needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.losses._checks import temperature_of
from cmx_fast.losses._masked import masked_losses, reduce_losses
from cmx_fast.ops import supcon
from cmx_fast.ops._checks import readable

TEMPERATURE = 0.1


class SupConLoss(nn.Module):
    """pytorch-metric-learning's ``SupConLoss``, without matrices of batch x batch where labels say the pairs.

    Khosla et al. 2020, eq. 2, on rows divided by their norm, averaged over the anchors whose loss is above 0. 0 where
    there is no positive pair or no negative pair. Its wrappers ``CrossBatchMemory`` and ``SelfSupervisedLoss`` take it.

    Args:
        temperature: the similarities are divided by it. Default 0.1: pytorch-metric-learning's.
        distance: a pytorch-metric-learning distance in place of the cosine, ``distance(embeddings, ref_emb)``; with
            ``is_inverted`` false the logits are its negative.
        reducer: a pytorch-metric-learning reducer in place of the mean over the anchors above 0.
        logit_scale: 1 / temperature, in its place. Ours.

    Call:
        ``loss(embeddings, labels=None, indices_tuple=None, ref_emb=None, ref_labels=None)`` with embeddings (N, D),
        labels (N,) integers, and ref_emb (R, D) with ref_labels (R,): the columns, in place of the other embeddings.
        indices_tuple: a miner's (anchors, positives, negatives), or (anchors, positives, anchors, negatives), rows of
        embeddings and of ref_emb; then labels may be missing. Pairs that it leaves out are no candidates.

        A miner's pairs and a distance take the dense formula, with memory for several N x R matrices; so do
        ref_labels that are the very tensor ``labels``, whose pairs (i, i) pytorch-metric-learning leaves out.

    Differences from pytorch-metric-learning: the temperature must be positive, a NaN shows in the mean, labels must
    be integers, and there are no ``embedding_regularizer``, ``collect_stats`` and their recorded attributes.

    Returns:
        A 0-d tensor in the embeddings' dtype, float32 under autocast.

    Raises:
        TypeError, ValueError: neither labels nor indices_tuple, shapes that don't fit, what
            :func:`cmx_fast.ops.supcon` refuses; on the CPU indices out of range and a pair that is both positive and
            negative, which give NaN on a GPU.

    Example:
        >>> import torch
        >>> from cmx_fast.losses.metric_learning import SupConLoss
        >>> embeddings = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
        >>> SupConLoss(temperature=0.1)(embeddings, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])).shape
        torch.Size([])
    """

    def __init__(
        self,
        temperature: float = TEMPERATURE,
        *,
        distance: Callable[[Tensor, Tensor], Tensor] | None = None,
        reducer: Callable[..., Tensor] | None = None,
        logit_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.temperature = temperature_of(temperature, logit_scale, TEMPERATURE)
        self.distance = distance
        self.reducer = reducer

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        if embeddings.dim() != 2:
            raise ValueError(f"embeddings must have shape (N, D), got {tuple(embeddings.shape)}")
        if ref_emb is None and ref_labels is not None:
            raise ValueError("ref_labels were given without ref_emb, their rows")
        columns = embeddings if ref_emb is None else ref_emb
        one = ref_emb is None or ref_labels is labels
        labels, column_labels = (
            _checked("labels", labels, embeddings),
            _checked("ref_labels", ref_labels, columns),
        )
        # The identity of the tensor is kept: pairs (i, i) depend on it.
        column_labels = labels if one else column_labels
        losses = self._losses(embeddings, columns, labels, column_labels, indices_tuple)
        if self.reducer is not None:
            indices = torch.arange(len(losses), device=losses.device)
            terms = {"loss": {"losses": losses, "indices": indices, "reduction_type": "element"}}
            return self.reducer(terms, embeddings, labels)
        loss = reduce_losses(losses, "mean_nonzero")
        return loss if torch.is_autocast_enabled(loss.device.type) else loss.to(embeddings.dtype)

    def _losses(
        self,
        embeddings: Tensor,
        columns: Tensor,
        labels: Tensor | None,
        column_labels: Tensor | None,
        indices_tuple: Sequence[Tensor] | None,
    ) -> Tensor:
        """One loss per anchor, (N,); 0 for all without a positive or without a negative pair."""
        if indices_tuple is not None:
            positive, negative, valid = _mined(
                indices_tuple, len(embeddings), len(columns), embeddings.device
            )
            # pytorch-metric-learning takes a single pair of each kind for none.
            few = all(len(index) <= 1 for index in indices_tuple)
        elif labels is None or column_labels is None:
            raise ValueError("labels (with ref_emb also ref_labels) or indices_tuple must be given")
        else:
            few = len(embeddings) * len(columns) <= 2
            # Without ref_emb, or with other labels for it: pairs that the operator knows.
            if self.distance is None and not few and (columns is embeddings) == (column_labels is labels):
                losses = supcon(
                    embeddings,
                    labels,
                    1 / self.temperature,
                    ref_features=None if columns is embeddings else columns,
                    ref_labels=None if columns is embeddings else column_labels,
                    normalize=True,
                    reduction="none",
                )
                several = (labels != labels[:1]).any() | (column_labels != labels[:1]).any()
                return torch.where(several, losses, 0 * losses)
            positive = labels[:, None] == column_labels
            negative, valid = ~positive, torch.ones((), dtype=torch.bool, device=labels.device)
            if column_labels is labels:
                positive.fill_diagonal_(False)
        if self.distance is None:
            similarity = F.normalize(embeddings, dim=1) @ F.normalize(columns, dim=1).T
        else:
            similarity = self.distance(embeddings, columns)
            if not getattr(self.distance, "is_inverted", False):
                similarity = -similarity
        losses = masked_losses(similarity, self.temperature, positive, positive | negative)
        losses = torch.where(positive.any() & negative.any() & (not few), losses, 0 * losses)
        return torch.where(valid, losses, torch.nan)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def _checked(name: str, labels: Tensor | None, rows: Tensor) -> Tensor | None:
    """The labels as int64 beside their rows."""
    if labels is None:
        return None
    if labels.shape != rows.shape[:1]:
        raise ValueError(f"{name} must have shape ({len(rows)},), one per row; got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{name} must be integers, got {labels.dtype}; use {name}.long()")
    return labels.to(rows.device, torch.int64)


def _mined(
    indices_tuple: Sequence[Tensor], rows: int, columns: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """A miner's positive and negative pairs, each (rows, columns) bool, and a 0-d bool: all pairs are valid."""
    if len(indices_tuple) not in (3, 4):
        raise ValueError(
            f"indices_tuple must hold 3 tensors (triplets) or 4 (pairs), got {len(indices_tuple)}"
        )
    anchors, others, *rest = (index.to(device) for index in indices_tuple)
    valid = torch.ones((), dtype=torch.bool, device=device)
    masks = []
    for pair in ((anchors, others), (rest[0] if len(rest) == 2 else anchors, rest[-1])):
        places = []
        for index, length in zip(pair, (rows, columns), strict=True):
            inside = ((index >= 0) & (index < length)).all()
            if readable(inside) and not inside:
                raise ValueError(
                    f"indices_tuple must hold rows in [0, {length}), got {int(index.min())} to {int(index.max())}"
                )
            valid = valid & inside
            places.append(index.clamp(0, length - 1))
        mask = torch.zeros(rows, columns, dtype=torch.bool, device=device)
        mask[places[0], places[1]] = True
        masks.append(mask)
    both = (masks[0] & masks[1]).any()
    if readable(both) and both:
        raise ValueError("indices_tuple has a pair that is both positive and negative")
    return masks[0], masks[1], valid & ~both
