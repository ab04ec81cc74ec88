"""``cmx evaluate localiser``: where a trained localiser points, on pictures with boxes of what sounds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.data.sets.sounding_objects import OBJECT_SETS
from cmx_fast.systems.sound2scene.localiser.evaluation import Localisation, measure, tables
from cmx_fast.systems.sound2scene.localiser.model import Localiser
from cmx_fast.systems.sound2scene.localiser.recipe import LocaliserRecipe
from cmx_fast.train.fabric import default_device
from cmx_fast.train.run_folder import RunFolder


def evaluate_localiser(
    run: Annotated[Path, typer.Option(help="Run folder of cmx train localiser.")],
    data: Annotated[Path | None, typer.Option(help="Pictures, sounds and boxes; default: the run's.")] = None,
    dataset: Annotated[str, typer.Option(help=f"Layout of the data: {', '.join(OBJECT_SETS)}.")] = "vggss",
    validation: Annotated[
        float, typer.Option(help="Share of the pictures that the threshold is chosen on.")
    ] = 0.2,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 2,
) -> Localisation:
    """Evaluate a localiser on VGG-SS or Flickr-SoundNet: cIoU, and its answers to silence, noise and off-screen sounds.

    Whole pictures are squeezed into the run's square. Writes results.json into the run's folder.
    """
    if dataset not in OBJECT_SETS:
        raise ValueError(f"dataset must be one of {', '.join(OBJECT_SETS)}; got {dataset!r}")
    if not 0 < validation < 1:
        raise ValueError(f"validation must be in (0, 1), got {validation}")
    finished = RunFolder.open_finished(run, "train localiser")
    recipe = finished.recipe(LocaliserRecipe)
    localiser = Localiser(recipe)
    localiser.load_state_dict(finished.weights("localiser"))
    objects = OBJECT_SETS[dataset](data or Path(finished.config["data"]))
    scenes = SceneData(
        objects.scenes, size=recipe.size, stretch=True, seconds=recipe.seconds, workers=workers
    )
    result = measure(localiser.to(default_device()), objects, scenes, validation)
    print(f"{dataset}: {result.pictures} pictures{left_out(scenes.skipped)}", file=sys.stderr)
    finished.write_results({"dataset": dataset, **result.as_dict()})
    console = Console()
    for table in tables(result):
        console.print(table)
    return result
