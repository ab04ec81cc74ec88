"""CLIP's loss with OpenCLIP's interface."""

from __future__ import annotations

from torch import Tensor, nn

from cmx_fast.ops import info_nce


class ClipLoss(nn.Module):
    """OpenCLIP's ``ClipLoss`` without its N x N logits: image to text and text to image, averaged.

    Args:
        local_loss, gather_with_grad, rank, world_size: how OpenCLIP joins the batches of several processes.
            Here one process only: ``world_size`` must be 1, and as in OpenCLIP the other three then have no
            effect.
        cache_labels: accepted for the interface; there are no label tensors to keep.
        use_horovod: must be False.

    Call:
        ``loss(image_features, text_features, logit_scale, logit_bias=None, output_dict=False)`` with features
        (N, D), already normalised, and ``logit_scale`` already exponentiated (a number or a 0-d tensor,
        differentiable). The softmax cancels ``logit_bias``: it receives the gradient zero. With
        ``output_dict`` the result is ``{"contrastive_loss": loss}``.

    Under autocast the logits stay in float32 (OpenCLIP rounds them to the autocast dtype). Errors, memory and
    cost are those of :func:`cmx_fast.ops.info_nce`. Radford et al. 2021, figure 3.

    Example:
        >>> import torch
        >>> from cmx_fast.losses import ClipLoss
        >>> features = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0))
        >>> image, text = torch.nn.functional.normalize(features, dim=-1)
        >>> ClipLoss()(image, text, 100.0).shape
        torch.Size([])
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        if world_size != 1 or rank != 0:
            raise ValueError(
                f"ClipLoss runs in one process, got world_size={world_size}, rank={rank}; "
                "for several, gather the features first and give every process the whole batch"
            )
        if use_horovod:
            raise ValueError("use_horovod=True is not supported; use torch.distributed")
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        loss = info_nce(image_features, text_features, logit_scale)
        if isinstance(logit_bias, Tensor):
            # Stays in the graph: DistributedDataParallel waits for the gradient of every parameter.
            loss = loss + 0 * logit_bias.sum()
        return {"contrastive_loss": loss} if output_dict else loss
