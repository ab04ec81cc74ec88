"""``cmx evaluate sound2scene``: a finished run on held-out scenes: table, results.json and report.html."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.data.sets.scenes import open_scenes
from cmx_fast.data.sets.selection import read_selection
from cmx_fast.evaluate.frame_classifier import probabilities, train_classifier
from cmx_fast.evaluate.generation import (
    ClipJudge,
    classifier_networks,
    inception_networks,
)
from cmx_fast.evaluate.retrieval import rank
from cmx_fast.systems.sound2scene.checkpoints import open_sound2scene
from cmx_fast.systems.sound2scene.control_study import couples, study, volumes
from cmx_fast.systems.sound2scene.evaluation import (
    CLASSIFIED,
    ROWS,
    Evaluation,
    _examples,
    _figures,
    _generate,
    _pictures,
    _retrieval,
    table,
)
from cmx_fast.systems.sound2scene.model import Sound2Scene
from cmx_fast.systems.sound2scene.options import GeneratorPath, PictureEncoderPath, SystemRun
from cmx_fast.systems.sound2scene.picture_features import picture_features
from cmx_fast.systems.sound2scene.recipe import Sound2SceneRecipe
from cmx_fast.systems.sound2scene.report import write_report
from cmx_fast.systems.sound2scene.sound_features import (
    check_selection,
    open_data,
    selected,
    sound_features,
)
from cmx_fast.train.options import RunData, default_device
from cmx_fast.train.run_folder import FinishedRun, RunFolder


@torch.no_grad()
def evaluate_run(
    run: FinishedRun,
    train: SceneData,
    test: SceneData,
    *,
    system: Sound2Scene | None = None,
    inception: Path | None = None,
    clip: tuple[str, Path] | None = None,
) -> Evaluation:
    """Generate from every held-out sound, print the table, write results.json and report.html.

    Args:
        system: of the run, where it lies elsewhere than the run says.
        inception: weights for FID and Inception Score; without, they are of a classifier of the training frames.
        clip: OpenCLIP's model and its weights, for the retrieval of class names.
    """
    device = default_device()
    system = (system or open_sound2scene(run.path)).to(device)
    train_features, test_features = (
        picture_features(system.picture_encoder, data, device, run.path / f"features_{name}.pt")
        for name, data in (("train", train), ("test", test))
    )
    scenes, sounds = sound_features(system.sound_encoder, test)
    middle = scenes * test.moments + test.moments // 2
    known = test_features[middle].isfinite().all(1)
    scenes, sounds, middle = scenes[known], sounds[known], middle[known]
    seen, labels = test_features[middle], test.labels[scenes]
    frames = _pictures(test, middle)
    known_train = train_features.isfinite().all(1).nonzero()[:, 0]
    nearest = known_train[rank(sounds, train_features[known_train], 1)[:, 0]]
    made = {
        "A": _generate(system, seen, device),
        "B": _generate(system, sounds, device),
        "C": _pictures(train, nearest),
        "D": frames,
    }
    sample = known_train[torch.randperm(len(known_train), generator=torch.Generator().manual_seed(0))]
    sample = sample[:CLASSIFIED]
    with torch.enable_grad():
        classifier = train_classifier(
            _pictures(train, sample), train.labels[sample // train.moments], len(train.class_names)
        )
    networks = classifier_networks(classifier) if inception is None else inception_networks(inception)
    judge = None if clip is None else ClipJudge(*clip, train.class_names)
    evaluation = Evaluation(
        len(scenes),
        len(train.class_names),
        _retrieval(sounds, seen),
        {
            row: _figures(
                pictures, labels.repeat(len(pictures) // len(labels)), frames, networks, classifier, judge
            )
            for row, pictures in made.items()
        },
        networks.name,
        {},
    )
    waves = torch.cat([wave for _, wave in test.sounds(scenes.split(64))]).to(device)
    chosen = couples(waves, F.normalize(seen, dim=1).to(device), labels.to(device))
    evaluation.controls = study(system, lambda p: probabilities(classifier, p.cpu()).to(device), chosen)
    examples = _examples(test, scenes, labels, frames, made)
    quiet_to_loud = volumes(system, waves[[int((labels == c).nonzero()[0, 0]) for c in labels.unique()[:4]]])
    run.write_results(evaluation.as_dict())
    console = Console()
    console.print(table(evaluation))
    console.print(_says(evaluation))
    file = write_report(run, evaluation, ROWS, train.class_names, examples, quiet_to_loud)
    console.print(f"report: {file}")
    return evaluation


def _says(evaluation: Evaluation) -> str:
    of = evaluation.retrieval
    lines = [
        f"a sound's own picture is the nearest of {evaluation.scenes}: {100 * of['sound_to_picture R@1']:.1f} % "
        f"(chance {100 * of['chance R@1']:.2f} %)"
    ]
    lines += [
        f"{name} moves the class the right way in {100 * turned.right:.0f} % of pairs"
        for name, turned in evaluation.controls.items()
    ]
    return "\n".join(lines)


def evaluate_sound2scene(
    run: SystemRun,
    data: RunData = None,
    icgan: GeneratorPath = None,
    picture_encoder: PictureEncoderPath = None,
    inception: Annotated[
        Path | None, typer.Option(help="Weights of torch-fidelity's Inception, for FID and IS as published.")
    ] = None,
    clip_weights: Annotated[Path | None, typer.Option(help="Weights of OpenCLIP, for CLIP's R@K.")] = None,
    clip_model: Annotated[str, typer.Option(help="Name that OpenCLIP gives their model.")] = "ViT-B-32",
) -> None:
    """Evaluate a finished run on the held-out split: Table 1, controls, results.json and report.html."""
    finished = RunFolder.open_finished(run, "train sound2scene")
    system = open_sound2scene(run, icgan, picture_encoder)
    config, recipe = finished.config, finished.recipe(Sound2SceneRecipe)
    selection = None if config["selection"] is None else read_selection(config["selection"])
    train, test = (
        open_data(
            open_scenes(config["dataset"], data or Path(config["data"]), split),
            recipe,
            system.picture_encoder.size,
            selection,
        )
        for split in ("train", "test")
    )
    if selection is not None:
        check_selection(config["selection"], selection, train, test)
    for split, of in (("train", train), ("held out", test)):
        print(f"{split}: {len(of)} scenes{selected(of)}{left_out(of.skipped)}", file=sys.stderr)
    clip = None if clip_weights is None else (clip_model, clip_weights)
    evaluate_run(finished, train, test, system=system, inception=inception, clip=clip)
