"""The two views of a picture that C2L and PiCIE compare."""

from __future__ import annotations

import torch
from torch import Tensor

from cmx_fast.data.transforms.picture_views import Views
from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.train.trainable import Batch


def draw_views(
    recipe: C2LRecipe, images: Tensor | None, index: Tensor, seed: int, epoch: int, device: torch.device
) -> Batch:
    """The epoch's views of the pictures ``index`` (B,): "image1" and "image2" (B, 3, S, S), and "warp" (B, 2, 3).

    Without ``images`` (B, 3, S, S) only "warp".
    """
    drawn = Views(
        index,
        seed=seed,
        epoch=epoch,
        jitter=recipe.jitter,
        hue=recipe.hue,
        smallest_crop=recipe.smallest_crop,
        device=device,
    )
    if images is None:
        return {"warp": drawn.theta}
    return {
        "image1": drawn.geometric(drawn.photometric(images, 1)),
        "image2": drawn.photometric(images, 2),
        "warp": drawn.theta,
    }
