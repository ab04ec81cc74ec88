"""Action recognition by fine-tuning the video encoder of a CMAC run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.data.sets.recordings import Recordings, left_out
from cmx_fast.distributed import all_rows
from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.systems.cmac.data import ClipBatches
from cmx_fast.systems.cmac.features import open_clips, spaced_clips
from cmx_fast.systems.cmac.frame_maps import keep_frame_maps, maps_file
from cmx_fast.systems.cmac.model import CMAC, VideoEncoder, video_encoder
from cmx_fast.systems.cmac.recipe import CMACRecipe, FinetuneRecipe
from cmx_fast.train.initial import initialised
from cmx_fast.train.loop import Stage
from cmx_fast.train.run_folder import FinishedRun
from cmx_fast.train.session import Session
from cmx_fast.train.trainable import Batch


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


class Finetuning:
    """A model's video encoder with a classifier, trained and measured on one fold of a data set after the other.

    Args:
        encoder: of the frames' maps, if the model's run has one.
        mixed_maps: compute them in mixed precision, as the run did.
    """

    def __init__(
        self,
        session: Session,
        recipe: FinetuneRecipe,
        pretrained: CMAC,
        encoder: VisualEncoder | None,
        seed: int,
        *,
        mixed_maps: bool,
        workers: int | None = None,
    ):
        self.session, self.recipe, self.pretrained, self.seed = session, recipe, pretrained, seed
        self.encoder, self.mixed_maps, self.workers = encoder, mixed_maps, workers

    def measure(
        self, fold: int, train_set: Recordings, test_set: Recordings
    ) -> tuple[float, dict[str, dict[str, int]]]:
        """Train on a fold, or load what the run has finished: the held-out accuracy, and recordings by part."""
        session, fabric = self.session, self.session.fabric
        recipe, pretrained = self.recipe, self.pretrained.recipe
        train, test = (
            open_clips(part, pretrained, fabric.device, audio=False, workers=self.workers)
            for part in (train_set, test_set)
        )
        if self.encoder is not None:
            for name, clips in (("train", train), ("test", test)):
                file = maps_file(session.run.path, f"{name}{fold}") if fabric.is_global_zero else None
                keep_frame_maps(clips, self.encoder, pretrained, file, mixed=self.mixed_maps)
        session.say(f"train: {len(train)} videos{left_out(train.skipped)}")
        session.watch(train)
        classes = len(train_set.class_names)
        classifier = initialised(self.seed, lambda: new_classifier(self.pretrained, classes, recipe.dropout))
        batches = ClipBatches(
            train,
            dataclasses.replace(pretrained, jitter=recipe.jitter),
            recipe.batch // fabric.world_size,
            self.seed,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        classifier = session.train(
            Stage(
                f"fold{fold}",
                classifier,
                [{"params": list(classifier.parameters()), "lr": recipe.lr}],
                recipe.epochs * recipe.clips * batches.steps_per_epoch,
                batches,
                self.seed,
                weight_decay=recipe.weight_decay,
                optimizer=functools.partial(torch.optim.SGD, momentum=recipe.momentum),
                labels=None,
                schedule=recipe.rate,
            )
        )
        rows = torch.arange(len(test))[fabric.global_rank :: fabric.world_size]
        mixed = session.run.config["precision"] == "bf16"
        right = correct(classifier, test, rows, pretrained, mixed=mixed)
        return share(right), {"train": train.counts, "test": test.counts}


def report(
    run: FinishedRun, title: str, accuracies: Sequence[float], counts: Sequence[dict[str, dict[str, int]]]
) -> None:
    """Print the mean accuracy over folds, and write results.json with the recordings of each fold's parts."""
    mean = sum(accuracies) / len(accuracies)
    run.write_results({"accuracy": mean, "folds": accuracies, "recordings": counts})
    each = f" ({', '.join(f'{100 * value:.1f}' for value in accuracies)})" if len(accuracies) > 1 else ""
    Console().print(f"{title}: top-1 {100 * mean:.1f} %{each}; {run.path / 'results.json'}")


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
