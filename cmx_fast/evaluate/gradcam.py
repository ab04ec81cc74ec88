"""Grad-CAM: the parts of a picture that raise a score of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gradcam(
    encoder: nn.Module, image: Tensor, score: Callable[[Tensor], Tensor], layer: str | nn.Module = "layer4"
) -> Tensor:
    """Heat maps in [0, 1] of the pictures' own scores: (B, 3, S, S) -> (B, S, S).

    Channel weights are the spatial means of d score / d activation of the layer's last block; the map is the
    positive part of the weighted sum, shifted and scaled to [0, 1] per picture and resized (Selvaraju et al.
    2017, with the normalisation of the code that the CSIR paper uses).

    Args:
        encoder: the image encoder to look into.
        score: from the encoder's output (B, D) to a score of each picture (B,).
        layer: name of a ResNet stage, of which the last block is looked at; the paper's is "layer4". Or a module, such
            as :func:`last_map` finds.
    """
    if isinstance(layer, str):
        stages = [name for name, _ in encoder.named_children() if name.startswith("layer")]
        if layer not in stages:
            raise ValueError(f"layer must be one of {', '.join(stages)}; got {layer!r}")
    looked_at: nn.Module = getattr(encoder, layer)[-1] if isinstance(layer, str) else layer
    kept: list[Tensor] = []
    hook = looked_at.register_forward_hook(lambda module, inputs, output: kept.append(output))
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.enable_grad():
            outputs = encoder(
                image.detach().requires_grad_()
            )  # a fixed encoder's own weights ask for no gradient
            (gradient,) = torch.autograd.grad(score(outputs).sum(), kept[-1])
    finally:
        hook.remove()
        encoder.train(was_training)
    weights = gradient.mean((2, 3), keepdim=True)
    heat = F.relu((weights * kept[-1].detach()).sum(1, keepdim=True))
    heat = heat - heat.amin((2, 3), keepdim=True)
    heat = heat / (1e-7 + heat.amax((2, 3), keepdim=True))
    return F.interpolate(heat, size=image.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


@torch.no_grad()
def last_map(encoder: nn.Module, image: Tensor) -> nn.Module:
    """The module that gives the encoder's last map (B, C, h, w) of pictures, before they are pooled.

    Raises:
        ValueError: the encoder has no map of channels behind its first layer, as a ViT of tokens.
    """
    given: list[nn.Module] = []

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[2:]) > 1:
            given.append(module)

    leaves = [module for module in encoder.modules() if not any(module.children())]
    hooks = [module.register_forward_hook(keep) for module in leaves]
    try:
        encoder(image)
    finally:
        for hook in hooks:
            hook.remove()
    if len(given) < 2:
        raise ValueError(
            "the picture encoder is one of tokens, without the maps of channels that Grad-CAM reads"
        )
    return given[-1]
