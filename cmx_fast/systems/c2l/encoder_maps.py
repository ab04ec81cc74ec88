"""A fixed encoder's maps of pictures and of their views, computed once for all models and seeds of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from cmx_fast.data.loaders.upload import upload
from cmx_fast.networks.fpn import pack
from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.systems.c2l.data import Pictures
from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.systems.c2l.views import draw_views
from cmx_fast.train.frozen_features import frozen_rows, rows_key
from cmx_fast.train.trainable import Batch

#: Pictures that go through the encoder at a time.
BATCH = 32


def keep_maps(
    pictures: Pictures, encoder: VisualEncoder, recipe: C2LRecipe, file: Path | None = None
) -> None:
    """Put the encoder's maps in the place of the pictures; they are read from ``file`` if it has them."""

    def compute() -> Iterator[tuple[Tensor, Tensor]]:
        yield from _loaded(pictures, "maps")

    pictures.maps = _kept(pictures, encoder, recipe, [], len(pictures), compute, file)


@dataclass
class KeptViews:
    """The maps of ``recipe.kept_views`` draws of every picture's two views.

    Attributes:
        maps: (draws * 2 * pictures, R) float16: each draw has the first views of all pictures, then the second.
    """

    maps: Tensor
    pictures: Pictures
    recipe: C2LRecipe

    def views(self, index: Tensor, epoch: int) -> Batch:
        """The views of some pictures in this epoch, as :func:`cmx_fast.systems.c2l.views.draw_views` gives them."""
        draw, count = epoch % self.recipe.kept_views, len(self.pictures)
        rows = [self.maps[(2 * draw + view) * count + index] for view in (0, 1)]
        device = self.pictures.device
        theta = draw_views(self.recipe, None, index, 0, draw, device)["warp"]
        return {
            "image1": upload(rows[0], device).float(),
            "image2": upload(rows[1], device).float(),
            "warp": theta,
        }


def keep_views(
    pictures: Pictures, encoder: VisualEncoder, recipe: C2LRecipe, file: Path | None = None
) -> KeptViews:
    """Draw the views once, by seed 0 for all models and seeds, and keep their maps, or read them from ``file``."""
    count = len(pictures)

    def compute() -> Iterator[tuple[Tensor, Tensor]]:
        for draw in range(recipe.kept_views):
            for index, images in _loaded(pictures, f"views {draw + 1} of {recipe.kept_views}"):
                views = draw_views(recipe, images, index, 0, draw, images.device)
                for view in (0, 1):
                    yield (2 * draw + view) * count + index, views[f"image{view + 1}"]

    settings = [recipe.kept_views, recipe.jitter, recipe.hue, recipe.smallest_crop]
    total = 2 * recipe.kept_views * count
    return KeptViews(_kept(pictures, encoder, recipe, settings, total, compute, file), pictures, recipe)


def _loaded(pictures: Pictures, title: str) -> Iterable[tuple[Tensor, Tensor]]:
    """Indices and pictures of all batches, with a progress bar."""
    batches = torch.arange(len(pictures)).split(BATCH)
    return track(
        pictures.load_images(batches),
        title,
        total=len(batches),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


def _kept(
    pictures: Pictures,
    encoder: VisualEncoder,
    recipe: C2LRecipe,
    settings: Sequence[object],
    count: int,
    inputs: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    file: Path | None,
) -> Tensor:
    """The packed maps of ``inputs``, row numbers (B,) and pictures (B, 3, S, S), float16 (count, R)."""
    shapes = encoder.map_shapes(recipe.size, recipe.map_stride)
    dataset = pictures.dataset
    paths = [dataset.path(i) for i in range(len(dataset))]
    key = rows_key([encoder.fingerprint(), shapes, recipe.backend, *settings], paths)
    length = sum(channels * height * width for channels, height, width in shapes)
    encoder.to(pictures.device)

    @torch.no_grad()
    def compute() -> Iterator[tuple[Tensor, Tensor]]:
        for rows, images in inputs():
            yield rows, pack(encoder.maps(images)[-len(shapes) :])

    return frozen_rows(file, key, (count, length), compute, torch.float16)
