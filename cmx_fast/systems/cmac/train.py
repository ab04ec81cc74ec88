"""``cmx train cmac``: CMAC and the rows of its ablation, from videos to a table and a report."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from torch import Tensor

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.data.sets.video_sets import VIDEO_SETS, WITH_SOUND
from cmx_fast.evaluate.retrieval import recall_at_one
from cmx_fast.networks.visual_encoders import VisualEncoder, open_visual_encoder
from cmx_fast.options import (
    FSDP,
    Compile,
    Encoder,
    Out,
    Precision,
    Preset,
    Resume,
    Seeds,
    Set,
    SyncBN,
    choose_models,
)
from cmx_fast.systems.cmac.data import ClipBatches
from cmx_fast.systems.cmac.evaluate import evaluate_run
from cmx_fast.systems.cmac.evaluation import NAMES, new_model
from cmx_fast.systems.cmac.features import chosen, extract, gathered, open_clips
from cmx_fast.systems.cmac.frame_maps import keep_frame_maps, map_level, maps_file
from cmx_fast.systems.cmac.model import CMAC
from cmx_fast.systems.cmac.options import MostRecordings, Split, check_evaluation, split_of
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.train.initial import initialised
from cmx_fast.train.loop import Stage
from cmx_fast.train.session import Session, require_a_batch
from cmx_fast.train.settings import changes

#: Evaluations on the held-out recordings during training, for the curves; no weights are selected by them.
EVALUATIONS = 5


def train_cmac(
    data: Annotated[Path, typer.Option(help="Videos with sound, e.g. from cmx simulate clips.")],
    dataset: Annotated[
        str, typer.Option(help="Layout of the data: kinetics, vggsound, or folder (any videos).")
    ] = "kinetics",
    out: Out = Path("runs/cmac"),
    preset: Preset = "paper",
    seeds: Seeds = 1,
    model: Annotated[
        list[str], typer.Option(help="Model: scratch, single, attention, contrast, cmac, or all; repeatable.")
    ] = ["cmac"],  # noqa: B006
    encoder: Encoder = None,
    precision: Precision = "fp32",
    compile: Compile = False,
    sync_bn: SyncBN = False,
    fsdp: FSDP = False,
    split: Split = None,
    evaluate: Annotated[
        str,
        typer.Option(
            help="Measures: all, retrieval (no classification, so no look at the training videos), or none."
        ),
    ] = "all",
    recordings: MostRecordings = 0,
    resume: Resume = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Train CMAC on videos with sound, evaluate on the held-out split, write report.html.

    Models are the rows of the paper's Table 1: random weights, a single modality, only the attention consistency, only
    the contrastive loss, and CMAC. Tables 2 and 3 are --set levels, norm, within_negatives, within_positives. Videos
    that are broken, too short or without sound are left out and named.

    With --encoder the frames' maps by that pretrained encoder are computed once and kept, and temporal convolutions on
    them are the video encoder. Frames are then squares of the side that it was trained at, and not augmented.

    A folder of one's own videos is split by a hash of their names: 70 % to train on, 10 % to choose settings by, "val",
    and 20 % to test on once: cmx evaluate cmac --split test.
    """
    models = choose_models(model, [*NAMES, "all"])
    if dataset not in WITH_SOUND:
        raise ValueError(f"dataset must be one of {', '.join(WITH_SOUND)}, which have sound; got {dataset!r}")
    check_evaluation(evaluate, ("none", "retrieval", "all"))
    held_out = split_of(dataset, split)
    changed = changes(set, CMACRecipe)
    recipe = CMACRecipe.preset(preset, **changed)
    pretrained = None if encoder is None else open_visual_encoder(encoder)
    if pretrained is not None:
        recipe = on_maps(
            recipe, pretrained, own_size="size" in changed or "size" in CMACRecipe.MORE.get(preset, {})
        )
    elif recipe.frame_channels:
        raise ValueError("frame_channels are those of --encoder, which sets them")
    session = Session(
        "train cmac",
        recipe,
        preset=preset,
        precision=precision,
        compile=compile,
        sync_bn=sync_bn,
        fsdp=fsdp,
    )
    fewest = 2 * recipe.key_splits * session.fabric.world_size
    if recipe.key_splits > 1 and recipe.batch < fewest:
        raise ValueError(
            f"key_splits = {recipe.key_splits} needs a batch of at least {fewest}; got {recipe.batch}"
        )
    splits = ("train", held_out)
    train, test = (
        open_clips(VIDEO_SETS[dataset](data, split), recipe, session.fabric.device) for split in splits
    )
    for split, clips in zip(splits, (train, test), strict=True):
        session.say(f"{split}: {len(clips)} recordings{left_out(clips.skipped)}")
    require_a_batch(len(train), recipe.batch, "recordings")
    config = {
        "data": str(data),
        "dataset": dataset,
        "encoder": encoder,
        "encoder_fingerprint": None if pretrained is None else pretrained.fingerprint(),
        "seeds": list(range(seeds)),
        "models": models,
        "split": held_out,
        "evaluate": evaluate,
        "recordings": recordings,
    }
    with session.recording(out, config, resume=resume, splits=(train, test)) as run:
        if pretrained is not None:
            for split, clips in zip(splits, (train, test), strict=True):
                file = maps_file(run.path, split) if session.fabric.is_global_zero else None
                keep_frame_maps(clips, pretrained, recipe, file, mixed=precision == "bf16")
        looks = 0 if evaluate == "none" else EVALUATIONS
        training = Training(session, recipe, train, test, chosen(test, recordings), looks)
        for seed in range(seeds):
            for name in models:
                training.train(name, seed)
    if evaluate != "none":
        evaluate_run(run.finished(), train, test, data, split=held_out, evaluate=evaluate, most=recordings)


def on_maps(recipe: CMACRecipe, encoder: VisualEncoder, own_size: bool) -> CMACRecipe:
    """The recipe on maps of a pretrained encoder, of frames at its own size unless ``own_size`` says that one is given.

    Raises:
        ValueError: the given size is not one that the encoder takes, or it has no maps of ``frame_stride``.
    """
    size = recipe.size if own_size else encoder.size
    encoder.check_size(size)
    short_side = max(recipe.short_side, size) if own_size else size
    channels = encoder.channels[map_level(encoder, recipe.frame_stride)]
    return dataclasses.replace(recipe, size=size, short_side=short_side, frame_channels=channels)


class Training:
    """The models of one run, each from the same initial encoders."""

    def __init__(
        self, session: Session, recipe: CMACRecipe, train: Clips, test: Clips, rows: Tensor, looks: int
    ):
        self.session, self.fabric, self.recipe = session, session.fabric, recipe
        self.clips, self.test, self.rows, self.looks = train, test, rows, looks

    def train(self, name: str, seed: int) -> None:
        """Train a model from a seed, or load it where the run has finished it; "scratch" stays as it is."""
        stage, recipe, fabric = f"seed{seed}/{name}", self.recipe, self.fabric
        model = initialised(seed, lambda: new_model(name, recipe))
        if name == "scratch":
            if self.session.run.weights(stage) is None:
                self.session.run.finish(stage, model.state_dict())
            return
        batches = ClipBatches(
            self.clips,
            recipe,
            recipe.batch // fabric.world_size,
            seed,
            two_clips=model.two_clips,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        steps = recipe.epochs * batches.steps_per_epoch
        self.session.train(
            Stage(
                stage,
                model,
                [{"params": list(model.trained()), "lr": recipe.lr}],
                steps,
                batches,
                seed,
                weight_decay=recipe.weight_decay,
                optimizer=OPTIMIZERS[recipe.optimizer],
                labels=None,
                schedule=functools.partial(
                    warmup, first=recipe.warmup_epochs * batches.steps_per_epoch, cosine=recipe.cosine
                ),
                after_step=model.update_keys,
                evaluation=(lambda: self.evaluate(model)) if self.looks else None,
                evaluate_every=max(1, steps // max(1, self.looks)),
            )
        )

    def evaluate(self, model: CMAC) -> dict[str, float]:
        """Measure retrieval among the held-out recordings, for the curves; all processes share them."""
        mixed = self.session.run.config["precision"] == "bf16"
        if self.fabric.world_size > 1:
            for buffer in model.buffers():  # of batch norms: the first process's are those that are kept
                dist.broadcast(buffer, 0)
        features = gathered(
            self.test, self.rows, lambda rows: extract(model, self.test, rows=rows, mixed=mixed)
        )
        if not self.fabric.is_global_zero:
            return {}
        return {"audio_to_video": recall_at_one(features.audio_embedding, features.video_embedding)}


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9),
    "adamw": torch.optim.AdamW,
}


def warmup(step: int, steps: int, *, first: int, cosine: bool) -> float:
    """The factor on the learning rate: rises linearly over the ``first`` steps to 1; ``cosine`` multiplies it by a
    cosine that ends at 0."""
    rising = min(1.0, (step + 1) / max(1, first))
    return rising * (0.5 * (1 + math.cos(math.pi * step / steps)) if cosine else 1.0)
