"""Contrast of maps with sequences by all their tokens, with a fixed temperature."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cmx_fast.losses._checks import temperature_of
from cmx_fast.losses.info_nce import MOCO_TEMPERATURE
from cmx_fast.ops import dense_contrastive


class DenseContrastiveLoss(nn.Module):
    """:func:`cmx_fast.ops.dense_contrastive` with its options fixed once; its page has the formula, shapes and errors.

    For a temperature that is learned, as DenseAV's is, use the function, which takes the scale as a differentiable
    tensor.

    Args:
        temperature: the scores are divided by it. Default 0.07: MoCo's. ``logit_scale``: its reciprocal, in its place.
        pool, heads, symmetric, normalize, reduction: as in the function, with its defaults.

    Call:
        ``loss(query, key, query_mask=None, key_mask=None, target=None)`` with query tokens (B, P, D) or maps
        (B, D, *S), key (M, T, D) or (M, D, *S), masks (B, P) and (M, T) bool, True for a real token, and target (B,)
        int64.

    Example:
        >>> import torch
        >>> from cmx_fast.losses import DenseContrastiveLoss
        >>> picture = torch.randn(8, 64, 14, 14, generator=torch.Generator().manual_seed(0))
        >>> speech = torch.randn(8, 50, 64, generator=torch.Generator().manual_seed(1))
        >>> DenseContrastiveLoss(heads=2, normalize=True)(picture, speech).shape
        torch.Size([])
    """

    def __init__(
        self,
        temperature: float = MOCO_TEMPERATURE,
        *,
        pool: str = "max_mean",
        heads: int = 1,
        symmetric: bool = True,
        normalize: bool = False,
        reduction: str = "mean",
        logit_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.temperature = temperature_of(temperature, logit_scale, MOCO_TEMPERATURE)
        self.options: dict[str, Any] = {
            "pool": pool,
            "heads": heads,
            "symmetric": symmetric,
            "normalize": normalize,
            "reduction": reduction,
        }

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        query_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Tensor:
        return dense_contrastive(
            query,
            key,
            1 / self.temperature,
            query_mask=query_mask,
            key_mask=key_mask,
            target=target,
            **self.options,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, " + ", ".join(f"{k}={v!r}" for k, v in self.options.items())
