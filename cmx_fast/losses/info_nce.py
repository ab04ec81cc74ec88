"""InfoNCE with a fixed temperature, with this package's interface and with info-nce-pytorch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.losses._checks import temperature_of
from cmx_fast.losses._log_sum_exp import log_sum_exp
from cmx_fast.losses._masked import reduce_losses
from cmx_fast.ops import info_nce
from cmx_fast.ops._checks import autocast, check_alike, check_choice, check_floating, scale_tensor
from cmx_fast.ops._implementations import transformed
from cmx_fast.ops.info_nce import REDUCTIONS

MOCO_TEMPERATURE = 0.07
INFO_NCE_TEMPERATURE = 0.1


class InfoNCELoss(nn.Module):
    """:func:`cmx_fast.ops.info_nce` with its options fixed once; its page has the formula, shapes and errors.

    For a temperature that is learned, use :class:`cmx_fast.losses.ClipLoss` or the function: both take the
    scale as a differentiable tensor.

    Args:
        temperature: the logits are divided by it. Default 0.07: MoCo's. ``logit_scale``: its reciprocal, in its place.
        in_batch, within, similarity, symmetric, normalize, label_smoothing, reduction: as in the function,
            with its defaults.

    Call:
        ``loss(query, key, bank=(), target=None)`` with query (*, N, D), key (*, M, D), bank one (K, D) or
        several, and target (*, N) int64.

    With ``normalize`` the bank's rows are normalised, too, which takes a copy of it at every call; the function leaves
    them as they are. Where they are unit vectors already, as in a :class:`cmx_fast.losses.MemoryBank` of such keys,
    normalise query and key alone: by the function, with its own ``normalize``.

    Example:
        >>> import torch
        >>> from cmx_fast.losses import InfoNCELoss
        >>> image, speech = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0))
        >>> InfoNCELoss(temperature=0.1, normalize=True)(image, speech).shape
        torch.Size([])
    """

    def __init__(
        self,
        temperature: float = MOCO_TEMPERATURE,
        *,
        in_batch: bool = True,
        within: bool = False,
        similarity: str = "dot",
        symmetric: bool = True,
        normalize: bool = False,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        logit_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.temperature = temperature_of(temperature, logit_scale, MOCO_TEMPERATURE)
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
        if self.options["normalize"]:
            rows = (bank,) if isinstance(bank, Tensor) else bank
            bank = [F.normalize(r.detach(), dim=-1) if isinstance(r, Tensor) else r for r in rows]
        return info_nce(query, key, 1 / self.temperature, bank=bank, target=target, **self.options)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, " + ", ".join(f"{k}={v!r}" for k, v in self.options.items())


class InfoNCE(nn.Module):
    """info-nce-pytorch's ``InfoNCE`` without the logits of queries against keys.

    Every query has to find its positive key among its negatives; all rows are divided by their norm first.

    Args:
        temperature: the logits are divided by it. Default 0.1: info-nce-pytorch's.
        reduction: "mean" (default), "sum" or "none".
        negative_mode: "unpaired" (default): the same negatives for all queries; "paired": each query has its own.
        logit_scale: 1 / temperature, in its place. Ours.

    Call:
        ``loss(query, positive_key, negative_keys=None)`` with query and positive_key (N, D), and negative_keys
        (M, D), or (N, M, D) where they are paired. Without any, the other queries' positive keys are the negatives.
        Gradients reach all three.

    Differences from info-nce-pytorch: the temperature must be positive, and the loss of half precision is float32.
    Memory is O((N + M) D) plus a tile; paired negatives are copied once. Errors are those of
    :func:`cmx_fast.ops.info_nce`.

    Example:
        >>> import torch
        >>> from cmx_fast.losses import InfoNCE
        >>> query, key, negatives = torch.randn(3, 8, 64, generator=torch.Generator().manual_seed(0))
        >>> InfoNCE()(query, key, negatives).shape
        torch.Size([])
    """

    def __init__(
        self,
        temperature: float = INFO_NCE_TEMPERATURE,
        reduction: str = "mean",
        negative_mode: str = "unpaired",
        *,
        logit_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.temperature = temperature_of(temperature, logit_scale, INFO_NCE_TEMPERATURE)
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("negative_mode", negative_mode, ("unpaired", "paired"))
        self.reduction = reduction
        self.negative_mode = negative_mode

    def forward(self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None) -> Tensor:
        paired = self.negative_mode == "paired"
        check_floating("query", query, 2, "(N, D)")
        if query.dim() != 2 or positive_key.shape != query.shape:
            raise ValueError(
                f"query and positive_key must both have shape (N, D), got {tuple(query.shape)} and "
                f"{tuple(positive_key.shape)}"
            )
        scale = 1 / self.temperature
        options: dict[str, Any] = {"symmetric": False, "normalize": True, "reduction": self.reduction}
        if negative_keys is None:
            return info_nce(query, positive_key, scale, **options)
        for name, keys in (("positive_key", positive_key), ("negative_keys", negative_keys)):
            check_floating(name, keys, 2, "(N, D)")
            check_alike(name, keys, "query", query)
        if negative_keys.dim() != 2 + paired or (paired and negative_keys.shape[0] != query.shape[0]):
            raise ValueError(
                f"negative_keys must have shape {f'({query.shape[0]}, M, D)' if paired else '(M, D)'} where "
                f"negative_mode={self.negative_mode!r}, got {tuple(negative_keys.shape)}"
            )
        if paired:
            # N problems of one query each.
            keys = torch.cat([positive_key[:, None], negative_keys], 1)
            own = torch.zeros(query.shape[0], 1, dtype=torch.int64, device=query.device)
            options["reduction"] = "none"
            losses = info_nce(query[:, None], keys, scale, target=own, **options)[:, 0]
            return reduce_losses(losses, self.reduction)
        # Autograd may ask for the derivatives by the negatives, or a transform that no tensor tells of.
        if not (transformed() or (torch.is_grad_enabled() and negative_keys.requires_grad)):
            bank = F.normalize(negative_keys, dim=1)
            return info_nce(query, positive_key, scale, bank=bank, in_batch=False, **options)
        # A bank has no gradient: the negatives' share of the softmax is computed apart.
        rows, positives, negatives = autocast(
            *(F.normalize(x, dim=1) for x in (query, positive_key, negative_keys))
        )
        logit_scale = scale_tensor(scale, rows)
        positive = logit_scale * (rows.to(logit_scale.dtype) * positives.to(logit_scale.dtype)).sum(1)
        if transformed():
            logits = logit_scale * (rows.to(logit_scale.dtype) @ negatives.to(logit_scale.dtype).T)
            log_sum = logits.logsumexp(1)
        else:
            log_sum = log_sum_exp(rows, negatives, logit_scale)
        losses = F.softplus(log_sum - positive)
        return reduce_losses(losses, self.reduction)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}, negative_mode={self.negative_mode!r}"
