"""Trains a small picture encoder without labels: two views of the same scene find each other in a batch.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020. It serves where
there are no weights of SwAV's. The generator knows a picture by these features alone, so they have to hold more than
colour.
"""

from __future__ import annotations

from torch import nn

from cmx_fast.losses import NTXentLoss
from cmx_fast.networks.picture_encoder import PictureEncoder
from cmx_fast.train.trainable import Batch


class PictureContrast(nn.Module):
    """Trains a picture encoder's network in place, with two layers behind it that are dropped afterwards.

    A batch has "view0" and "view1", float32 (B, 3, H, W) in [0, 1].
    """

    def __init__(self, encoder: PictureEncoder, temperature: float = 0.2, embedding: int = 64):
        super().__init__()
        # Not the encoder itself, which stays in evaluation mode.
        self.standardise = encoder.standardise
        self.network = encoder.resnet.requires_grad_(True)
        width = encoder.width
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, embedding))
        self.contrast = NTXentLoss(temperature)

    def forward(self, batch: Batch) -> Batch:
        return {
            name: self.head(self.network(self.standardise(batch[name]).contiguous()))
            for name in ("view0", "view1")
        }

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        return {"loss": self.contrast(outputs["view0"], outputs["view1"])}
