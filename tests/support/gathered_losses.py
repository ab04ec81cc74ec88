"""Losses over the processes of a group beside their originals; each process saves what it found as ``<rank>.pt``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

DIRECTIONS = {
    "one": (("query_to_doc",), "joint"),
    "two": (("query_to_doc", "doc_to_query"), "per_direction"),
    "all": (("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"), "joint"),
}


def rows(rank: int, count: int) -> list[Tensor]:
    """Embeddings (5, 12) of this process."""
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(5, 12, dtype=torch.float64, generator=generator) for _ in range(count)]


def value_and_gradients(loss: Any, inputs: list[Tensor]) -> list[Tensor]:
    """The loss's mean over the processes, and this process's gradients."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    mean = value.detach().clone()
    dist.all_reduce(mean)
    return [mean / dist.get_world_size(), *torch.autograd.grad(value, leaves)]


def _join(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)


def lightly(rank: int, world: int, folder: str) -> None:
    """NTXentLoss with gather_distributed, without and with a bank: pairs of lists, ours and theirs."""
    import lightly.loss

    from cmx_fast.losses import NTXentLoss

    _join(rank, world, folder)
    found = {}
    for name, size in (("views", 0), ("bank", (20, 12))):
        ours, theirs = (
            cls(0.2, memory_bank_size=size, gather_distributed=True)
            for cls in (NTXentLoss, lightly.loss.NTXentLoss)
        )
        ours, theirs = ours.double(), theirs.double()
        if size:
            ours.memory_bank.rows = theirs.memory_bank.bank.clone()
        for step in range(3):
            inputs = rows(10 * step + rank, 2)
            found[f"{name} {step}"] = tuple(value_and_gradients(loss, inputs) for loss in (ours, theirs))
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def sentence_transformers(rank: int, world: int, folder: str) -> None:
    """FusedMultipleNegativesRankingLoss with gather_across_devices: pairs of lists, ours and theirs."""
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from cmx_fast.losses.sentence_transformers import FusedMultipleNegativesRankingLoss

    _join(rank, world, folder)
    found = {}
    for name, (directions, partition) in DIRECTIONS.items():
        for negatives in (0, 2):
            options = {"directions": directions, "partition_mode": partition, "gather_across_devices": True}
            inputs = rows(rank, 2 + negatives)
            found[f"{name} {negatives}"] = tuple(
                value_and_gradients(
                    lambda *x, cls=cls, options=options: cls(
                        nn.Identity(), 10.0, **options
                    ).compute_loss_from_embeddings(list(x), None),
                    inputs,
                )
                for cls in (FusedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss)
            )
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
