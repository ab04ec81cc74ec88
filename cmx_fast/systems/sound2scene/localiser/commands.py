"""``cmx train`` and ``evaluate localiser``, and ``cmx select``; what they work with is imported once one is called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cmx_fast.data.sets.layouts import layout_of
from cmx_fast.data.sets.names import SOUNDING_OBJECTS, VIDEO_SCENES
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.options import (
    BatchSize,
    Device,
    LearningRate,
    Loggers,
    Out,
    Precision,
    Preset,
    Resume,
    RunData,
    Seed,
    Set,
    Workers,
    layout,
    words,
)
from cmx_fast.systems.sound2scene.localiser.recipe import LocaliserRecipe
from cmx_fast.train.settings import changes


def train_localiser(
    data: Annotated[Path, typer.Option(help="Videos with sound.")],
    dataset: Annotated[str | None, layout(VIDEO_SCENES)] = None,
    out: Out = Path("runs/localiser"),
    preset: Preset = "paper",
    picture_weights: Annotated[
        Path | None, typer.Option(help="torchvision's ImageNet ResNet-18 (resnet18-f37072fd.pth).")
    ] = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    device: Device = None,
    workers: Workers = None,
    precision: Precision = "fp32",
    logger: Loggers = [],  # noqa: B006
    resume: Resume = False,
    set: Annotated[Set, LocaliserRecipe] = [],  # noqa: B006
) -> None:
    """Train a localiser of sounds (LVS) on videos without labels; cmx select then picks their best moments by it."""
    recipe = LocaliserRecipe.preset(preset, **changes(set, LocaliserRecipe, batch=batch_size, lr=lr))
    dataset = layout_of(dataset, data, VIDEO_SCENES)

    from cmx_fast.data.loaders.scene_batches import SceneData
    from cmx_fast.data.sets.scenes import open_scenes
    from cmx_fast.systems.sound2scene.localiser.train import localiser_stage
    from cmx_fast.train.session import Session, require_a_batch

    session = Session(
        "train localiser", recipe, preset=preset, device=device, precision=precision, loggers=logger
    )
    train, test = (
        SceneData(
            open_scenes(dataset, data, split),
            size=recipe.size,
            moments=recipe.moments,
            seconds=recipe.seconds,
            backend=recipe.backend,
            cache=recipe.cache,
            workers=workers,
        )
        for split in ("train", "test")
    )
    for split, videos in (("train", train), ("held out", test)):
        session.say(f"{split}: {len(videos)} videos{left_out(videos.skipped)}")
    require_a_batch(len(train), recipe.batch, "videos")
    config = {
        "data": str(data),
        "dataset": dataset,
        "picture_weights": None if picture_weights is None else str(picture_weights),
        "seed": seed,
    }
    stage = localiser_stage(recipe, train, test, seed, session.fabric.device, picture_weights)
    with session.recording(out, config, resume=resume, splits=(train, test)):
        session.train(stage)
    session.say(f"next: cmx select --run {out} --out selection.json")


def evaluate_localiser(
    run: Annotated[Path, typer.Option(help="Run folder of cmx train localiser.")],
    data: Annotated[Path | None, typer.Option(help="Pictures, sounds and boxes; default: the run's.")] = None,
    dataset: Annotated[
        str,
        typer.Option(
            help=f"Layout of the data: {', '.join(SOUNDING_OBJECTS)}.",
            autocompletion=words(*SOUNDING_OBJECTS),
        ),
    ] = "vggss",
    validation: Annotated[
        float, typer.Option(help="Share of the pictures that the threshold is chosen on.")
    ] = 0.2,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Evaluate a localiser on VGG-SS or Flickr-SoundNet: cIoU, and its answers to silence, noise and off-screen sounds.

    Whole pictures are squeezed into the run's square. Writes results.json and report.html into the run's folder.
    """
    if dataset not in SOUNDING_OBJECTS:
        raise ValueError(f"dataset must be one of {', '.join(SOUNDING_OBJECTS)}; got {dataset!r}")
    if not 0 < validation < 1:
        raise ValueError(f"validation must be in (0, 1), got {validation}")

    from rich.console import Console

    from cmx_fast.data.loaders.scene_batches import SceneData
    from cmx_fast.data.sets.sounding_objects import OBJECT_SETS
    from cmx_fast.systems.sound2scene.localiser.evaluation import measure, tables
    from cmx_fast.systems.sound2scene.localiser.model import Localiser
    from cmx_fast.systems.sound2scene.localiser.report import write_report
    from cmx_fast.train.fabric import chosen_device
    from cmx_fast.train.run_folder import RunFolder

    finished = RunFolder.open_finished(run, "train localiser")
    recipe = finished.recipe(LocaliserRecipe)
    localiser = Localiser(recipe)
    localiser.load_state_dict(finished.weights("localiser"))
    data = data or Path(finished.config["data"])
    objects = OBJECT_SETS[dataset](data)
    scenes = SceneData(
        objects.scenes, size=recipe.size, stretch=True, seconds=recipe.seconds, workers=workers
    )
    result = measure(localiser.to(chosen_device(device)), objects, scenes, validation)
    print(f"{dataset}: {result.pictures} pictures{left_out(scenes.skipped)}", file=sys.stderr)
    finished.write_results({"dataset": dataset, **result.as_dict()})
    console = Console()
    for table in tables(result):
        console.print(table)
    print(write_report(finished, result, data, dataset), file=sys.stderr)


def select(
    run: Annotated[Path, typer.Option(help="Run folder of cmx train localiser.")],
    out: Annotated[Path, typer.Option(help="JSON to write.")],
    data: RunData = None,
    split: Annotated[
        str, typer.Option(help="Split: train or test.", autocompletion=words("train", "test"))
    ] = "train",
    top: Annotated[int, typer.Option(min=1, help="Moments of each video, best first.")] = 10,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Rank every video's frames, 10 per second, by how their sounding places agree with the sound (LVS).

    cmx train sound2scene --selection takes the file, as it takes the authors' own.
    """
    from cmx_fast.data.loaders.scene_batches import SceneData
    from cmx_fast.data.sets.scenes import open_scenes
    from cmx_fast.data.sets.selection import write_selection
    from cmx_fast.systems.sound2scene.localiser.inference import moments
    from cmx_fast.systems.sound2scene.localiser.model import Localiser
    from cmx_fast.train.fabric import chosen_device
    from cmx_fast.train.run_folder import RunFolder

    finished = RunFolder.open_finished(run, "train localiser")
    recipe = finished.recipe(LocaliserRecipe)
    module = Localiser(recipe)
    module.load_state_dict(finished.weights("localiser"))
    scenes = open_scenes(finished.config["dataset"], data or Path(finished.config["data"]), split)
    videos = SceneData(scenes, size=recipe.size, seconds=recipe.seconds, workers=workers)
    selection = moments(module.to(chosen_device(device)).eval(), videos, top)
    write_selection(out, selection)
    print(f"{out}: {len(selection)} videos{left_out(videos.skipped)}", file=sys.stderr)
