"""Non-local blocks: every position of a map attends to all, in one to three dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cmx_fast.ops import attention

MODES = ("embedded", "gaussian", "dot", "concatenate")
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class NonLocal(nn.Module):
    """x + W y, where y_i is a mean of g(x_j) over all positions j by a pairwise function of x_i and x_j.

    Wang et al., "Non-local Neural Networks", CVPR 2018, eqs. 1 to 6. The functions: "embedded" exp(theta_i . phi_j),
    "gaussian" exp(x_i . x_j), "dot" theta_i . phi_j / N, "concatenate" relu(w . [theta_i, phi_j]) / N. None of them
    writes the matrix of all pairs: the first two are :func:`cmx_fast.ops.attention`, a dot product's sum is taken
    first, and the last is a sum of what lies above a threshold, found by sorting. Starts as the identity.

    Input and output (B, C, T), (B, C, H, W) or (B, C, T, H, W). Parameter names are those of Non-local_pytorch.

    Args:
        channels: C. dimensions: 1, 2 or 3 (time, picture, video).
        inner: channels of theta, phi and g (half, the paper's).
        mode: one of the four (default: the paper's).
        subsample: keys and values pooled by 2 in the picture's directions, and in "1-D" in time (the paper's code:
            yes; Non-local_pytorch: after the convolution, which is kept).
        scale: divide exponents by sqrt(inner), as the authors' code does and the paper and Non-local_pytorch do not.
        norm: a batch norm after W, whose gain and bias start at 0; else W does.
        device, dtype: of the weights, as every layer of PyTorch takes them.

    Raises:
        ValueError: an unknown mode or number of dimensions, or an input of another shape.
    """

    def __init__(
        self,
        channels: int,
        dimensions: int = 2,
        inner: int | None = None,
        mode: str = "embedded",
        subsample: bool = True,
        scale: bool = False,
        norm: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
        if dimensions not in CONVOLUTIONS:
            raise ValueError(f"dimensions must be 1, 2 or 3; got {dimensions!r}")
        inner = max(1, channels // 2) if inner is None else inner
        self.channels, self.dimensions, self.inner = channels, dimensions, inner
        self.mode, self.scale = mode, scale
        convolution = CONVOLUTIONS[dimensions]
        pool = _pool(dimensions) if subsample else None
        value = convolution(channels, inner, 1, **place)
        self.g = nn.Sequential(value, pool) if pool else value
        if mode == "gaussian":
            self.theta, self.phi = None, pool
        else:
            self.theta, key = (convolution(channels, inner, 1, **place) for _ in "qk")
            self.phi = nn.Sequential(key, pool) if pool else key
        if mode == "concatenate":
            self.concat_project = nn.Sequential(nn.Conv2d(2 * inner, 1, 1, bias=False, **place), nn.ReLU())
        out = convolution(inner, channels, 1, **place)
        last: nn.Module = NORMS[dimensions](channels, **place) if norm else out
        self.W = nn.Sequential(out, last) if norm else out
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != self.dimensions + 2 or x.shape[1] != self.channels:
            sizes = ", ".join("THW"[3 - self.dimensions :] if self.dimensions < 3 else "THW")
            raise ValueError(f"x must have shape (B, {self.channels}, {sizes}), got {tuple(x.shape)}")
        value = _rows(self.g(x))
        query = _rows(x if self.theta is None else self.theta(x))
        key = _rows(x if self.phi is None else self.phi(x))
        if self.mode in ("embedded", "gaussian"):
            y = attention(query, key, value, scale=query.shape[-1] ** -0.5 if self.scale else 1.0)
        elif self.mode == "dot":
            y = query @ (key.transpose(1, 2) @ value) / key.shape[1]
        else:
            weight = next(self.concat_project.parameters()).flatten()
            y = above_thresholds(query @ weight[: self.inner], key @ weight[self.inner :], value)
        return x + self.W(y.transpose(1, 2).unflatten(2, x.shape[2:]))


def above_thresholds(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The mean over j of relu(a_i + b_j) v_j: (B, N), (B, M), (B, M, E) to (B, N, E), in M log M + N log M steps.

    With keys in descending order those that count for a query come first, so two running sums serve all queries.
    """
    b, order = key.sort(1, descending=True)
    v = value.gather(1, order[..., None].expand_as(value))
    sums, weighted = (
        torch.cat([x.new_zeros(x.shape[0], 1, x.shape[2]), x.cumsum(1)], 1) for x in (v, b[..., None] * v)
    )
    # The number of keys with b_j > -a_i.
    count = torch.searchsorted(-b.detach(), query.detach().contiguous())[..., None].expand(
        -1, -1, value.shape[2]
    )
    return (query[..., None] * sums.gather(1, count) + weighted.gather(1, count)) / key.shape[1]


def _rows(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


def _pool(dimensions: int) -> nn.Module:
    """A pooling by 2, of videos in the picture's directions only: time is short."""
    return {1: nn.MaxPool1d(2), 2: nn.MaxPool2d(2), 3: nn.MaxPool3d((1, 2, 2))}[dimensions]
