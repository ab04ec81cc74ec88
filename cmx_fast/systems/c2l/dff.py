"""DFF: concepts as the factors of a network's activations; C2L's second baseline.

Collins et al., "Deep Feature Factorization For Concept Discovery", ECCV 2018, with the numbers of its public code.
Nothing is trained: the pictures to be segmented are factorised together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from cmx_fast.networks.fpn import MapShape
from cmx_fast.systems.c2l.picie import new_encoder
from cmx_fast.systems.c2l.recipe import C2LRecipe

#: Iterations between two checks of the error.
CHECK_EVERY = 10


class DFF(nn.Module):
    """An encoder whose rectified activations of all pictures are factorised into ``recipe.test_clusters`` concepts.

    ``shapes``: as :class:`cmx_fast.systems.c2l.picie.PiCIE`.
    """

    def __init__(self, recipe: C2LRecipe, shapes: Sequence[MapShape] | None = None):
        super().__init__()
        self.recipe = recipe
        self.encoder = new_encoder(recipe, shapes)

    @torch.no_grad()
    def heat_maps(self, images: Iterable[Tensor], generator: torch.Generator) -> Tensor:
        """Maps of the concepts in every picture of the batches (B, 3, S, S): (pictures, K, h, w) float32 on the CPU.

        Their stride is 4, 8, 16 or 32 after ``recipe.dff_stage`` 1 to 4; a fixed encoder with fewer maps gives its
        coarsest. Memory: all activations at once.
        """
        recipe, stages = self.recipe, []
        for batch in images:
            activations = self.encoder.activations(batch)
            stages.append(activations[min(recipe.dff_stage, len(activations)) - 1].float())
        maps = torch.cat(stages)
        rows = maps.permute(0, 2, 3, 1).flatten(0, 2)
        strengths, _ = factorise(
            rows, recipe.test_clusters, generator, recipe.dff_iterations, recipe.dff_tolerance
        )
        return strengths.unflatten(0, (len(maps), *maps.shape[2:])).permute(0, 3, 1, 2).cpu()


def factorise(
    rows: Tensor, factors: int, generator: torch.Generator, iterations: int = 200, tolerance: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Factorise ``rows`` (P, C) into strengths (P, K) and unit factors (K, C); all three are non-negative.

    Lee and Seung's multiplicative updates of the Frobenius norm start from |N(0, 1)| * sqrt(mean / K). They end after
    ``iterations``, or where ten of them lessen the error by less than ``tolerance`` of the first error. The factors'
    norms are moved to the strengths (ours: the product leaves them open, and the largest strength decides).

    Raises:
        ValueError: ``rows`` has negative or non-finite values.
    """
    if not (rows >= 0).all() or not rows.isfinite().all():
        raise ValueError("rows must be finite and not negative; take activations after a ReLU")
    scale = math.sqrt(float(rows.mean()) / factors)
    left, right = (
        scale * torch.randn(shape, generator=generator).abs().to(rows)
        for shape in ((len(rows), factors), (factors, rows.shape[1]))
    )
    tiny = torch.finfo(rows.dtype).tiny
    first = previous = float((rows - left @ right).norm())
    for iteration in range(1, iterations + 1):
        left = left * (rows @ right.T) / (left @ (right @ right.T) + tiny)
        right = right * (left.T @ rows) / (left.T @ left @ right + tiny)
        if iteration % CHECK_EVERY == 0:
            error = float((rows - left @ right).norm())
            if previous - error < tolerance * first:
                break
            previous = error
    norms = right.norm(dim=1)
    return left * norms, right / norms.clamp_min(tiny)[:, None]
