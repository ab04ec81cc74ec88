"""Gates at the end of a ResNet's block, and DANet's attention over channels: as users write them, and ours."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.nn.attention import ChannelAttention
from cmx_fast.ops import channel_gate, pool_channels, position_gate

from ..harness.problems import Problem
from ..harness.provider import OURS, Provider, compiled, formula
from ..peers import formulas

#: Channels over the width of the small network's hidden layer: SENet's and CBAM's.
REDUCTION = 16


@functools.lru_cache(2)
def problem(task: str, n: int, d: int, size: tuple[int, ...], seed: int = 0) -> Problem:
    """Features (n, d, *size), a gradient of the result, and for gates the residual and weights."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    tensors = {"x": draw(n, d, *size), "pull": draw(n, d, *size)}
    if task == "channel attention":
        # Energies of size 1: all channels then count.
        tensors["x"] *= tensors["x"][0, 0].numel() ** -0.25
        return Problem(tensors, ("x",))
    hidden = max(1, d // REDUCTION)
    tensors |= {
        "residual": draw(n, d, *size),
        "lower": draw(hidden, d) / d**0.5,
        "upper": draw(d, hidden) / 4,
    }
    if task == "CBAM":
        tensors["window"] = draw(1, 2, 7, 7) / 7
    return Problem(tensors, tuple(name for name in tensors if name != "pull"))


def _pulled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, pull, *more: (function(x, *more) * pull).sum()


def _squeeze_excite(x: Tensor, residual: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return channel_gate(x, lower, upper, residual=residual)


def _cbam(x: Tensor, residual: Tensor, lower: Tensor, upper: Tensor, window: Tensor) -> Tensor:
    x = channel_gate(x, lower, upper, maximum=True)
    gate = F.batch_norm(F.conv2d(pool_channels(x).to(x.dtype), window, padding=3), None, None, training=True)
    return position_gate(x, gate.sigmoid(), residual=residual)


def _channel_attention(x: Tensor) -> Tensor:
    layer = ChannelAttention()
    return torch.func.functional_call(layer, {"gamma": torch.ones_like(x[0, 0, 0, :1])}, (x,))


def _providers(theirs: Callable[..., Tensor], ours: Callable[..., Tensor]) -> dict[str, Provider]:
    eager, own = _pulled(theirs), _pulled(ours)

    def arguments(p: Problem) -> tuple:
        return tuple(p.tensors.values())

    return {
        "eager formula": formula(lambda p: eager(*arguments(p))),
        "torch.compile of it": compiled(eager, arguments),
        OURS: Provider(lambda p: lambda: own(*arguments(p)), lambda p: eager(*arguments(p))),
    }


PROVIDERS: dict[str, dict[str, Provider]] = {
    "squeeze-excite": _providers(formulas.squeeze_excite, _squeeze_excite),
    "CBAM": _providers(formulas.cbam, _cbam),
    "channel attention": _providers(formulas.channel_attention, _channel_attention),
}
