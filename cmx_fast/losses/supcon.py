"""The supervised contrastive loss with SupContrast's interface."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.losses._checks import check_temperature, temperature_of
from cmx_fast.losses._masked import masked_losses, reduce_losses
from cmx_fast.ops import supcon

REDUCTIONS = ("mean", "mean_nonzero", "sum", "none")
TEMPERATURE = 0.07


class SupConLoss(nn.Module):
    """SupContrast's ``SupConLoss`` (Khosla et al. 2020, eq. 2) without matrices of (samples x views) squared.

    pytorch-metric-learning's class of this name is :class:`cmx_fast.losses.metric_learning.SupConLoss`.

    Args:
        temperature: the logits are divided by it. Default 0.07: the authors' code.
        contrast_mode: "all" (default) makes every view of every sample an anchor, "one" only the first view.
            The candidates are all views either way; "one" costs as much as "all".
        base_temperature: the loss is multiplied by temperature / base_temperature. Default 0.07: the authors'
            code. The paper's equation has no such factor: set it to ``temperature``.
        normalize: divide every row by its norm first. Default False: the authors' code.
        reduction: "mean" over all anchors (the authors' code), "mean_nonzero" over those whose loss is above
            0, "sum", or "none": one loss per anchor, all samples' first views first. An anchor without a
            positive has loss 0 and no gradient.
        logit_scale: 1 / temperature, in its place. Ours.

    Call:
        ``loss(features, labels=None, mask=None)`` with features (samples, views, ...), flattened behind the
        views, or (samples, D): one view. labels: (samples,) integers. mask: (samples, samples), mask[i, j]
        the weight of j's views as positives of i, any weights. With neither, the other views of a sample are
        its positives (SimCLR).

        A mask need not come from labels, so it takes the dense formula, with memory for several matrices of
        (samples x views) squared as in SupContrast; where labels say the same, pass labels.

    Raises:
        TypeError, ValueError: labels and mask together, or of the wrong shape; features without a views
            dimension and neither labels nor mask; what :func:`cmx_fast.ops.supcon` refuses.

    Example:
        >>> import torch
        >>> from cmx_fast.losses import SupConLoss
        >>> features = torch.randn(8, 2, 64, generator=torch.Generator().manual_seed(0))
        >>> features = torch.nn.functional.normalize(features, dim=-1)
        >>> SupConLoss()(features, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])).shape
        torch.Size([])
    """

    def __init__(
        self,
        temperature: float = TEMPERATURE,
        contrast_mode: str = "all",
        base_temperature: float = 0.07,
        *,
        normalize: bool = False,
        reduction: str = "mean",
        logit_scale: float | None = None,
    ) -> None:
        super().__init__()
        if contrast_mode not in ("all", "one"):
            raise ValueError(f"contrast_mode must be 'all' or 'one', got {contrast_mode!r}")
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}; got {reduction!r}"
            )
        self.temperature = temperature_of(temperature, logit_scale, TEMPERATURE)
        self.contrast_mode = contrast_mode
        self.base_temperature = check_temperature("base_temperature", base_temperature)
        self.normalize = normalize
        self.reduction = reduction

    def forward(self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if features.dim() < 2 or (features.dim() == 2 and labels is None and mask is None):
            raise ValueError(
                f"features must have shape (samples, views, ...), got {tuple(features.shape)}; "
                "(samples, D) needs labels or mask"
            )
        if labels is not None and mask is not None:
            raise ValueError("labels and mask can't both be given")
        samples, views = features.shape[0], features.shape[1] if features.dim() > 2 else 1
        # View after view: the anchors of contrast_mode "one" come first.
        rows = features.reshape(samples, views, -1).transpose(0, 1).reshape(samples * views, -1)
        anchors = rows.shape[0] if self.contrast_mode == "all" else samples
        if mask is not None:
            if not isinstance(mask, Tensor):
                raise TypeError(
                    f"mask must be a tensor, got {type(mask).__name__}; for a miner's tuple use "
                    "cmx_fast.losses.metric_learning.SupConLoss"
                )
            if tuple(mask.shape) != (samples, samples):
                raise ValueError(f"mask must have shape {(samples, samples)}, got {tuple(mask.shape)}")
            loss = self._masked(rows, mask.to(rows.device).repeat(views, views), anchors)
        else:
            if labels is None:
                labels = torch.arange(samples, device=rows.device)
            elif labels.numel() != samples or labels.is_floating_point():
                raise ValueError(
                    f"labels must be {samples} integers, got {tuple(labels.shape)} of {labels.dtype}"
                )
            label_of_row = labels.to(rows.device, torch.int64).reshape(samples).repeat(views)
            loss = supcon(
                rows, label_of_row, 1 / self.temperature, normalize=self.normalize, reduction="none"
            )[:anchors]
        return reduce_losses(loss, self.reduction) * (self.temperature / self.base_temperature)

    def _masked(self, rows: Tensor, weight: Tensor, anchors: int) -> Tensor:
        """Losses (anchors,) for any weights (M, M) of the positives, dense."""
        if self.normalize:
            rows = F.normalize(rows, dim=1)
        itself = torch.eye(anchors, rows.shape[0], dtype=torch.bool, device=rows.device)
        weight = weight[:anchors].masked_fill(itself, 0)
        return masked_losses(rows[:anchors] @ rows.T, self.temperature, weight, ~itself)

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, contrast_mode={self.contrast_mode!r}, "
            f"base_temperature={self.base_temperature}, reduction={self.reduction!r}"
        )
