"""OpenCLIP's training step on random pictures and texts: the import of the loss is all that changes."""

import math

import open_clip
import torch

from cmx_fast.losses import ClipLoss, SigLipLoss  # was: from open_clip.loss import ClipLoss, SigLipLoss


def main(loss_class=None, steps=20, sigmoid=False):
    """CLIP's softmax or, with ``sigmoid``, SigLIP's loss, for which the model learns a bias, too."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    start = {"init_logit_scale": math.log(10), "init_logit_bias": -10} if sigmoid else {}
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, output_dict=True, **start)
    images, texts = torch.randn(16, 3, 32, 32), torch.randint(1, 100, (16, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if sigmoid:
        loss = (loss_class or SigLipLoss)(rank=0, world_size=1)
    else:
        loss = (loss_class or ClipLoss)(gather_with_grad=False, cache_labels=True, rank=0, world_size=1)

    values = []
    for _ in range(steps):
        model_out = model(images, texts)
        losses = loss(**model_out, output_dict=True)
        total_loss = sum(losses.values())
        optimizer.zero_grad()
        total_loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        values.append(total_loss.item())
    return values, model


if __name__ == "__main__":
    print("loss", *(f"{value:.4f}" for value in main()[0]))
