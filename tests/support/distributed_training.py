"""A stage of the training runtime in several processes; each saves its results as ``<rank>.pt``."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from cmx_fast import distributed, ops
from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.sets.scenes import open_scenes
from cmx_fast.losses import MemoryBank
from cmx_fast.systems.sound2scene.data import SoundBatches
from cmx_fast.systems.sound2scene.icgan.data import NeighbourBatches
from cmx_fast.systems.sound2scene.icgan.model import ICGAN, TURNS
from cmx_fast.systems.sound2scene.icgan.recipe import ICGANRecipe
from cmx_fast.train.fabric import new_fabric
from cmx_fast.train.loop import Interrupted, Stage, run_stage
from cmx_fast.train.run_folder import RunFolder

DIM = 12


class _Queued(torch.nn.Module):
    """An encoder whose keys go into a bank of negatives, as CMAC's; its heads share a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.bank = torch.nn.Linear(10, DIM), MemoryBank(24, DIM, persistent=True)
        self.heads = torch.nn.ModuleList([torch.nn.Linear(DIM, DIM)] * 2)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"query": self.heads[0](self.layer(batch["x"])), "key": self.heads[1](batch["y"]).detach()}

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        index = distributed.all_rows(batch["index"])
        bank = self.bank.without(index)
        loss = ops.info_nce(
            outputs["query"], outputs["key"], 2.0, bank=bank, in_batch=False, symmetric=False, normalize=True
        )
        keys = torch.nn.functional.normalize(outputs["key"], dim=1)
        self.bank.enqueue(distributed.all_rows(keys), index)
        return {"loss": loss * self.scale[0]}


def train_with_a_bank(how: str, rank: int, world: int, folder: str) -> None:
    """A stage of the training runtime as torchrun starts it, stopped once by SIGTERM; weights, bank and metrics."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29400 + int(Path(folder).stat().st_ino) % 4000),
    }  # fmt: skip
    torch.set_num_threads(1)
    fabric = new_fabric("fp32", fsdp=how == "fsdp")
    config = {"command": "test", "processes": world}

    def batches(start: int) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(2)
        for step in range(8):
            whole = {
                "x": torch.randn(8, 10, generator=generator),
                "y": torch.randn(8, DIM, generator=generator),
            }
            whole["index"] = torch.randint(40, (8,), generator=generator)
            if step >= start:
                if step == 4 and start == 0 and rank == world - 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield {name: value.tensor_split(world)[rank] for name, value in whole.items()}

    interruptions = 0
    while True:
        torch.manual_seed(1 + rank)  # the first process's weights count
        module = _Queued()
        groups = [{"params": list(module.parameters()), "lr": 0.05}]
        run = RunFolder(Path(folder, "run"), config, resume=bool(interruptions), writer=fabric.is_global_zero)
        try:
            trained = run_stage(fabric, run, Stage("s", module, groups, 8, batches, seed=1, labels=None))
            break
        except Interrupted:
            interruptions += 1
            run.close()
            fabric.barrier()  # the others must not look before the checkpoint is written
    # Rows from before the interruption are the first process's in all of them.
    losses = [float(fabric.all_reduce(torch.tensor(row["loss"]))) for row in run.rows()[5:]]
    actual = {
        "state": trained.state_dict(),
        "losses": losses,
        "interruptions": interruptions,
        "sharded": isinstance(module, FSDPModule),
    }
    torch.save(actual, Path(folder, f"{rank}.pt"))
    # Gloo's threads can abort an interpreter on its way out: they let go of tensors then (torch 2.11).
    os._exit(0)


def train_players(batch: int, accumulate: int, rank: int, world: int, folder: str) -> None:
    """A few steps of an IC-GAN whose batches are divided over processes and passes; weights and metrics."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29400 + int(Path(folder).stat().st_ino) % 4000),
    }  # fmt: skip
    torch.set_num_threads(1)
    fabric = new_fabric("fp32", players=True)
    recipe = ICGANRecipe.preset("demo", width=8, dim_z=8, condition=6, batch=batch, average_from=1)
    data = SceneData(open_scenes("pictures", Path(folder), "train"), size=64, workers=0)
    features = torch.randn(len(data), 12, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    module = ICGAN(recipe, 12)
    batches = NeighbourBatches(
        data, features, None, 3, batch // accumulate, 0, "cpu", rank=rank, world=world
    )  # fmt: skip
    groups = [
        {"params": list(part.parameters()), "lr": 1e-3} for part in (module.generator, module.discriminator)
    ]
    run = RunFolder(Path(folder, "run"), {"command": "test"}, writer=fabric.is_global_zero)
    it = Stage(
        "s", module, groups, 3, batches, seed=1, labels=None, turns=TURNS, accumulate=accumulate,
        after_step=module.update_average,
    )  # fmt: skip
    run_stage(fabric, run, it)
    numbers = [draw.picture for draw in map(batches._draw, range(2))]
    state = dict(module.named_parameters())
    torch.save(
        {"state": state, "pictures": torch.stack(numbers), "rows": len(run.rows())},
        Path(folder, f"{rank}.pt"),
    )
    os._exit(0)


def hear_broken_files(rank: int, world: int, folder: str) -> None:
    """Two epochs of sounds, of which one breaks in every process, and one picture only in the first's hands."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29400 + int(Path(folder).stat().st_ino) % 4000),
    }  # fmt: skip
    torch.set_num_threads(1)
    fabric = new_fabric("fp32")
    data = SceneData(open_scenes("pairs", Path(folder), "train"), seconds=0.1, workers=0)
    features = torch.arange(len(data)).float()[:, None].repeat(1, 4)
    if rank == 0:
        features[0] = float("nan")
    batches = SoundBatches(data, features, 3, 0, "cpu", rank=rank, world=world)
    steps = []
    for batch in islice(batches(0), 2 * batches.steps_per_epoch):
        everyone = fabric.all_gather(batch)  # waits for ever, or fails, where the rows are not equally many
        steps.append(everyone["picture"][..., 0].long())
    skipped = [path.name for path, _ in data.skipped]
    torch.save({"steps": torch.stack(steps), "skipped": skipped}, Path(folder) / f"{rank}.pt")
    fabric.barrier()  # nobody leaves while the other still speaks to it
    torch.distributed.destroy_process_group()
