"""PiCIE clusters the pixels of two views of a picture and learns the clusters as classes.

Cho et al., "PiCIE: Unsupervised Semantic Segmentation using Invariance and Equivariance in Clustering", CVPR 2021: the
baseline that C2L builds on, with its public code's objective. View 1 warps the picture, view 2 the map, by the same
geometric transform, so cell p of both shows the same place.

The encoder is a ResNet with a pyramid, which is trained as a whole, or a pyramid on the maps of a fixed encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.networks.fpn import FPN, MapShape, Pyramid
from cmx_fast.nn import warp
from cmx_fast.ops import cluster_cross_entropy
from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.train.trainable import Batch

#: Pictures that are represented at a time where no gradient is asked for. The paper clusters 192 together, for which
#: each of the attention's tensors has 630 MB. Normalisation by batches is in the encoder, which sees them all.
CHUNK = 32


class PiCIE(nn.Module):
    """A pyramid whose map is clustered without further layers.

    A training batch has the views "image1" (B, 3, S, S), which is warped, and "image2", which is not; "warp" (B, 2, 3),
    the geometric transform that :func:`cmx_fast.nn.warp` takes; and for each view v the epoch's clustering:
    "labels<v>" (B, side, side) int64, "centroids<v>" (K, D) and "weight<v>" (K,).

    Args:
        shapes: of a fixed encoder's maps; the networks then take packed maps (B, R) wherever pictures are named. None:
            the recipe's own ResNet.

    Attributes:
        side: cells along an edge of the maps; S / 4 with the ResNet.
        centroids: (K, D), the classifier of :meth:`logits`, set after training.
    """

    centroids: Tensor

    def __init__(self, recipe: C2LRecipe, shapes: Sequence[MapShape] | None = None):
        super().__init__()
        self.recipe = recipe
        self.encoder = new_encoder(recipe, shapes)
        self.side = recipe.size // 4 if isinstance(self.encoder, FPN) else self.encoder.side
        self.register_buffer("centroids", torch.zeros(recipe.test_clusters, recipe.width))

    def represent(self, maps: Tensor) -> Tensor:
        """Features to cluster from the pyramid's maps (B, D, h, w), of the same shape."""
        return maps

    def features(self, image: Tensor, theta: Tensor | None = None) -> Tensor:
        """Features to cluster of pictures (B, 3, S, S), (B, D, side, side); ``theta`` warps the pyramid's map.

        Where no gradient is asked for, :meth:`represent` sees :data:`CHUNK` pictures at a time; an exported program,
        whose batch has no fixed size, all at once.
        """
        maps = self.encoder(image)
        maps = maps if theta is None else warp(maps, theta)
        if torch.is_grad_enabled() or torch.compiler.is_exporting() or len(maps) <= CHUNK:
            return self.represent(maps)
        return torch.cat([self.represent(part) for part in maps.split(CHUNK)])

    def scores(self, image: Tensor) -> Tensor:
        """Unit features against the centroids: (B, 3, S, S) to (B, K, side, side).

        Where ``recipe.suppressed`` sets pixels to zero, whose products are all 0, half the centroids' squares are taken
        off: the largest score is then the nearest centroid's.
        """
        features = F.normalize(self.features(image).float(), dim=1)
        bias = -self.centroids.square().sum(1) / 2 if self.recipe.suppressed else None
        return F.conv2d(features, self.centroids[:, :, None, None], bias)

    def logits(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """The scores, enlarged bilinearly (PiCIE's code): (B, 3, S, S) to (B, K, *size)."""
        return F.interpolate(self.scores(image), size, mode="bilinear")

    def forward(self, batch: Batch) -> Batch:
        return {
            "view1": self.features(batch["image1"]),
            "view2": self.features(batch["image2"], batch["warp"]),
        }

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        """Loss and its halves: "cluster" within the views, and with ``recipe.cross_view`` "across", between them.

        Without it the loss is the sum of those within the views (C2L's eq. 7).
        """
        within = (cluster_loss(outputs, batch, 1, 1) + cluster_loss(outputs, batch, 2, 2)) / 2
        if not self.recipe.cross_view:
            return {"loss": 2 * within, "cluster": within}
        across = (cluster_loss(outputs, batch, 1, 2) + cluster_loss(outputs, batch, 2, 1)) / 2
        return {"loss": (within + across) / 2, "cluster": within, "across": across}


def new_encoder(recipe: C2LRecipe, shapes: Sequence[MapShape] | None) -> FPN | Pyramid:
    """The recipe's ResNet with a pyramid, or a pyramid on a fixed encoder's maps of these shapes."""
    if shapes is None:
        return FPN(recipe.backbone, recipe.width, recipe.attention, recipe.gradients)
    return Pyramid(shapes, recipe.width, max(shapes[0][1], recipe.size // recipe.grid_stride))


def cluster_loss(outputs: Batch, batch: Batch, features: int, clusters: int) -> Tensor:
    """L_clust of C2L's eq. 7: cross-entropy of one view's unit features against one view's clusters."""
    loss, _ = cluster_cross_entropy(
        outputs[f"view{features}"],
        batch[f"centroids{clusters}"],
        target=batch[f"labels{clusters}"],
        weight=batch[f"weight{clusters}"],
        normalize=True,
    )
    return loss
