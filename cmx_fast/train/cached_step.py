"""Contrastive steps on batches that the encoders can't hold: gradient caching."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


class CachedContrastiveStep:
    """Gradients of a loss over a large batch, with the encoders' activations of a chunk of it in memory at a time.

    A fused loss saves the memory of the similarities, but the encoders' activations of the whole batch remain, and they
    are most of it. Here the batch is embedded in chunks without a graph; the loss gives the gradient of the features;
    then chunk by chunk the features are made again, with a graph, and that gradient is sent through it (Gao et al.,
    "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021). The gradients are the whole
    batch's, to rounding, and are added to the parameters' ``grad`` as ``backward`` would.

    The second pass sees the first one's random numbers and buffers: dropout drops the same, and running statistics and
    spectral norms advance once. What depends on the batch itself, as batch norm does in training, sees chunks.

    Args:
        encoders: a module for every input of a call, or one module for a single input; the same module may serve
            several. DistributedDataParallel and FSDP exchange gradients once, with their last chunk.
        loss: takes the features of every input, whole, and the call's keyword arguments; gives a 0-d tensor. In a
            process group one of :mod:`cmx_fast.distributed`, so that all processes' features meet. If it is a module
            with parameters (a temperature), they get their gradients too.
        chunk: rows of a batch that the encoders see at a time.
        scaler: a ``torch.amp.GradScaler``, where training has one.

    Call:
        ``step(*inputs, **of_the_loss)``: an input is a tensor, or a dict, list or tuple of tensors, with the samples in
        the first dimension of each. Returns the loss, detached. Call it under autocast as one would the encoders.

    Cost: a forward pass more than plain training. Memory: activations of a chunk, features of the batch, and what the
    loss takes.

    Raises:
        ValueError: a chunk below 1, another number of inputs than of encoders, inputs without samples, tensors of one
            input that differ in their number, or features that require no gradient.

    Example:
        >>> import torch
        >>> from cmx_fast.losses import InfoNCELoss
        >>> from cmx_fast.train.cached_step import CachedContrastiveStep
        >>> image, text = torch.nn.Linear(6, 4), torch.nn.Linear(5, 4)
        >>> step = CachedContrastiveStep([image, text], InfoNCELoss(normalize=True), chunk=8)
        >>> step(torch.randn(32, 6), torch.randn(32, 5)).shape
        torch.Size([])
        >>> image.weight.grad.shape
        torch.Size([4, 6])
    """

    def __init__(
        self,
        encoders: nn.Module | Sequence[nn.Module],
        loss: Callable[..., Tensor],
        chunk: int,
        *,
        scaler: torch.amp.GradScaler | None = None,
    ):
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        self.encoders = [encoders] if isinstance(encoders, nn.Module) else list(encoders)
        self.loss, self.chunk, self.scaler = loss, chunk, scaler

    def __call__(self, *inputs: Any, **of_the_loss: Any) -> Tensor:
        batches = self._cut(inputs)
        modules = list({id(module): module for module in self.encoders}.values())
        device = tree_leaves(inputs)[0].device
        buffers = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
        before = _rng(device)
        with torch.no_grad():
            features = [
                torch.cat([encoder(part) for part in parts])
                for encoder, parts in zip(self.encoders, batches, strict=True)
            ]
            for buffer, value in buffers:
                buffer.copy_(value)
        for tensor in features:
            tensor.requires_grad_()
        loss = self.loss(*features, **of_the_loss)
        after = _rng(device)
        with torch.autocast(device.type, enabled=False):
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        _set_rng(before, device)
        last = {id(encoder): index for index, encoder in enumerate(self.encoders)}
        for index, (encoder, parts, whole) in enumerate(zip(self.encoders, batches, features, strict=True)):
            if whole.grad is None:
                raise ValueError(f"the loss has no gradient by the features of input {index}")
            gradients = whole.grad.split(self.chunk)
            for position, (part, gradient) in enumerate(zip(parts, gradients, strict=True)):
                final = position + 1 == len(parts) and last[id(encoder)] == index
                with _exchanging(encoder, final):
                    again = encoder(part)
                    if not again.requires_grad:
                        # Nothing to train here: its random numbers are still to be drawn.
                        continue
                    with torch.autocast(device.type, enabled=False):
                        again.backward(gradient)
        _set_rng(after, device)
        return loss.detach()

    def _cut(self, inputs: Sequence[Any]) -> list[list[Any]]:
        """Every input's chunks."""
        if len(inputs) != len(self.encoders):
            raise ValueError(f"{len(self.encoders)} encoders take as many inputs, got {len(inputs)}")
        batches = []
        for index, value in enumerate(inputs):
            counts = {len(leaf) for leaf in tree_leaves(value)}
            if len(counts) != 1 or counts == {0}:
                found = ", ".join(map(str, sorted(counts))) or "no tensor"
                raise ValueError(
                    f"input {index} must have the same number of samples, at least 1, in every tensor; got {found}"
                )
            starts = range(0, counts.pop(), self.chunk)
            batches.append([tree_map(lambda t, i=i: t[i : i + self.chunk], value) for i in starts])
        return batches


@contextmanager
def _exchanging(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Whether gradients are exchanged between processes in the backward pass within."""
    parallel: Any = module
    if hasattr(parallel, "set_requires_gradient_sync"):  # FSDP2
        parallel.set_requires_gradient_sync(wanted)
        yield
    elif not wanted and hasattr(parallel, "no_sync"):  # DistributedDataParallel, FSDP
        with parallel.no_sync():
            yield
    else:
        yield


def _rng(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_rng(states: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1], device)
