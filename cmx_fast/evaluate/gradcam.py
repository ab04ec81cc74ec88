"""Grad-CAM: the parts of a picture that raise a score of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gradcam(
    encoder: nn.Module, image: Tensor, score: Callable[[Tensor], Tensor], layer: str = "layer4"
) -> Tensor:
    """Heat maps in [0, 1] of the pictures' own scores: (B, 3, S, S) -> (B, S, S).

    Channel weights are the spatial means of d score / d activation of the layer's last block; the map is the
    positive part of the weighted sum, shifted and scaled to [0, 1] per picture and resized (Selvaraju et al.
    2017, with the normalisation of the code that the CSIR paper uses).

    Args:
        encoder: the image encoder to look into.
        score: from the encoder's output (B, D) to a score of each picture (B,).
        layer: name of a ResNet stage; the paper's is "layer4".
    """
    stages = [name for name, _ in encoder.named_children() if name.startswith("layer")]
    if layer not in stages:
        raise ValueError(f"layer must be one of {', '.join(stages)}; got {layer!r}")
    kept: list[Tensor] = []
    hook = getattr(encoder, layer)[-1].register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(score(encoder(image)).sum(), kept[0])
    finally:
        hook.remove()
        encoder.train(was_training)
    weights = gradient.mean((2, 3), keepdim=True)
    heat = F.relu((weights * kept[0].detach()).sum(1, keepdim=True))
    heat = heat - heat.amin((2, 3), keepdim=True)
    heat = heat / (1e-7 + heat.amax((2, 3), keepdim=True))
    return F.interpolate(heat, size=image.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
