"""Attention with values wider than keys, and the encoding layer: the formulas as users write them, and ours."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.nn.attention import Encoding
from cmx_fast.ops import attention

from ..harness.problems import Problem
from ..harness.provider import OURS, Provider, compiled, formula
from ..peers import formulas


@functools.lru_cache(2)
def problem(task: str, n: int, d: int, e: int, batch: int, seed: int = 0) -> Problem:
    """Queries and keys (batch, n, d), values (batch, n, e), and a gradient of the output; or features and codewords.

    Features are (batch, d, n), with e codewords.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    if task == "encoding":
        codewords, scale = (
            draw(e, d) * (e * d) ** -0.5,
            -torch.rand(e, dtype=torch.float64, generator=generator),
        )
        tensors = {"x": draw(batch, d, n), "codewords": codewords, "scale": scale, "pull": draw(batch, e, d)}
        return Problem(tensors, ("x", "codewords", "scale"))
    # Scores of size 1, as they are where a network starts.
    tensors = {"query": draw(batch, n, d) * d**-0.5, "key": draw(batch, n, d)}
    tensors |= {"value": draw(batch, n, e), "pull": draw(batch, n, e)}
    return Problem(tensors, ("query", "key", "value"))


def _of_attention(p: Problem) -> tuple:
    return p["query"], p["key"], p["value"], p["pull"]


def _eager(query: Tensor, key: Tensor, value: Tensor, pull: Tensor) -> Tensor:
    return (formulas.attention(query, key, value) * pull).sum()


def _pytorchs(query: Tensor, key: Tensor, value: Tensor, pull: Tensor) -> Tensor:
    return (F.scaled_dot_product_attention(query, key, value, scale=1.0) * pull).sum()


def _padded(query: Tensor, key: Tensor, value: Tensor, pull: Tensor) -> Tensor:
    """One head with zeros where queries and keys are narrower, so that the library's kernel takes them."""
    missing = (0, value.shape[-1] - query.shape[-1])
    query, key, value = F.pad(query, missing)[:, None], F.pad(key, missing)[:, None], value[:, None]
    return (F.scaled_dot_product_attention(query, key, value, scale=1.0)[:, 0] * pull).sum()


def _ours(query: Tensor, key: Tensor, value: Tensor, pull: Tensor) -> Tensor:
    return (attention(query, key, value, scale=1.0) * pull).sum()


def _of_encoding(p: Problem) -> tuple:
    return p["x"], p["codewords"], p["scale"], p["pull"]


def _residuals(x: Tensor, codewords: Tensor, scale: Tensor, pull: Tensor) -> Tensor:
    return (formulas.encoding(x, codewords, scale) * pull).sum()


def _our_encoding(p: Problem) -> Tensor:
    x, codewords, scale, pull = _of_encoding(p)
    layer = Encoding(*reversed(codewords.shape))
    parameters = {"codewords": codewords, "scale": scale}
    return (torch.func.functional_call(layer, parameters, (x,)) * pull).sum()


def _provider(function) -> Provider:
    return Provider(lambda p: lambda: function(*_of_attention(p)), lambda p: _eager(*_of_attention(p)))


PROVIDERS: dict[str, dict[str, Provider]] = {
    "attention": {
        "bmm, softmax, bmm": formula(lambda p: _eager(*_of_attention(p))),
        "torch.compile of it": compiled(_eager, _of_attention),
        "PyTorch's SDPA": _provider(_pytorchs),
        "PyTorch's SDPA, padded": _provider(_padded),
        OURS: _provider(_ours),
    },
    "encoding": {
        "residuals": formula(lambda p: _residuals(*_of_encoding(p))),
        "torch.compile of it": compiled(_residuals, _of_encoding),
        OURS: Provider(lambda p: lambda: _our_encoding(p), lambda p: _residuals(*_of_encoding(p))),
    },
}
