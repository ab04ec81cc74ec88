"""SigLIP's loss with OpenCLIP's interface."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import cmx_fast
from cmx_fast.losses._checks import check_process_group, one_scale
from cmx_fast.ops import sigmoid_contrastive

#: OpenCLIP's ways to bring the processes' texts together, and ours that take their place.
EXCHANGES = {"bidir": "ring", "shift": "ring", "reduce": "gather", "gather": "gather"}


class SigLipLoss(nn.Module):
    """OpenCLIP's ``SigLipLoss`` without its N x N logits and labels: a sigmoid for each pair of an image and a text.

    Args:
        cache_labels: accepted for the interface, without effect: there are no label tensors to keep.
        rank, world_size: of the default process group. With a world_size above 1 the loss is that of all processes'
            features together (:func:`cmx_fast.distributed.sigmoid_contrastive`), the same number in every process;
            OpenCLIP's is the own images' part, whose mean over the processes this is. Gradients are right once they
            are averaged, as DistributedDataParallel does, and those of OpenCLIP. Batches may differ in size. With 0
            or 1 it is this process's own. The group may be made after the loss; a call checks it.
        dist_impl: "bidir" (default: OpenCLIP's) or "shift": texts go round a ring, always in one direction here;
            "gather" or "reduce": all texts at once.
        chunk_size: accepted for the interface, without effect on value or memory: no call keeps more than a tile.

    Call:
        ``loss(image_features, text_features, logit_scale, logit_bias=None, output_dict=False)`` with features (N, D),
        already normalised, ``logit_scale`` already exponentiated (a positive number, NumPy's too, or a 0-d tensor), and
        ``logit_bias`` a number, a 0-d tensor or None for 0; gradients reach tensors. ``temperature=`` takes the scale's
        reciprocal in its place (ours). With ``output_dict`` the result is ``{"contrastive_loss": loss}``.

    ``get_logits`` and ``get_ground_truth`` are OpenCLIP's, for losses that build on this class: N x N, with all their
    memory.

    Differences from OpenCLIP: the scale must be positive; the loss of half precision is float32, and under autocast the
    loss's logits stay in it. Errors, memory and cost are those of :func:`cmx_fast.ops.sigmoid_contrastive`. Zhai et al.
    2023, eq. 1.

    Example:
        >>> import torch
        >>> from cmx_fast.losses import SigLipLoss
        >>> features = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0))
        >>> image, text = torch.nn.functional.normalize(features, dim=-1)
        >>> SigLipLoss()(image, text, 10.0, -10.0).shape
        torch.Size([])
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        chunk_size: int = 0,
    ) -> None:
        super().__init__()
        dist_impl = dist_impl or "bidir"
        if dist_impl not in EXCHANGES:
            raise ValueError(f"dist_impl must be one of {', '.join(map(repr, EXCHANGES))}; got {dist_impl!r}")
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.dist_impl = dist_impl
        self.chunk_size = chunk_size

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float | None = None,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
        *,
        temperature: Tensor | float | None = None,
    ) -> Tensor | dict[str, Tensor]:
        check_process_group("SigLipLoss", self.rank, self.world_size)
        scale = one_scale(logit_scale, temperature)
        bias = 0.0 if logit_bias is None else logit_bias
        if self.world_size < 2:
            loss = sigmoid_contrastive(image_features, text_features, logit_bias=bias, **scale)
        else:
            loss = cmx_fast.distributed.sigmoid_contrastive(
                image_features, text_features, logit_bias=bias, exchange=EXCHANGES[self.dist_impl], **scale
            )
        return {"contrastive_loss": loss} if output_dict else loss

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
    ) -> Tensor:
        """The logits of this process's images against its texts, (N, N)."""
        logits = logit_scale * image_features @ text_features.T
        return logits if logit_bias is None else logits + logit_bias

    def get_ground_truth(
        self, device: torch.device, dtype: torch.dtype, num_logits: int, negative_only: bool = False
    ) -> Tensor:
        """1 for pairs on the diagonal, unless ``negative_only``, and -1 for all others, (num_logits, num_logits)."""
        labels = -torch.ones(num_logits, num_logits, device=device, dtype=dtype)
        return labels if negative_only else labels.fill_diagonal_(1)
