"""``cmx evaluate finetune``: action recognition by fine-tuning the video encoder of a CMAC run."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor, nn

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.data.sets.video_sets import VIDEO_SETS
from cmx_fast.distributed import all_rows
from cmx_fast.options import EncoderFile, Precision, Resume, Set, SyncBN
from cmx_fast.systems.cmac.data import ClipBatches
from cmx_fast.systems.cmac.downstream import adapters, open_model
from cmx_fast.systems.cmac.features import open_clips, spaced_clips
from cmx_fast.systems.cmac.frame_maps import keep_frame_maps, maps_file
from cmx_fast.systems.cmac.model import CMAC, VideoEncoder, video_encoder
from cmx_fast.systems.cmac.options import CMACRun, DataFolder, RunSeed
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.train.frozen_features import run_encoder
from cmx_fast.train.initial import initialised
from cmx_fast.train.loop import Stage
from cmx_fast.train.run_folder import RunFolder
from cmx_fast.train.session import Session
from cmx_fast.train.settings import Amount, Checked, Count, Share, ShareBelowOne, Size, changes
from cmx_fast.train.trainable import Batch


@dataclass(frozen=True)
class FinetuneRecipe(Checked):
    """The numbers of fine-tuning. [P]: stated by the paper. [R]: GDT's code. [O]: ours."""

    epochs: Count = 12  # [P]
    clips: Count = 10  # [P] random clips of each video per epoch
    batch: Count = 16  # [P]
    lr: Amount = 0.005  # [P]
    weight_decay: Amount = 5e-3  # [P]
    momentum: ShareBelowOne = 0.9  # [P]
    warmup_epochs: Size = 2  # [R]
    milestones: tuple[Size, ...] = (6, 10)  # [R] epochs at which the rate falls
    decay: Share = 0.05  # [R] the factor by which it then falls
    jitter: Share = 0.4  # [R] colours; the ablations: 0 [P]
    dropout: ShareBelowOne = 0.3  # [O]

    def rate(self, step: int, steps: int) -> float:
        """The factor on the learning rate."""
        epoch = step * self.epochs / steps
        rising = min(1.0, (epoch + 1 / steps) / self.warmup_epochs) if self.warmup_epochs else 1.0
        return rising * self.decay ** sum(epoch >= milestone for milestone in self.milestones)


class Classifier(nn.Module):
    """A linear layer on an encoder's pooled features; a batch has "clip" and "label"."""

    def __init__(self, encoder: VideoEncoder, classes: int, dropout: float):
        super().__init__()
        self.encoder, self.dropout = encoder, nn.Dropout(dropout)
        self.classes = nn.Linear(encoder.channels, classes)
        nn.init.orthogonal_(self.classes.weight)  # GDT's code
        nn.init.zeros_(self.classes.bias)

    def logits(self, clip: Tensor) -> Tensor:
        return self.classes(self.dropout(self.encoder(clip).flatten(2).mean(2)))

    def forward(self, batch: Batch) -> Batch:
        return {"logits": self.logits(batch["clip"])}

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        right = (outputs["logits"].argmax(1) == batch["label"]).float().mean()
        return {"loss": F.cross_entropy(outputs["logits"], batch["label"]), "accuracy": right}


def new_classifier(pretrained: CMAC, classes: int, dropout: float) -> Classifier:
    """A classifier on a copy of the pretrained video encoder."""
    recipe = pretrained.recipe
    encoder = video_encoder(recipe)
    encoder.load_state_dict(pretrained.video.encoder.state_dict())
    return Classifier(encoder, classes, dropout)


def evaluate_finetune(
    run: CMACRun,
    data: DataFolder,
    dataset: Annotated[
        str, typer.Option(help="Data set: ucf101, hmdb51, kinetics, vggsound or folder.")
    ] = "ucf101",
    fold: Annotated[int, typer.Option(help="Fold of ucf101 or hmdb51, 1 to 3; 0: the mean of all.")] = 1,
    model: Annotated[
        str, typer.Option(help="Model of the run; scratch starts from random weights.")
    ] = "cmac",
    seed: RunSeed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Run folder to write; default RUN/finetune-DATASET-MODEL.")
    ] = None,
    encoder_file: EncoderFile = None,
    precision: Precision = "fp32",
    sync_bn: SyncBN = False,
    resume: Resume = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Fine-tune a run's video encoder on labelled videos and report the held-out top-1 accuracy (Table 4).

    Under torchrun the processes share each batch, and the held-out videos.
    """
    recipe = FinetuneRecipe(**changes(set, FinetuneRecipe))
    session = Session("evaluate finetune", recipe, precision=precision, sync_bn=sync_bn)
    world = session.fabric.world_size
    if recipe.batch < 2 * world:
        raise ValueError(f"batch = {recipe.batch} leaves {world} processes fewer than two videos each")
    folds = adapters(VIDEO_SETS, dataset, data, fold)
    pretrained, mixed = open_model(run, model, seed, "cpu")
    encoder = run_encoder(RunFolder.open_finished(run, "train cmac"), encoder_file)
    config = {
        "run": str(run),
        "data": str(data),
        "dataset": dataset,
        "fold": fold,
        "model": model,
        "seed": seed,
    }
    accuracies, counts = [], []
    with session.recording(out or run / f"finetune-{dataset}-{model}", config, resume=resume) as folder:
        for number, (train_set, test_set) in enumerate(folds, 1):
            train, test = (
                open_clips(part, pretrained.recipe, session.fabric.device, audio=False)
                for part in (train_set, test_set)
            )
            for name, clips in (("train", train), ("test", test)):
                if encoder is not None:
                    file = (
                        maps_file(folder.path, f"{name}{number}") if session.fabric.is_global_zero else None
                    )
                    keep_frame_maps(clips, encoder, pretrained.recipe, file, mixed=mixed)
            session.say(f"train: {len(train)} videos{left_out(train.skipped)}")
            session.watch(train)
            new = functools.partial(new_classifier, pretrained, len(train_set.class_names), recipe.dropout)
            classifier = initialised(seed, new)
            augmented = CMACRecipe(**{**pretrained.recipe.as_dict(), "jitter": recipe.jitter})
            batches = ClipBatches(
                train,
                augmented,
                recipe.batch // world,
                seed,
                rank=session.fabric.global_rank,
                world=world,
            )
            classifier = session.train(
                Stage(
                    f"fold{number}",
                    classifier,
                    [{"params": list(classifier.parameters()), "lr": recipe.lr}],
                    recipe.epochs * recipe.clips * batches.steps_per_epoch,
                    batches,
                    seed,
                    weight_decay=recipe.weight_decay,
                    optimizer=functools.partial(torch.optim.SGD, momentum=recipe.momentum),
                    labels=None,
                    schedule=recipe.rate,
                )
            )
            rows = torch.arange(len(test))[session.fabric.global_rank :: world]
            right = correct(classifier, test, rows, pretrained.recipe, mixed=precision == "bf16")
            accuracies.append(share(right))
            counts.append({"train": train.counts, "test": test.counts})
    if not session.fabric.is_global_zero:
        return
    mean = sum(accuracies) / len(accuracies)
    folder.finished().write_results({"accuracy": mean, "folds": accuracies, "recordings": counts})
    each = f" ({', '.join(f'{100 * value:.1f}' for value in accuracies)})" if len(accuracies) > 1 else ""
    Console().print(f"{dataset}, {model}: top-1 {100 * mean:.1f} %{each}; {folder.path / 'results.json'}")


def share(right: Tensor) -> float:
    """The share of all processes' answers (N,) that are right; N may differ between them, and be 0."""
    counts = torch.tensor([float(right.sum()), float(len(right))], dtype=torch.float64)
    if dist.is_available() and dist.is_initialized():
        counts = all_rows(counts[None].to(right.device)).sum(0)
    return float(counts[0] / counts[1])


@torch.no_grad()
def correct(classifier: Classifier, clips: Clips, rows: Tensor, recipe: CMACRecipe, *, mixed: bool) -> Tensor:
    """True (N,) for each of the videos ``rows`` whose mean softmax over clips is highest for its class."""
    classifier.eval()
    right = [torch.zeros(0, dtype=torch.bool)]
    for batch in spaced_clips(clips, recipe, rows) if len(rows) else ():
        with torch.autocast(batch.clip.device.type, torch.bfloat16, enabled=mixed):
            logits = classifier.logits(batch.clip)
        answers = logits.float().softmax(1).unflatten(0, (-1, recipe.clips)).mean(1).argmax(1).cpu()
        right.append(answers == clips.labels[batch.index])
    return torch.cat(right).to(clips.device)
