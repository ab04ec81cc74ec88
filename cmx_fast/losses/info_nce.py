"""InfoNCE with a fixed temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from cmx_fast.losses._checks import check_temperature
from cmx_fast.ops import info_nce


class InfoNCELoss(nn.Module):
    """:func:`cmx_fast.ops.info_nce` with its options fixed once; its page has the formula, shapes and errors.

    For a temperature that is learned, use :class:`cmx_fast.losses.ClipLoss` or the function: both take the
    scale as a differentiable tensor.

    Args:
        temperature: the logits are divided by it. Default 0.07: MoCo's.
        in_batch, within, similarity, symmetric, normalize, label_smoothing, reduction: as in the function,
            with its defaults.

    Call:
        ``loss(query, key, bank=(), target=None)`` with query (*, N, D), key (*, M, D), bank one (K, D) or
        several, and target (*, N) int64. The bank is not normalised.

    Example:
        >>> import torch
        >>> from cmx_fast.losses import InfoNCELoss
        >>> image, speech = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0))
        >>> InfoNCELoss(temperature=0.1, normalize=True)(image, speech).shape
        torch.Size([])
    """

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        in_batch: bool = True,
        within: bool = False,
        similarity: str = "dot",
        symmetric: bool = True,
        normalize: bool = False,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.temperature = check_temperature("temperature", temperature)
        self.options: dict[str, Any] = {
            "in_batch": in_batch,
            "within": within,
            "similarity": similarity,
            "symmetric": symmetric,
            "normalize": normalize,
            "label_smoothing": label_smoothing,
            "reduction": reduction,
        }

    def forward(
        self, query: Tensor, key: Tensor, bank: Tensor | Sequence[Tensor] = (), target: Tensor | None = None
    ) -> Tensor:
        return info_nce(query, key, 1 / self.temperature, bank=bank, target=target, **self.options)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, " + ", ".join(f"{k}={v!r}" for k, v in self.options.items())
