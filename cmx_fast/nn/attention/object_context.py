"""OCNet: a pixel's context is the pixels of its object, found by attention; alone, in a grid, or beside dilation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.ops import attention

KINDS = ("base", "pyramid", "asp")
DILATIONS = (12, 24, 36)


class ActivatedNorm(nn.BatchNorm2d):
    """Batch norm and a leaky ReLU of slope 0.01, as in the authors' in-place layer and under its names."""

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(x), 0.01)


class ObjectContextBlock(nn.Module):
    """Context (B, out, H, W) of maps (B, C, H, W): eq. 1 of the paper. Queries are keys; starts at 0.

    Args:
        channels: C. keys, values: their widths; scores are divided by sqrt(keys). out: width of the result.
        pool: the map is pooled by this before, and the context resized after (the whole block at a smaller size).
        grid: attention stays within each of grid x grid cells.
    """

    def __init__(self, channels: int, keys: int, values: int, out: int, *, pool: int = 1, grid: int = 1):
        super().__init__()
        self.pool, self.grid = pool, grid
        self.f_key = nn.Sequential(nn.Conv2d(channels, keys, 1), ActivatedNorm(keys))
        self.f_query = self.f_key
        self.f_value = nn.Conv2d(channels, values, 1)
        self.W = nn.Conv2d(values, out, 1)
        nn.init.zeros_(self.W.weight)
        nn.init.zeros_(self.W.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        if self.pool > 1:
            x = F.max_pool2d(x, self.pool)
        keys, values = self.f_key(x), self.f_value(x)
        rows = [
            torch.cat(
                [_attend(k, v) for k, v in zip(*(_cells(m, 3, self.grid) for m in band), strict=True)], 3
            )
            for band in zip(*(_cells(m, 2, self.grid) for m in (keys, values)), strict=True)
        ]
        context = self.W(torch.cat(rows, 2))
        return F.interpolate(context, size, mode="bilinear", align_corners=True) if self.pool > 1 else context


def _cells(maps: Tensor, dim: int, count: int) -> list[Tensor]:
    """Cut maps into ``count`` pieces of equal size along a dimension; the last one takes the rest, too."""
    step = maps.shape[dim] // count
    if step == 0:
        raise ValueError(
            f"grid = {count} has more cells than the map of shape {tuple(maps.shape)} has places"
        )
    sizes = [step] * (count - 1)
    return list(maps.split([*sizes, maps.shape[dim] - sum(sizes)], dim))


def _attend(keys: Tensor, values: Tensor) -> Tensor:
    """The mean of values (B, E, h, w) at each place, by the softmax of the products of keys (B, D, h, w)."""
    flat, flat_values = (m.flatten(2).transpose(1, 2) for m in (keys, values))
    return attention(flat, flat, flat_values).transpose(1, 2).unflatten(2, values.shape[2:])


class ObjectContext(nn.Module):
    """OCNet's module, (B, C, H, W) to (B, out, H, W): Yuan & Wang, "OCNet: Object Context Network", 2018.

    "base": the context beside the features, then a 1 x 1 convolution. "pyramid": contexts within grids of 1, 2, 3 and 6
    cells a side beside widened features. "asp": the context of pooled features beside a 1 x 1 and three dilated
    convolutions (as in ASPP). Parameter names are those of the authors' OCNet.pytorch modules.

    Args:
        channels: C; of "base" and "pyramid" in the networks 512, after a 3 x 3 convolution, of "asp" 2048.
        out: width of the result (512 in the networks).
        kind: one of the three.
        keys, values: widths of "base" (default: half of C, and C; "pyramid" has these).
        grids: cells a side of each grid of "pyramid".
        dropout: default 0.05 [code], of "asp" 0.1.

    Raises:
        ValueError: an unknown kind, an odd width of "asp", or a grid finer than the map.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        kind: str = "base",
        *,
        keys: int | None = None,
        values: int | None = None,
        grids: Sequence[int] = (1, 2, 3, 6),
        dropout: float | None = None,
    ):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
        self.kind = kind
        keys, values = keys or max(1, channels // 2), values or channels
        if kind == "asp":
            self._build_asp(channels, out, 0.1 if dropout is None else dropout)
            return
        dropout = 0.05 if dropout is None else dropout
        if kind == "base":
            self.stages = nn.ModuleList([ObjectContextBlock(channels, keys, values, channels)])
            joined = 2 * channels
        else:
            self.stages = nn.ModuleList(
                ObjectContextBlock(channels, keys, values, channels, grid=grid) for grid in grids
            )
            wide = channels * len(grids)
            self.up_dr = nn.Sequential(nn.Conv2d(channels, wide, 1), ActivatedNorm(wide))
            joined = 2 * wide
        self.conv_bn_dropout = nn.Sequential(
            nn.Conv2d(joined, out, 1), ActivatedNorm(out), nn.Dropout2d(dropout)
        )

    def _build_asp(self, channels: int, out: int, dropout: float) -> None:
        if out < 4 or out % 2:
            raise ValueError(f"out of kind 'asp' must be even and at least 4, got {out}")
        inner = out // 2
        self.context = nn.Sequential(
            nn.Conv2d(channels, inner, 3, padding=1), ActivatedNorm(inner), _PooledContext(inner)
        )
        self.conv2 = nn.Sequential(nn.Conv2d(channels, inner, 1, bias=False), ActivatedNorm(inner))
        self.conv3, self.conv4, self.conv5 = (
            nn.Sequential(
                nn.Conv2d(channels, inner, 3, padding=d, dilation=d, bias=False), ActivatedNorm(inner)
            )
            for d in DILATIONS
        )
        self.conv_bn_dropout = nn.Sequential(
            nn.Conv2d(5 * inner, out, 1, bias=False), ActivatedNorm(out), nn.Dropout2d(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "base":
            parts = [self.stages[0](x), x]
        elif self.kind == "pyramid":
            parts = [self.up_dr(x), *(stage(x) for stage in self.stages)]
        else:
            parts = [branch(x) for branch in (self.context, self.conv2, self.conv3, self.conv4, self.conv5)]
        return self.conv_bn_dropout(torch.cat(parts, 1))


class _PooledContext(nn.Module):
    """The context alone of maps pooled by 2, and a convolution after it."""

    def __init__(self, channels: int):
        super().__init__()
        self.stages = nn.ModuleList(
            [ObjectContextBlock(channels, max(1, channels // 2), channels, channels, pool=2)]
        )
        self.conv_bn_dropout = nn.Sequential(nn.Conv2d(channels, channels, 1), ActivatedNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_bn_dropout(self.stages[0](x))
