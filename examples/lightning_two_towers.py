"""A Lightning module of two towers whose pairs find each other; CLIP's loss with a learned scale."""

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cmx_fast.losses import ClipLoss


class TwoTowers(pl.LightningModule):
    def __init__(self, clip_loss=ClipLoss):
        super().__init__()
        self.image_tower, self.audio_tower = nn.Linear(20, 16), nn.Linear(12, 16)
        self.logit_scale = nn.Parameter(torch.tensor(2.7))
        self.loss = clip_loss()
        self.values = []

    def training_step(self, batch, batch_idx):
        image, audio = batch
        image_features = F.normalize(self.image_tower(image), dim=-1)
        audio_features = F.normalize(self.audio_tower(audio), dim=-1)
        loss = self.loss(image_features, audio_features, self.logit_scale.exp())
        self.values.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def main(clip_loss=ClipLoss, steps=20):
    pl.seed_everything(0, verbose=False)
    hidden = torch.randn(64, 8)
    pairs = TensorDataset(hidden @ torch.randn(8, 20), hidden @ torch.randn(8, 12))
    module = TwoTowers(clip_loss)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(pairs, batch_size=32, shuffle=True))
    return module.values, module


if __name__ == "__main__":
    print("loss", *(f"{value:.4f}" for value in main()[0]))
