"""lightly's SimCLR over two processes: every process has the rows of both as negatives."""

import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightly.models.modules import SimCLRProjectionHead
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cmx_fast.losses import NTXentLoss  # was: from lightly.loss import NTXentLoss


class SimCLR(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 32), nn.ReLU())
        self.projection_head = SimCLRProjectionHead(32, 32, 16, batch_norm=False)

    def forward(self, x):
        return self.projection_head(self.backbone(x).flatten(start_dim=1))


def train(rank, world_size, folder, ntxent_loss=NTXentLoss, steps=20):
    """Train as one process of a group and save its losses, averaged over the group, and the model's gradients."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world_size)
    torch.manual_seed(0)
    model = DistributedDataParallel(SimCLR())
    criterion = ntxent_loss(temperature=0.5, gather_distributed=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1 + rank)
    pictures = torch.randn(16, 3, 8, 8)

    values = []
    for _ in range(steps):
        x0, x1 = (pictures + 0.5 * torch.randn_like(pictures) for _ in range(2))
        z0, z1 = model(x0), model(x1)
        loss = criterion(z0, z1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        values.append(mean.item() / world_size)
    torch.save((values, [p.grad for p in model.parameters()]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def main(ntxent_loss=NTXentLoss, steps=20, world_size=2):
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(train, (world_size, folder, ntxent_loss, steps), nprocs=world_size)
        return torch.load(f"{folder}/0.pt")


if __name__ == "__main__":
    print("loss", *(f"{value:.4f}" for value in main()[0]))
