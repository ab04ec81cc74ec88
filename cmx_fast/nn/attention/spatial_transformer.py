"""A spatial transformer: the network chooses an affine window of its input and reads it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.nn.warp import affine_grid


class SpatialTransformer(nn.Module):
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
        super().__init__()
        self.localise, self.size, self.align_corners = localise, size, align_corners
        self.affine = nn.Linear(width, 6)
        nn.init.zeros_(self.affine.weight)
        with torch.no_grad():
            self.affine.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def theta(self, x: Tensor) -> Tensor:
        """The affine transformations (B, 2, 3), from output to input coordinates."""
        return self.affine(self.localise(x)).view(-1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError(f"x must have shape (B, C, H, W), got {tuple(x.shape)}")
        height, width = self.size or x.shape[2:]
        grid = affine_grid(self.theta(x), height, width, self.align_corners)
        return F.grid_sample(x, grid, align_corners=self.align_corners)
