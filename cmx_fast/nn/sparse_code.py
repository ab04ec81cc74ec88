"""A learned dictionary whose sparse codes rebuild the input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmx_fast.ops import sparse_code


class SparseCode(nn.Module):
    """Sparse coding in the place of a feed-forward network (C2L section 3.3): (*, C) to D a and the codes a (*, k).

    The dictionary D (C, k) starts from random unit columns. Call :meth:`project_` after every optimiser step: the paper
    keeps the columns in the unit ball (eq. 3), without which the codes' penalty would only make them grow.

    Args:
        features: C.
        atoms: k, fewer than C in the paper.
        steps, lam: as in :func:`cmx_fast.ops.sparse_code`; the paper names neither, the defaults are ours.
    """

    def __init__(self, features: int, atoms: int, *, steps: int = 10, lam: float = 0.1):
        super().__init__()
        self.steps, self.lam = steps, lam
        self.dictionary = nn.Parameter(nn.functional.normalize(torch.randn(features, atoms), dim=0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        codes = sparse_code(x, self.dictionary, steps=self.steps, lam=self.lam)
        return codes @ self.dictionary.T.to(codes.dtype), codes

    @torch.no_grad()
    def project_(self) -> None:
        """Divide the columns that are longer than 1 by their norms."""
        self.dictionary.div_(self.dictionary.norm(dim=0).clamp_min(1))

    def extra_repr(self) -> str:
        features, atoms = self.dictionary.shape
        return f"{features}, {atoms}, steps={self.steps}, lam={self.lam}"
