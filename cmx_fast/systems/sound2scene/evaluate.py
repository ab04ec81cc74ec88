"""``cmx evaluate sound2scene``: a finished run on held-out scenes: table, results.json and report.html."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.data.sets.scenes import open_scenes
from cmx_fast.data.sets.selection import read_selection
from cmx_fast.evaluate.frame_classifier import probabilities, train_classifier
from cmx_fast.evaluate.generation import (
    ClipJudge,
    Networks,
    as_float,
    classifier_networks,
    frechet_distance,
    inception_networks,
    inception_score,
    recall,
)
from cmx_fast.evaluate.retrieval import rank
from cmx_fast.networks.weights import read_json
from cmx_fast.systems.sound2scene.checkpoints import open_sound2scene, run_config
from cmx_fast.systems.sound2scene.control_study import Turned, couples, study, volumes
from cmx_fast.systems.sound2scene.model import Sound2Scene
from cmx_fast.systems.sound2scene.picture_features import picture_features
from cmx_fast.systems.sound2scene.recipe import Sound2SceneRecipe
from cmx_fast.systems.sound2scene.report import Example, write_report
from cmx_fast.systems.sound2scene.sound_features import (
    check_selection,
    open_data,
    own_rank,
    selected,
    sound_features,
)

#: Rows of Table 1: what the pictures are of.
ROWS = {
    "A": "the picture, by G",
    "B": "the sound, by G",
    "C": "the sound, retrieved",
    "D": "real frames",
}
#: Pictures generated of each held-out scene, from different noise; frames of a video that are judged.
SAMPLES = 4
#: Training pictures that the classifier of real frames learns from, at most.
CLASSIFIED = 20_000


@dataclass
class Evaluation:
    """What the report and the table are made of; shares are of 1.

    Attributes:
        scenes: held out, with sound and picture; classes: their number.
        retrieval: R@K of a sound's own picture and the reverse, with chance.
        table: the figures of each row of ROWS.
        compared_by: what the distances and scores are of.
        controls: see :class:`cmx_fast.systems.sound2scene.control_study.Turned`.
    """

    scenes: int
    classes: int
    retrieval: dict[str, float]
    table: dict[str, dict[str, float]]
    compared_by: str
    controls: dict[str, Turned]

    def as_dict(self) -> dict[str, Any]:
        controls = {name: asdict(of) for name, of in self.controls.items()}
        for of in controls.values():
            del of["strips"], of["classes"]
        return {
            "scenes": self.scenes,
            "classes": self.classes,
            "retrieval": self.retrieval,
            "rows": ROWS,
            "table": self.table,
            "compared_by": self.compared_by,
            "controls": controls,
        }


@torch.no_grad()
def evaluate_run(
    run: Path,
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
    config = read_json(run / "config.json")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    system = (system or open_sound2scene(run)).to(device)
    train_features, test_features = (
        picture_features(system.picture_encoder, data, device, run / f"features_{name}.pt")
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
    (run / "results.json").write_text(json.dumps(evaluation.as_dict(), indent=2) + "\n")
    console = Console()
    console.print(table(evaluation))
    console.print(_says(evaluation))
    file = write_report(run, config, evaluation, ROWS, train.class_names, examples, quiet_to_loud)
    console.print(f"report: {file}")
    return evaluation


def _pictures(data: SceneData, numbers: Tensor) -> Tensor:
    """uint8 (P, 3, S, S) of pictures that can be read."""
    return torch.cat([pictures for _, pictures in data.pictures(list(numbers.split(64)))])


def _generate(system: Sound2Scene, features: Tensor, device: str) -> Tensor:
    """float (SAMPLES N, 3, S, S): every feature's picture from the first noise, then from the second, ..."""
    made = []
    for sample in range(SAMPLES):
        noise = system.noise(len(features), seed=sample)
        for h, z in zip(features.split(64), noise.split(64), strict=True):
            made.append(system.generate(h.to(device), z).cpu())
    return torch.cat(made)


def _retrieval(sounds: Tensor, pictures: Tensor) -> dict[str, float]:
    ranks = {"sound_to_picture": own_rank(sounds, pictures), "picture_to_sound": own_rank(pictures, sounds)}
    found = {
        f"{name} R@{k}": float((of < k).double().mean()) for name, of in ranks.items() for k in (1, 5, 10)
    }
    return found | {f"chance R@{k}": min(1.0, k / len(sounds)) for k in (1, 5, 10)}


def _figures(
    pictures: Tensor,
    labels: Tensor,
    real: Tensor,
    networks: Networks,
    classifier: Any,
    judge: ClipJudge | None,
) -> dict[str, float]:
    """One row of Table 1."""
    seen = probabilities(classifier, pictures)
    figures = {"class R@1": recall(seen, labels, 1), "class R@5": recall(seen, labels, 5)}
    if judge is not None:
        names = judge.scores(pictures)
        figures |= {f"CLIP R@{k}": recall(names, labels, k) for k in (1, 5)}
    return figures | {
        "FID": frechet_distance(networks, real, pictures),
        "IS": inception_score(networks, pictures),
    }


def _examples(
    test: SceneData, scenes: Tensor, labels: Tensor, frames: Tensor, made: dict[str, Tensor]
) -> list[Example]:
    """Two scenes of each class, at most 24 in all."""
    chosen = [int(i) for c in labels.unique()[:12] for i in (labels == c).nonzero()[:2, 0]]
    count = len(labels)
    return [
        Example(
            test.entries[int(scenes[i])].name,
            test.class_names[int(labels[i])],
            as_float(frames[i]),
            made["A"][i],
            made["B"][i::count][:3],
            as_float(made["C"][i]),
        )
        for i in chosen
    ]


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


def table(evaluation: Evaluation) -> Table:
    """Table 1 for a terminal."""
    result = Table(
        title=f"{evaluation.scenes} held-out scenes of {evaluation.classes} classes",
        caption=f"FID and IS: {evaluation.compared_by}",
        caption_justify="left",
        title_justify="left",
    )
    result.add_column("pictures of", no_wrap=True)
    names = list(evaluation.table["A"])
    for name in names:
        result.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for row, figures in evaluation.table.items():
        cells = [f"{figures[n]:.2f}" if n in ("FID", "IS") else f"{100 * figures[n]:.1f}" for n in names]
        result.add_row(f"{row}  {ROWS[row]}", *cells)
    return result


def evaluate_sound2scene(
    run: Annotated[Path, typer.Option(help="Run folder of cmx train sound2scene.")],
    data: Annotated[Path | None, typer.Option(help="Data in the run's layout; default: the run's.")] = None,
    icgan: Annotated[Path | None, typer.Option(help="The generator, if not where the run had it.")] = None,
    picture_encoder: Annotated[
        Path | None, typer.Option(help="SwAV's weights, if not where the run had them.")
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(help="torch-fidelity's Inception weights, for FID and IS as published.")
    ] = None,
    clip_weights: Annotated[Path | None, typer.Option(help="OpenCLIP weights, for CLIP's R@K.")] = None,
    clip_model: Annotated[str, typer.Option(help="OpenCLIP's name of their model.")] = "ViT-B-32",
) -> None:
    """Evaluate a finished run on the held-out split: Table 1, controls, results.json and report.html."""
    config = run_config(run, "train sound2scene")
    system = open_sound2scene(run, icgan, picture_encoder)
    recipe = Sound2SceneRecipe.stored(config["recipe"], run / "config.json")
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
    evaluate_run(run, train, test, system=system, inception=inception, clip=clip)
