"""lightly's MoCo with a bank of past keys, and its bank of nearest neighbours (NNCLR) before the same loss."""

import copy

import torch
from lightly.models.modules import MoCoProjectionHead, NNMemoryBankModule
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import nn

from cmx_fast.losses import NTXentLoss  # was: from lightly.loss import NTXentLoss


def main(ntxent_loss=NTXentLoss, steps=20, neighbours=False):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 32), nn.ReLU())
    model = nn.Sequential(backbone, MoCoProjectionHead(32, 32, 16))
    model_momentum = copy.deepcopy(model)
    deactivate_requires_grad(model_momentum)
    torch.manual_seed(1)
    memory_bank = NNMemoryBankModule(size=(256, 16)) if neighbours else None
    torch.manual_seed(2)  # the loss draws its bank
    criterion = ntxent_loss() if neighbours else ntxent_loss(memory_bank_size=(256, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    torch.manual_seed(3)
    pictures = torch.randn(16, 3, 8, 8)

    values = []
    for _ in range(steps):
        x_query, x_key = (pictures + 0.5 * torch.randn_like(pictures) for _ in range(2))
        update_momentum(model, model_momentum, m=0.99)
        query, key = model(x_query), model_momentum(x_key)
        if memory_bank is not None:
            key = memory_bank(key, update=True).detach()
        loss = criterion(query, key)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values, model


if __name__ == "__main__":
    print("MoCo ", *(f"{value:.4f}" for value in main()[0]))
    print("NNCLR", *(f"{value:.4f}" for value in main(neighbours=True)[0]))
