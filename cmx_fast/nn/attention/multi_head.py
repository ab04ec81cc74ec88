"""Multi-head self-attention of a map's places, as in transformers, with relative positions in both directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cmx_fast.ops import attention


class MultiHeadSelfAttention(nn.Module):
    r"""x + W_O [o_1, ..., o_h] of the normalised x, (B, C, H, W) to the same: every place attends to all, in each head.

    .. math:: o_h = softmax\left(\frac{Q_h K_h^T + S_h}{\sqrt{D}}\right) V_h, \qquad
        S_{ij} = q_i \cdot (r^x_{x_j - x_i} + r^y_{y_j - y_i})

    Vaswani et al., "Attention Is All You Need", NeurIPS 2017, eq. 1; relative positions as in Bello et al., "Attention
    Augmented Convolutional Networks", ICCV 2019, eqs. 3 and 4; norm and sum as in Dosovitskiy et al., "An Image Is
    Worth 16x16 Words", ICLR 2021, eq. 2. W_O starts at 0 [O], so the module starts as the identity.

    Neither the scores nor the positions' part of them is written out: the products of a query with all r are H + W more
    numbers of the query, and a key has ones at its row and its column there. Cost per picture: N² (2 C + heads (H + W))
    multiplications; memory: N (4 C + heads (H + W)).

    Args:
        channels: C, a multiple of ``heads`` (8, Bello's and Vaswani's).
        extent: the longest side of a map whose places know their positions; None: they do not.
        device, dtype: of the weights, as every layer of PyTorch takes them.

    Raises:
        ValueError: channels that are no multiple of the heads, or a map of other channels or longer than ``extent``.
    """

    def __init__(
        self,
        channels: int,
        heads: int = 8,
        extent: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must be a divisor of channels = {channels}, got {heads}")
        if extent is not None and extent < 1:
            raise ValueError(f"extent must be at least 1, got {extent}")
        self.channels, self.heads, self.extent = channels, heads, extent
        self.norm = nn.LayerNorm(channels, **place)
        self.qkv = nn.Linear(channels, 3 * channels, **place)
        self.out = nn.Linear(channels, channels, **place)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        if extent is not None:
            depth = channels // heads
            self.rows, self.columns = (
                nn.Parameter(depth**-0.5 * torch.randn(2 * extent - 1, depth, **place)) for _ in "yx"
            )

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must have shape (B, {self.channels}, H, W), got {tuple(x.shape)}")
        places = self.norm(x.flatten(2).transpose(1, 2))
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(places).chunk(3, 2)
        )
        scale = query.shape[-1] ** -0.5
        if self.extent is not None:
            query, key = self._placed(query, key, x.shape[2], x.shape[3])
        attended = attention(query, key, value, scale=scale).transpose(1, 2).flatten(2)
        return x + self.out(attended).transpose(1, 2).view_as(x)

    def _placed(self, query: Tensor, key: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, heads, N, D) with H + W more numbers each, whose products are S."""
        if height > self.extent or width > self.extent:  # type: ignore[operator]
            raise ValueError(f"x is {height} x {width}, longer than extent = {self.extent}")
        grid = query.unflatten(2, (height, width))
        down = torch.einsum("bhyxd,yjd->bhyxj", grid, self._offsets(self.rows, height))
        across = torch.einsum("bhyxd,xjd->bhyxj", grid, self._offsets(self.columns, width))
        row, column = (torch.eye(count, dtype=key.dtype, device=key.device) for count in (height, width))
        own = torch.cat([row.repeat_interleave(width, 0), column.repeat(height, 1)], 1)
        own = own.expand(*key.shape[:2], -1, -1)
        return torch.cat([query, down.flatten(2, 3), across.flatten(2, 3)], 3), torch.cat([key, own], 3)

    def _offsets(self, vectors: Tensor, count: int) -> Tensor:
        """The vectors of the offsets from each place of a side to each: (2 extent - 1, D) to (count, count, D)."""
        steps = torch.arange(count, device=vectors.device)
        return vectors[steps - steps[:, None] + (vectors.shape[0] // 2)]
