"""Evaluates a finished run on held-out scenes: table, results.json and report.html."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.evaluate.frame_classifier import probabilities, train_classifier
from cmx_fast.evaluate.generated_pictures import (
    classifier_networks,
    inception_networks,
    statistics,
)
from cmx_fast.evaluate.retrieval import rank
from cmx_fast.systems.sound2scene.control_study import scene_pairs, study, volumes
from cmx_fast.systems.sound2scene.evaluation import (
    CLASSIFIED,
    ROWS,
    Evaluation,
    PictureJudges,
    choose_examples,
    fitting_pictures,
    generate_samples,
    load_pictures,
    nearest_sounds_pictures,
    own_recalls,
    retrieval_figures,
    retrieval_table,
    table,
)
from cmx_fast.systems.sound2scene.model import Sound2Scene
from cmx_fast.systems.sound2scene.picture_features import picture_features
from cmx_fast.systems.sound2scene.published_networks import PublishedNetworks
from cmx_fast.systems.sound2scene.recipe import Sound2SceneRecipe
from cmx_fast.systems.sound2scene.report import write_report
from cmx_fast.systems.sound2scene.sound_features import (
    sound_features,
    waves_of,
)
from cmx_fast.train.run_folder import FinishedRun


@torch.no_grad()
def evaluate_run(
    run: FinishedRun,
    train: SceneData,
    test: SceneData,
    *,
    system: Sound2Scene,
    published: PublishedNetworks | None = None,
    features: Path | None = None,
) -> Evaluation:
    """Generate pictures from every held-out sound; print the table, write results.json and report.html.

    The retrieval is measured whatever the data has. Classes and controls need labels, FID and Inception Score labels or
    published networks.

    Args:
        system: the run's system, on the device that measures.
        published: networks from files; without Inception a classifier of the training frames gives FID and IS.
        features: the folder that keeps the pictures' features and the real frames' statistics; default: the run's.
    """
    device, published = system.device, published or PublishedNetworks()
    folder = features or run.path
    train_features, test_features = (
        picture_features(system.picture_encoder, data, device, folder / f"features_{name}.npy")
        for name, data in (("train", train), ("test", test))
    )
    scenes, sounds = sound_features(system.sound_encoder, test)
    middle = scenes * test.moments + test.moments // 2
    readable = test_features[middle].isfinite().all(1)
    scenes, sounds, middle = scenes[readable], sounds[readable], middle[readable]
    pictures, labels = test_features[middle], test.labels[scenes]
    frames = load_pictures(test, middle)
    known = readable_train = train_features.isfinite().all(1).nonzero()[:, 0]
    if run.recipe(Sound2SceneRecipe).capped:
        known = _some(readable_train, fitting_pictures(system.generator))
    nearest = known[rank(sounds, train_features[known], 1)[:, 0]]
    rows = {
        "A": generate_samples(system, pictures, device),
        "B": generate_samples(system, sounds, device),
        "C": load_pictures(train, nearest),
        "D": frames,
    }
    classifier = judge = None
    labelled = len(train.class_names) > 1 and len(labels.unique()) > 1
    if labelled:
        sample = _some(readable_train, CLASSIFIED)
        with torch.enable_grad():
            classifier = train_classifier(
                load_pictures(train, sample),
                train.labels[sample // train.moments],
                len(train.class_names),
                device=device,
            )
        judge = published.clip_judge(train.class_names, device)
    networks = None if classifier is None else classifier_networks(classifier)
    if published.inception is not None:
        networks = inception_networks(published.inception, device)
    judges = PictureJudges(
        classifier,
        judge,
        networks,
        None if networks is None else statistics(networks, frames, folder / "real_statistics.pt"),
    )
    evaluation = Evaluation(
        len(scenes),
        len(train.class_names),
        retrieval_figures(sounds, pictures),
        _baselines(train, train_features, test, test_features, scenes, pictures),
        {row: judges.figures(made, labels.repeat(len(made) // len(labels))) for row, made in rows.items()},
        len(known),
        None if networks is None else networks.name,
        {},
    )
    waves = torch.cat([wave for _, wave in waves_of(test, scenes)]).to(device)
    if classifier is not None:
        pairs = scene_pairs(waves, F.normalize(pictures, dim=1).to(device), labels.to(device))
        evaluation.controls = study(system, lambda p: probabilities(classifier, p).to(device), pairs)
    examples = choose_examples(test, scenes, labels, frames, rows)
    quiet_to_loud = volumes(system, waves[[int((labels == c).nonzero()[0, 0]) for c in labels.unique()[:4]]])
    run.write_results(evaluation.as_dict())
    console = Console()
    if evaluation.table["A"]:
        console.print(table(evaluation))
    console.print(retrieval_table(evaluation))
    console.print(sentences(evaluation))
    file = write_report(run, evaluation, ROWS, train.class_names, examples, quiet_to_loud)
    console.print(f"report: {file}")
    return evaluation


def _some(numbers: Tensor, count: int) -> Tensor:
    """Up to ``count`` of the numbers, drawn by a fixed seed."""
    return numbers[torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0))][:count]


def _baselines(
    train: SceneData,
    train_features: Tensor,
    test: SceneData,
    test_features: Tensor,
    scenes: Tensor,
    pictures: Tensor,
) -> dict[str, dict[str, float]]:
    """R@K of the pictures (N, D) of held-out scenes by the queries of BASELINES; needs several moments for frames."""
    queries = {"nearest training sound": nearest_sounds_pictures(train, train_features, test, scenes)}
    if test.moments > 1:
        queries = {"another frame": test_features[scenes * test.moments]} | queries
    return {name: own_recalls(query.nan_to_num(), pictures) for name, query in queries.items()}


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
