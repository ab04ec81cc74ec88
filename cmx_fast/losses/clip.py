"""CLIP's loss with OpenCLIP's interface."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import cmx_fast
from cmx_fast.losses._checks import check_process_group, one_scale
from cmx_fast.ops import info_nce


class ClipLoss(nn.Module):
    """OpenCLIP's ``ClipLoss`` without its N x N logits: image to text and text to image, averaged.

    Args:
        rank, world_size: of the default process group. With a world_size above 1 the loss is that of all processes'
            features together (:func:`cmx_fast.distributed.info_nce`), the same number in every process. Their
            batches may differ in size. With 0 or 1 it is this process's own, whatever the rank, as in OpenCLIP. The
            group may be made after the loss; a call checks it.
        gather_with_grad: True: gradients are right once they are averaged over the processes, as
            DistributedDataParallel does. False: each process gets the loss's gradient by its own features,
            as in OpenCLIP; the average of those is 1 / world_size of the gradient. Default False: OpenCLIP's.
        local_loss: True in OpenCLIP computes the loss of the own rows alone. Here every process always does, and
            computes the others' gradients as well; True needs ``gather_with_grad``, without which OpenCLIP's gradient
            lacks the part of other processes' rows.
        cache_labels: accepted for the interface, without effect: there are no label tensors to keep.
        use_horovod: must be False.
        exchange: "ring" or "gather", how the processes' features meet. Ours; OpenCLIP gathers.

    Call:
        ``loss(image_features, text_features, logit_scale, logit_bias=None, output_dict=False)`` with features
        (N, D), already normalised, and ``logit_scale`` already exponentiated (a positive number, NumPy's too, or a 0-d
        tensor, differentiable where it is floating). ``temperature=`` takes its reciprocal in its place (ours). The
        softmax cancels ``logit_bias``: it receives the gradient zero. With ``output_dict`` the result is
        ``{"contrastive_loss": loss}``.

    For losses that build on this class, such as OpenCLIP's ``DistillClipLoss``, ``get_logits`` and
    ``get_ground_truth`` return the same as OpenCLIP's: the whole logits, N x N for the N rows of all processes, with
    all their memory.

    Differences from OpenCLIP: the scale must be positive; the loss of half precision is float32, and under autocast the
    loss's logits stay in it (OpenCLIP rounds them to the autocast dtype). Errors, memory and cost are those of
    :func:`cmx_fast.ops.info_nce`. Radford et al. 2021, figure 3.

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
        exchange: str = "ring",
    ) -> None:
        super().__init__()
        if world_size > 1 and local_loss and not gather_with_grad:
            raise ValueError(
                "local_loss=True needs gather_with_grad=True: without it gradients are incomplete"
            )
        if use_horovod:
            raise ValueError("use_horovod=True is not supported; use torch.distributed")
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.exchange = exchange

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
        check_process_group("ClipLoss", self.rank, self.world_size)
        scale = one_scale(logit_scale, temperature)
        if self.world_size < 2:
            loss = info_nce(image_features, text_features, **scale)
        else:
            loss = cmx_fast.distributed.info_nce(
                image_features,
                text_features,
                **scale,
                exchange=self.exchange,
                averaged=self.gather_with_grad,
            )
        if isinstance(logit_bias, Tensor):
            # Stays in the graph: DistributedDataParallel waits for the gradient of every parameter.
            loss = loss + 0 * logit_bias.sum()
        return {"contrastive_loss": loss} if output_dict else loss

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The logits of images against texts and of texts against images, each (N, N); (own, N) with ``local_loss``.

        Raises:
            ValueError: processes whose batches differ in size; the loss itself takes them.
        """
        check_process_group("ClipLoss", self.rank, self.world_size)
        images, texts = image_features, text_features
        if self.world_size > 1:
            images, texts = self._of_all(image_features), self._of_all(text_features)
        if self.world_size > 1 and not self.local_loss:
            per_image = logit_scale * images @ texts.T
            per_text = per_image.T
        else:
            per_image = logit_scale * image_features @ texts.T
            per_text = logit_scale * text_features @ images.T
        return (
            (per_image, per_text) if logit_bias is None else (per_image + logit_bias, per_text + logit_bias)
        )

    def get_ground_truth(self, device: torch.device, num_logits: int) -> Tensor:
        """The column of every row's own pair in :meth:`get_logits`, (num_logits,) int64."""
        first = num_logits * self.rank if self.world_size > 1 and self.local_loss else 0
        return torch.arange(first, first + num_logits, device=device)

    def _of_all(self, features: Tensor) -> Tensor:
        """The features of all processes, in their order; gradients reach the others' with ``gather_with_grad``."""
        counts = [rows for (rows,) in cmx_fast.distributed.exchange.Exchange(None, "gather").counts(features)]
        if len(set(counts)) > 1:
            raise ValueError(f"get_logits needs as many rows in every process, got {counts}")
        if self.gather_with_grad:
            # Not at the top: builds of PyTorch without torch.distributed have no such module.
            from torch.distributed.nn.functional import all_gather

            return torch.cat(all_gather(features))
        everyone = [features] * len(counts)
        if counts[0]:
            everyone = list(cmx_fast.distributed.all_rows(features).split(counts[0]))
        everyone[self.rank] = features
        return torch.cat(everyone)
