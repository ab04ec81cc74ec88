"""CMAC trained and fine-tuned in several processes, as torchrun starts them."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from cmx_fast.systems.cmac.commands import evaluate_finetune, train_cmac
from cmx_fast.systems.cmac.data import ClipBatches

TINY = [
    "size=32", "short_side=32", "frames=4", "fps=6.0", "seconds=0.5", "width=8", "audio_width=8", "filters=16",
    "embedding=8", "epochs=1", "batch=8", "clips=2", "bank=16",
]  # fmt: skip


def train_and_fine_tune(rank: int, world: int, folder: str) -> None:
    """Train on ``<folder>/clips``, fine-tune on it, and save the recordings of this process's batches."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29400 + int(Path(folder).stat().st_ino) % 4000),
    }  # fmt: skip
    torch.set_num_threads(1)
    data, run = Path(folder, "clips"), Path(folder, "run")
    train_cmac(data, out=run, preset="demo", recordings=7, set=TINY)
    seen: list[list[int]] = []
    augment = ClipBatches._augment

    def watched(self, loaded, epoch, suffix):
        seen.append(loaded["index"].tolist())
        return augment(self, loaded, epoch, suffix)

    ClipBatches._augment = watched
    evaluate_finetune(run, data, "kinetics", set=["epochs=1", "clips=1", "batch=8"])
    torch.save(seen, Path(folder, f"{rank}.pt"))
    # Gloo's threads can abort an interpreter on its way out: they let go of tensors then (torch 2.11).
    os._exit(0)
