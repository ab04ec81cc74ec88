"""A classifier of real frames, which judges generated pictures where no pretrained network is at hand."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.networks.picture_encoder import small_resnet

#: Pixels that pictures are resized to.
SIZE = 64
STEPS, BATCH, PEAK = 300, 64, 3e-3


class FrameClassifier(nn.Module):
    """A small ResNet on 64 pixels: pictures (B, 3, H, W) in [0, 1] to logits (B, classes)."""

    def __init__(self, classes: int):
        super().__init__()
        self.network = small_resnet()
        self.head = nn.Linear(128, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.features(pictures))

    def features(self, pictures: Tensor) -> Tensor:
        """The last layer's input, (B, 128)."""
        if pictures.shape[2:] != (SIZE, SIZE):
            pictures = F.interpolate(pictures, (SIZE, SIZE), mode="bilinear", antialias=True)
        return self.network(2 * pictures - 1)


def train_classifier(
    pictures: Tensor, labels: Tensor, classes: int, *, seed: int = 0, device: torch.device | str = "cpu"
) -> FrameClassifier:
    """Train a classifier on uint8 pictures (N, 3, S, S) and their labels (N,); half a minute on two cores.

    Pictures are mirrored, shifted by up to an eighth and changed in brightness at random, the same on any device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = FrameClassifier(classes).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(classifier.parameters(), PEAK, weight_decay=1e-2)
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = PEAK * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            index = torch.randint(len(pictures), (BATCH,))
            logits = classifier(_vary(pictures[index]).to(device))
            loss = F.cross_entropy(logits, labels[index].to(device), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return classifier.eval()


def _vary(pictures: Tensor) -> Tensor:
    """Change the brightness of pictures, mirror and shift them at random."""
    images = pictures.float() / 255 * (1 + 0.3 * (2 * torch.rand(len(pictures), 1, 1, 1) - 1))
    theta = torch.eye(2, 3).repeat(len(images), 1, 1)
    theta[:, 0, 0] = torch.where(torch.rand(len(images)) < 0.5, 1.0, -1.0)
    theta[:, :, 2] = (2 * torch.rand(len(images), 2) - 1) / 4
    grid = F.affine_grid(theta, [len(images), 3, SIZE, SIZE], align_corners=False)
    return F.grid_sample(images.clamp(0, 1), grid, padding_mode="reflection", align_corners=False)


@torch.no_grad()
def probabilities(classifier: FrameClassifier, pictures: Tensor, batch: int = 64) -> Tensor:
    """Probabilities float32 (N, classes) of pictures (N, 3, H, W), uint8 or float in [0, 1]; on the CPU."""
    device = next(classifier.parameters()).device
    own = (part.to(device) for part in pictures.split(batch))
    parts = [classifier(part / 255 if part.dtype == torch.uint8 else part).softmax(1).cpu() for part in own]
    return torch.cat(parts)
