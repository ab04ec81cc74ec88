"""timm's ResNet with an attention module of this package in every block."""

import timm
import torch
import torch.nn.functional as F

from cmx_fast.nn.attention import CBAM


def main(attention=CBAM, steps=8):
    torch.manual_seed(0)
    model = timm.create_model(
        "resnet18",
        num_classes=4,
        channels=(16, 16, 32, 32),
        stem_width=16,
        block_args={"attn_layer": attention},
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    labels = torch.arange(16) % 4
    pictures = torch.randn(4, 3, 64, 64)[labels] + 0.3 * torch.randn(16, 3, 64, 64)

    values = []
    for _ in range(steps):
        loss = F.cross_entropy(model(pictures), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values, model


if __name__ == "__main__":
    print("loss", *(f"{value:.4f}" for value in main()[0]))
