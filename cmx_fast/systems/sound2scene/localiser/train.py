"""``cmx train localiser``: where in pictures sounds come from, to select moments of videos by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.loaders.upload import upload
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.data.sets.scenes import open_scenes
from cmx_fast.systems.sound2scene.localiser.inference import DATASETS, own_is_best
from cmx_fast.systems.sound2scene.localiser.model import Localiser, load_imagenet_resnet18
from cmx_fast.systems.sound2scene.localiser.recipe import LocaliserRecipe
from cmx_fast.train.initial import initialised
from cmx_fast.train.loop import Stage, constant
from cmx_fast.train.options import Out, Precision, Preset, Resume, Seed, Set, changes
from cmx_fast.train.session import Session
from cmx_fast.train.trainable import Batch

#: Evaluations on the held-out videos during training, for the curves.
EVALUATIONS = 5


def train_localiser(
    data: Annotated[Path, typer.Option(help="Videos with sound.")],
    dataset: Annotated[str, typer.Option(help=f"Layout of the data: {', '.join(DATASETS)}.")] = "vggsound",
    out: Out = Path("runs/localiser"),
    preset: Preset = "paper",
    picture_weights: Annotated[
        Path | None, typer.Option(help="torchvision's ImageNet ResNet-18 (resnet18-f37072fd.pth).")
    ] = None,
    seed: Seed = 0,
    precision: Precision = "fp32",
    resume: Resume = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Train a localiser of sounds (LVS) on videos without labels; cmx select then picks their best moments by it."""
    if dataset not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, which have videos; got {dataset!r}")
    recipe = LocaliserRecipe.preset(preset, **changes(set, LocaliserRecipe))
    session = Session("train localiser", recipe, preset=preset, precision=precision)
    train, test = (
        SceneData(
            open_scenes(dataset, data, split),
            size=recipe.size,
            moments=recipe.moments,
            seconds=recipe.seconds,
            backend=recipe.backend,
            cache=recipe.cache,
        )
        for split in ("train", "test")
    )
    for split, videos in (("train", train), ("held out", test)):
        session.say(f"{split}: {len(videos)} videos{left_out(videos.skipped)}")
    if len(train) < recipe.batch:
        raise ValueError(
            f"{len(train)} videos to train on are fewer than a batch of {recipe.batch}; --set batch=..."
        )
    config = {
        "data": str(data),
        "dataset": dataset,
        "picture_weights": None if picture_weights is None else str(picture_weights),
        "seed": seed,
    }
    module = initialised(seed, lambda: Localiser(recipe))
    if picture_weights is not None:
        load_imagenet_resnet18(module, picture_weights)
    batches = VideoBatches(train, recipe.batch, seed, session.fabric.device)
    steps = recipe.epochs * batches.steps_per_epoch
    stage = Stage(
        "localiser",
        module,
        [{"params": list(module.parameters()), "lr": recipe.lr}],
        steps,
        batches,
        seed,
        weight_decay=recipe.weight_decay,
        optimizer=torch.optim.Adam,
        labels=None,
        schedule=constant,
        evaluation=lambda: {"own_is_best": own_is_best(module, test)},
        evaluate_every=max(1, steps // EVALUATIONS),
    )
    with session.recording(out, config, resume=resume, splits=(train, test)):
        session.train(stage)
    session.say(f"next: cmx select --run {out} --out selection.json")


class VideoBatches:
    """Epochs of "picture" (B, 3, S, S) in [0, 1], half mirrored, and "wave" (B, samples); the same for a seed."""

    def __init__(self, data: SceneData, batch: int, seed: int, device: torch.device | str):
        self.data, self.batch, self.seed, self.device = data, batch, seed, device

    @property
    def steps_per_epoch(self) -> int:
        return len(self.data) // self.batch

    def __call__(self, start: int) -> Iterator[Batch]:
        epoch, skip = divmod(start, self.steps_per_epoch)
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.data), generator=generator)
            moments = torch.randint(self.data.moments, (len(self.data),), generator=generator)
            mirrored = torch.rand(len(self.data), generator=generator) < 0.5
            scenes = order.split(self.batch)[skip : self.steps_per_epoch]
            pictures = self.data.pictures([of * self.data.moments + moments[of] for of in scenes])
            sounds = self.data.sounds(list(scenes))
            for (shown, picture), (heard, wave) in _of_the_same(scenes, pictures, sounds, self.data.moments):
                index = shown // self.data.moments
                both = torch.isin(index, heard)
                if not both.any():  # no scene of which both could be read
                    continue
                wave = upload(wave[torch.isin(heard, index)], self.device)
                picture = torch.where(mirrored[index][:, None, None, None], picture.flip(3), picture)[both]
                yield {"picture": upload(picture, self.device).float() / 255, "wave": wave}
            epoch, skip = epoch + 1, 0


Loaded = tuple[Tensor, Tensor]


def _of_the_same(
    scenes: Iterable[Tensor], pictures: Iterator[Loaded], sounds: Iterator[Loaded], moments: int
) -> Iterator[tuple[Loaded, Loaded]]:
    """Pictures and sounds of the same scenes: a batch of which none could be read is missing from the one stream.

    Paired by their order alone, all batches after it would be pictures with the sounds of others.
    """
    shown, heard = next(pictures, None), next(sounds, None)
    for batch in scenes:
        seen = shown is not None and bool(torch.isin(shown[0] // moments, batch).all())
        listened = heard is not None and bool(torch.isin(heard[0], batch).all())
        if seen and listened:
            assert shown is not None
            assert heard is not None
            yield shown, heard
        shown = next(pictures, None) if seen else shown
        heard = next(sounds, None) if listened else heard
