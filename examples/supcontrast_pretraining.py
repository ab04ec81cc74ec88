"""SupContrast's pretraining loop on random pictures with classes, two views of each."""

import torch
import torch.nn.functional as F
from torch import nn

from cmx_fast.losses import SupConLoss  # was: from losses import SupConLoss


def main(sup_con_loss=SupConLoss, steps=20):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 32), nn.ReLU(), nn.Linear(32, 16))
    criterion = sup_con_loss(temperature=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    labels = torch.arange(24) % 4
    pictures = torch.randn(4, 3, 8, 8)[labels]

    values = []
    for _ in range(steps):
        views = [pictures + 0.5 * torch.randn_like(pictures) for _ in range(2)]
        images = torch.cat(views, dim=0)
        bsz = labels.shape[0]
        features = F.normalize(model(images), dim=1)
        f1, f2 = torch.split(features, [bsz, bsz], dim=0)
        features = torch.cat([f1.unsqueeze(1), f2.unsqueeze(1)], dim=1)
        loss = criterion(features, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values, model


if __name__ == "__main__":
    print("loss", *(f"{value:.4f}" for value in main()[0]))
