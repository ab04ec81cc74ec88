"""info-nce-pytorch's loss with explicit negatives, the same for all queries or each query's own."""

import torch
from torch import nn

from cmx_fast.losses import InfoNCE  # was: from info_nce import InfoNCE


def main(info_nce=InfoNCE, steps=20, negative_mode="unpaired"):
    torch.manual_seed(0)
    encoder = nn.Linear(20, 16)
    loss = info_nce(temperature=0.1, negative_mode=negative_mode)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    batch_size, num_negative = 16, 24
    items = torch.randn(batch_size, 20)
    others = torch.randn(
        *((num_negative,) if negative_mode == "unpaired" else (batch_size, num_negative)), 20
    )

    values = []
    for _ in range(steps):
        query, positive_key = (encoder(items + 0.5 * torch.randn_like(items)) for _ in range(2))
        negative_keys = encoder(others)
        output = loss(query, positive_key, negative_keys)
        optimizer.zero_grad()
        output.backward()
        optimizer.step()
        values.append(output.item())
    return values, encoder


if __name__ == "__main__":
    for mode in ("unpaired", "paired"):
        print(mode, *(f"{value:.4f}" for value in main(negative_mode=mode)[0]))
