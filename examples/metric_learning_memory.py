"""pytorch-metric-learning's loop with a miner and a memory of past batches around the loss."""

import torch
from pytorch_metric_learning import losses, miners
from torch import nn

from cmx_fast.losses.metric_learning import (
    SupConLoss,
)  # was: from pytorch_metric_learning.losses import SupConLoss


def main(sup_con_loss=SupConLoss, steps=20):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16))
    mining_func = miners.MultiSimilarityMiner()
    loss_func = losses.CrossBatchMemory(sup_con_loss(), embedding_size=16, memory_size=64, miner=mining_func)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    centres = torch.randn(6, 20)

    values = []
    for _ in range(steps):
        labels = torch.randint(6, (24,))
        data = centres[labels] + 0.5 * torch.randn(24, 20)
        optimizer.zero_grad()
        embeddings = model(data)
        loss = loss_func(embeddings, labels)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values, model


if __name__ == "__main__":
    print("loss", *(f"{value:.4f}" for value in main()[0]))
