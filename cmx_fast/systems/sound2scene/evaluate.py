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
from cmx_fast.evaluate.generated_pictures import (
    ClipJudge,
    classifier_networks,
    inception_networks,
)
from cmx_fast.evaluate.retrieval import rank
from cmx_fast.systems.sound2scene.checkpoints import open_sound2scene
from cmx_fast.systems.sound2scene.control_study import scene_pairs, study, volumes
from cmx_fast.systems.sound2scene.evaluation import (
    CLASSIFIED,
    ROWS,
    Evaluation,
    choose_examples,
    generate_samples,
    load_pictures,
    picture_figures,
    retrieval_figures,
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
    """Generate pictures from every held-out sound; print the table, write results.json and report.html.

    Args:
        system: the run's system, where its parts lie elsewhere than the run says.
        inception: weights for FID and Inception Score; without them a classifier of the training frames gives both.
        clip: OpenCLIP's model and its weights, for the retrieval of class names.
    """
    device = default_device()
    system = (system or open_sound2scene(run.path)).to(device)
    train_features, test_features = (
        picture_features(system.picture_encoder, data, device, run.path / f"features_{name}.npy")
        for name, data in (("train", train), ("test", test))
    )
    scenes, sounds = sound_features(system.sound_encoder, test)
    middle = scenes * test.moments + test.moments // 2
    readable = test_features[middle].isfinite().all(1)
    scenes, sounds, middle = scenes[readable], sounds[readable], middle[readable]
    pictures, labels = test_features[middle], test.labels[scenes]
    frames = load_pictures(test, middle)
    readable_train = train_features.isfinite().all(1).nonzero()[:, 0]
    nearest = readable_train[rank(sounds, train_features[readable_train], 1)[:, 0]]
    rows = {
        "A": generate_samples(system, pictures, device),
        "B": generate_samples(system, sounds, device),
        "C": load_pictures(train, nearest),
        "D": frames,
    }
    sample = readable_train[torch.randperm(len(readable_train), generator=torch.Generator().manual_seed(0))]
    sample = sample[:CLASSIFIED]
    with torch.enable_grad():
        classifier = train_classifier(
            load_pictures(train, sample), train.labels[sample // train.moments], len(train.class_names)
        )
    networks = classifier_networks(classifier) if inception is None else inception_networks(inception)
    judge = None if clip is None else ClipJudge(*clip, train.class_names)
    evaluation = Evaluation(
        len(scenes),
        len(train.class_names),
        retrieval_figures(sounds, pictures),
        {
            row: picture_figures(
                made, labels.repeat(len(made) // len(labels)), frames, networks, classifier, judge
            )
            for row, made in rows.items()
        },
        networks.name,
        {},
    )
    waves = torch.cat([wave for _, wave in test.sounds(scenes.split(64))]).to(device)
    pairs = scene_pairs(waves, F.normalize(pictures, dim=1).to(device), labels.to(device))
    evaluation.controls = study(system, lambda p: probabilities(classifier, p.cpu()).to(device), pairs)
    examples = choose_examples(test, scenes, labels, frames, rows)
    quiet_to_loud = volumes(system, waves[[int((labels == c).nonzero()[0, 0]) for c in labels.unique()[:4]]])
    run.write_results(evaluation.as_dict())
    console = Console()
    console.print(table(evaluation))
    console.print(sentences(evaluation))
    file = write_report(run, evaluation, ROWS, train.class_names, examples, quiet_to_loud)
    console.print(f"report: {file}")
    return evaluation


def sentences(evaluation: Evaluation) -> str:
    """Retrieval and controls in words."""
    retrieval = evaluation.retrieval
    lines = [
        f"a sound's own picture is the nearest of {evaluation.scenes}: {100 * retrieval['sound_to_picture R@1']:.1f} % "
        f"(chance {100 * retrieval['chance R@1']:.2f} %)"
    ]
    lines += [
        f"{name} moves the class the right way in {100 * effect.right:.0f} % of pairs"
        for name, effect in evaluation.controls.items()
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
    for split, scenes in (("train", train), ("held out", test)):
        print(f"{split}: {len(scenes)} scenes{selected(scenes)}{left_out(scenes.skipped)}", file=sys.stderr)
    clip = None if clip_weights is None else (clip_model, clip_weights)
    evaluate_run(finished, train, test, system=system, inception=inception, clip=clip)
