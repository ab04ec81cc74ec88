"""Spatial transformers: the network chooses a window of its input, affine or bent, and reads it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.nn.warp import affine_grid, pixel_places


class _Transformer(nn.Module):
    """Reads the input bilinearly at a grid that ``localise`` chooses; zeros are outside."""

    def __init__(self, localise: nn.Module, size: tuple[int, int] | None, align_corners: bool):
        super().__init__()
        self.localise, self.size, self.align_corners = localise, size, align_corners

    def grid(self, x: Tensor, height: int, width: int) -> Tensor:
        """Where each pixel of the output reads, (B, height, width, 2), as x and y in [-1, 1]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError(f"x must have shape (B, C, H, W), got {tuple(x.shape)}")
        height, width = self.size or x.shape[2:]
        return F.grid_sample(x, self.grid(x, height, width), align_corners=self.align_corners)


class SpatialTransformer(_Transformer):
    """Jaderberg et al., "Spatial Transformer Networks", NeurIPS 2015: (B, C, H, W) to (B, C, *size).

    ``localise`` maps the input to features (B, width); a linear layer makes the six numbers of eq. 1 of them, and
    bilinear sampling (eq. 5) reads the input there. The layer starts at weight 0 and the identity, so the module does.
    Outside the input there are zeros.

    Args:
        localise: any network to (B, width).
        size: (height, width) of the output; default: the input's.
        align_corners: True: -1 and 1 are the outermost pixels' centres (the paper's and the common code's); False:
            edges.
    """

    def __init__(
        self,
        localise: nn.Module,
        width: int,
        size: tuple[int, int] | None = None,
        align_corners: bool = True,
    ):
        super().__init__(localise, size, align_corners)
        self.affine = nn.Linear(width, 6)
        nn.init.zeros_(self.affine.weight)
        with torch.no_grad():
            self.affine.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def theta(self, x: Tensor) -> Tensor:
        """The affine transformations (B, 2, 3), from output to input coordinates."""
        return self.affine(self.localise(x)).view(-1, 2, 3)

    def grid(self, x: Tensor, height: int, width: int) -> Tensor:
        return affine_grid(self.theta(x), height, width, self.align_corners)


class ThinPlateTransformer(_Transformer):
    r"""A spatial transformer that bends its window: (B, C, H, W) to (B, C, *size).

    The network chooses where each point of a regular grid of ``points`` x ``points`` over the output lies in the input
    (16 points, section 4 of the paper). A thin plate spline through them sends every other place p there, bent as
    little as possible (Bookstein, "Principal Warps", 1989):

    .. math:: T(p) = A \begin{pmatrix} 1 \\ p \end{pmatrix} + \sum_k w_k U(\lVert p - c_k \rVert), \qquad
        U(r) = r^2 \log r^2

    A and w solve a linear system whose matrix depends on the grid alone, so its inverse is taken once. The layer starts
    at weight 0 and the regular grid, so the module starts as the identity. Outside the input there are zeros.

    Args:
        localise, width, size, align_corners: as of :class:`SpatialTransformer`.
        points: of a side of the grid, at least 2.
    """

    regular: Tensor
    inverse: Tensor

    def __init__(
        self,
        localise: nn.Module,
        width: int,
        points: int = 4,
        size: tuple[int, int] | None = None,
        align_corners: bool = True,
    ):
        super().__init__(localise, size, align_corners)
        if points < 2:
            raise ValueError(f"points must be at least 2, got {points}")
        side = torch.linspace(-1, 1, points)
        regular = torch.cartesian_prod(side, side).flip(1)  # x and y, row by row
        self.register_buffer("regular", regular, persistent=False)
        count = len(regular)
        system = torch.zeros(count + 3, count + 3, dtype=torch.float64)
        system[:count] = _basis(regular.double(), regular.double())
        system[count:, :count] = system[:count, count:].T  # the bending sums to nothing affine
        self.register_buffer("inverse", system.inverse()[:, :count].float(), persistent=False)
        self.control = nn.Linear(width, 2 * count)
        nn.init.zeros_(self.control.weight)
        with torch.no_grad():
            self.control.bias.copy_(regular.flatten())

    def points(self, x: Tensor) -> Tensor:
        """Where the regular grid's points lie in the input, (B, points ** 2, 2), row by row, as x and y."""
        return self.control(self.localise(x)).view(-1, len(self.regular), 2)

    def grid(self, x: Tensor, height: int, width: int) -> Tensor:
        points = self.points(x)
        across, down = (pixel_places(points, count, self.align_corners) for count in (width, height))
        places = torch.stack(torch.broadcast_tensors(across[None], down[:, None]), 2).flatten(0, 1)
        share = _basis(places, self.regular.to(points.dtype)) @ self.inverse.to(points.dtype)
        return (share @ points).unflatten(1, (height, width))


def _basis(places: Tensor, centres: Tensor) -> Tensor:
    """The functions that a spline is a sum of, at places (N, 2): of each of K centres, 1, x and y; (N, K + 3)."""
    squares = (places[:, None] - centres).square().sum(2)
    return torch.cat([torch.xlogy(squares, squares), torch.ones_like(places[:, :1]), places], 1)
