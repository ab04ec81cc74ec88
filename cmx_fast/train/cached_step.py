"""Contrastive steps on batches that the encoders can't hold: gradient caching."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence, Sized
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn


class CachedContrastiveStep:
    """Computes gradients of a loss over a large batch; only a chunk's activations are in memory at a time.

    A fused loss saves the memory of the similarities, but the encoders' activations of the whole batch remain, and they
    are most of it. Here the batch is embedded in chunks without a graph; the loss gives the gradient of the features;
    then chunk by chunk the features are made again, with a graph, and that gradient is sent through it (Gao et al.,
    "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021). The gradients are the whole
    batch's, to rounding, and are added to the parameters' ``grad`` as ``backward`` would.

    The second pass sees the first one's random numbers and buffers: dropout drops the same, and running statistics and
    spectral norms advance once. Layers that depend on the batch itself, as batch norm does in training, see chunks.

    Args:
        encoders: a module for every input of a call, or one module for a single input; the same module may serve
            several. DistributedDataParallel and FSDP exchange gradients once, with their last chunk.
        loss: takes the features of every input, whole, and the call's keyword arguments; gives a 0-d tensor. In a
            process group one of :mod:`cmx_fast.distributed`, so that all processes' features meet. If it is a module
            with parameters (a temperature), they get their gradients too.
        chunk: rows of a batch that the encoders see at a time, or one such number for every encoder.
        scaler: a ``torch.amp.GradScaler``, where training has one.
        get_rep_fn: takes what an encoder returns and gives its features, one row per sample, where they are not the
            tensor that it returns: ``lambda output: output.pooler_output``.

    Call:
        ``step(*inputs, **loss_arguments)``: one input per encoder, which reaches it as in GradCache:

        ========================  ===================================
        input                     call
        ========================  ===================================
        tensor                    ``encoder(tensor)``
        any mapping               ``encoder(**mapping)``
        list or tuple             ``encoder(*list)``
        (list or tuple, mapping)  ``encoder(*list, **mapping)``
        ========================  ===================================

        An encoder that takes a mapping or a list as one argument gets it in a list: ``step([{"a": a, "b": b}])``.
        Tensors are split along their first dimension, the samples, however deep they lie in mappings, lists and
        tuples. Strings, numbers, None, 0-d tensors and other objects without a length go to every chunk whole. Other
        collections without a tensor (a list of strings, a NumPy array) are refused, as they might be samples as well
        as a setting: make samples tensors, and give settings to the encoder with ``functools.partial``.

        Returns the loss, detached. Call it under autocast as one would the encoders.

    Cost: a forward pass more than plain training. Memory: activations of a chunk, features of the batch, and what the
    loss takes.

    Raises:
        ValueError: a chunk below 1, another number of inputs or chunks than of encoders, inputs without samples,
            tensors of one input that differ in their number, an encoder that gives another number of rows, or
            features without a gradient. TypeError: a chunk that is no integer, an input that can't be split, or an
            encoder that returns no tensor and no ``get_rep_fn`` to find one.

    Example:
        >>> import torch
        >>> from cmx_fast.losses import InfoNCELoss
        >>> from cmx_fast.train.cached_step import CachedContrastiveStep
        >>> image, text = torch.nn.Linear(6, 4), torch.nn.Linear(5, 4)
        >>> step = CachedContrastiveStep([image, text], InfoNCELoss(normalize=True), chunk=[8, 16])
        >>> step(torch.randn(32, 6), {"input": torch.randn(32, 5)}).shape
        torch.Size([])
        >>> image.weight.grad.shape
        torch.Size([4, 6])
    """

    def __init__(
        self,
        encoders: nn.Module | Sequence[nn.Module],
        loss: Callable[..., Tensor],
        chunk: int | Sequence[int],
        *,
        scaler: torch.amp.GradScaler | None = None,
        get_rep_fn: Callable[[Any], Tensor] | None = None,
    ):
        self.encoders = [encoders] if isinstance(encoders, nn.Module) else list(encoders)
        chunks = list(chunk) if isinstance(chunk, Sequence) else [chunk] * len(self.encoders)
        if len(chunks) != len(self.encoders):
            raise ValueError(
                f"chunk must be one number, or one for each of {len(self.encoders)} encoders; got {chunk}"
            )
        for rows in chunks:
            if isinstance(rows, bool) or not isinstance(rows, Integral):
                raise TypeError(f"chunk must be an integer, got {rows!r}")
            if rows < 1:
                raise ValueError(f"chunk must be at least 1, got {rows}")
        self.loss, self.chunks, self.scaler, self.get_rep_fn = loss, chunks, scaler, get_rep_fn

    def __call__(self, *inputs: Any, **loss_arguments: Any) -> Tensor:
        samples, device = self._samples(inputs)
        modules = list({id(module): module for module in self.encoders}.values())
        buffers = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
        before = _rng(device)
        with torch.no_grad():
            features = [
                torch.cat([self._encode(index, value, rows) for rows in self._rows(index, samples[index])])
                for index, value in enumerate(inputs)
            ]
            for buffer, value in buffers:
                buffer.copy_(value)
        for tensor in features:
            tensor.requires_grad_()
        loss = self.loss(*features, **loss_arguments)
        after = _rng(device)
        with torch.autocast(device.type, enabled=False):
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        _set_rng(before, device)
        last = {id(encoder): index for index, encoder in enumerate(self.encoders)}
        for index, (encoder, value, whole) in enumerate(zip(self.encoders, inputs, features, strict=True)):
            if whole.grad is None:
                raise ValueError(f"the loss has no gradient by the features of input {index}")
            for rows in self._rows(index, samples[index]):
                final = rows.stop >= samples[index] and last[id(encoder)] == index
                with _exchanging(encoder, final):
                    again = self._encode(index, value, rows)
                    if not again.requires_grad:
                        # Nothing to train here: its random numbers are still to be drawn.
                        continue
                    with torch.autocast(device.type, enabled=False):
                        again.backward(whole.grad[rows])
        _set_rng(after, device)
        return loss.detach()

    def _samples(self, inputs: Sequence[Any]) -> tuple[list[int], torch.device]:
        """The number of samples of every input, and the device of the first tensor."""
        if len(inputs) != len(self.encoders):
            raise ValueError(f"{len(self.encoders)} encoders take as many inputs, got {len(inputs)}")
        samples, devices = [], []
        for index, value in enumerate(inputs):
            tensors = list(_split_tensors(value, f"input {index}"))
            counts = {len(tensor) for tensor in tensors}
            if len(counts) != 1 or counts == {0}:
                lengths = ", ".join(map(str, sorted(counts))) or "no tensor"
                raise ValueError(
                    f"input {index} must have the same number of samples, at least 1, in every tensor; got {lengths}"
                )
            samples.append(counts.pop())
            devices.append(tensors[0].device)
        return samples, devices[0]

    def _rows(self, index: int, samples: int) -> Iterator[slice]:
        for start in range(0, samples, self.chunks[index]):
            yield slice(start, min(start + self.chunks[index], samples))

    def _encode(self, index: int, value: Any, rows: slice) -> Tensor:
        """The features of some rows of an input."""
        # Cut anew for every pass: an encoder may write into the mapping that it is given.
        part, encoder = _cut(value, rows), self.encoders[index]
        if isinstance(part, Mapping):
            output = encoder(**part)
        elif isinstance(part, list | tuple):
            output = encoder(*part[0], **part[1]) if _are_arguments(part) else encoder(*part)
        else:
            output = encoder(part)
        features = output if self.get_rep_fn is None else self.get_rep_fn(output)
        if not isinstance(features, Tensor):
            raise TypeError(
                f"encoder {index} must give its features as a tensor, got {type(features).__name__}; "
                "pass get_rep_fn, which takes them from what the encoder returns"
            )
        expected = rows.stop - rows.start
        if features.dim() == 0 or len(features) != expected:
            raise ValueError(
                f"encoder {index} must give one row per sample, {expected} here; got shape {tuple(features.shape)}"
            )
        return features


def _are_arguments(value: Any) -> bool:
    """True if a tuple holds an encoder's positional and keyword arguments."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], list | tuple)
        and isinstance(value[1], Mapping)
    )


def _split_tensors(value: Any, path: str) -> Iterator[Tensor]:
    """The tensors of an input whose rows are samples; TypeError for values that are neither split nor handed on."""
    if isinstance(value, Tensor):
        if value.dim() > 0:
            yield value
    elif isinstance(value, Mapping):
        for key in value:
            yield from _split_tensors(value[key], f"{path}[{key!r}]")
    elif isinstance(value, list | tuple) and (not value or any(map(_holds_tensor, value))):
        for position, item in enumerate(value):
            yield from _split_tensors(item, f"{path}[{position}]")
    elif (
        isinstance(value, Sized)
        and not isinstance(value, str | bytes)
        and getattr(value, "shape", None) != ()
    ):
        raise TypeError(
            f"{path} is a {type(value).__name__} of {len(value)} without a tensor: samples must be tensors; "
            "a setting goes to the encoder with functools.partial"
        )


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_tensor(value[key]) for key in value)
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_holds_tensor, value)))


def _cut(value: Any, rows: slice) -> Any:
    """The value with these rows of every tensor, in the same collections."""
    if isinstance(value, Tensor):
        return value[rows] if value.dim() > 0 else value
    if isinstance(value, Mapping):
        parts = {key: _cut(value[key], rows) for key in value}
        if type(value) is dict or not isinstance(value, MutableMapping):
            return parts
        # The caller's own type: encoders read BatchEncoding's keys as attributes.
        mapping = copy.copy(value)
        for key, part in parts.items():
            mapping[key] = part
        return mapping
    if isinstance(value, list | tuple):
        items = [_cut(item, rows) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


@contextmanager
def _exchanging(module: nn.Module, exchange: bool) -> Iterator[None]:
    """Switch the exchange of gradients between processes on or off for the backward passes within."""
    parallel: Any = module
    if hasattr(parallel, "set_requires_gradient_sync"):  # FSDP2
        parallel.set_requires_gradient_sync(exchange)
        yield
    elif not exchange and hasattr(parallel, "no_sync"):  # DistributedDataParallel, FSDP
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
