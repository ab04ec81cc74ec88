"""Evaluates a finished run's models on held-out pictures: table, results.json and report.html."""

from __future__ import annotations

import dataclasses
import sys

from rich.console import Console
from torch import Tensor

from cmx_fast.evaluate import segmentation
from cmx_fast.evaluate.summary import SeedScores
from cmx_fast.networks.fpn import MapShape
from cmx_fast.systems.c2l.baselines import BASELINES, baseline_counts
from cmx_fast.systems.c2l.data import Pictures
from cmx_fast.systems.c2l.dff import DFF
from cmx_fast.systems.c2l.evaluation import (
    CLUSTERS_FILE,
    FIRST,
    Clusters,
    Evaluation,
    cluster_classes,
    cluster_pixels,
    evenly_spaced,
    new_model,
    scores,
    segment,
    shares_table,
    table,
)
from cmx_fast.systems.c2l.picie import new_encoder
from cmx_fast.systems.c2l.pseudo_labels import final_centroids
from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.systems.c2l.report import write_clusters_report, write_report
from cmx_fast.train.run_folder import FinishedRun


def report_run(
    run: FinishedRun, train: Pictures, test: Pictures, *, split: str = "test", clusters: int | None = None
) -> None:
    """Measure the run by the masks of the pictures, or show its clusters where there are none; write report.html."""
    if test.class_names:
        evaluate_run(run, train, test, split=split, clusters=clusters)
    elif clusters is None:
        show_clusters(run, test, split=split)
    else:
        raise ValueError(
            "--clusters is for pictures with masks; --set test_clusters=... sets it for a run without"
        )


def evaluate_run(
    run: FinishedRun, train: Pictures, test: Pictures, *, split: str = "test", clusters: int | None = None
) -> Evaluation:
    """Segment the pictures with every model of the run; print the table, write results.json and report.html.

    The class that each of the run's clusters meets most is written to clusters.json.

    Args:
        train: the run's training pictures, which the baselines and new clusters are made of.
        test: the pictures of ``split``. Both have the maps of the run's encoder, if it has one.
        clusters: cluster the models' features of the training pictures anew to this many; None: the run's clusters.
    """
    recipe = run.recipe(C2LRecipe)
    if clusters is not None:
        recipe = dataclasses.replace(recipe, test_clusters=clusters)
    shapes = None if test.maps is None else [tuple(shape) for shape in run.config["map_shapes"]]
    examples = evenly_spaced(len(test))
    names = test.class_names
    measured, baselines = SeedScores(run.config["models"]), SeedScores(known_baselines(run, shapes))
    shown: dict[str, Tensor] = {}
    classes: dict[str, list[list[str | None]]] = {}
    for name, seed in run.models():
        model = new_model(name, recipe, shapes).to(test.device)
        weights = run.weights(f"seed{seed}/{name}")
        if clusters is not None and not isinstance(model, DFF):
            weights["centroids"] = model.centroids
            model.load_state_dict(weights)
            model.centroids.copy_(final_centroids(None, model, train, seed))
        else:
            model.load_state_dict(weights)
        counts, labels = segment(model, test, seed, examples)
        measured.add(name, scores(counts, names))
        classes.setdefault(name, []).append(cluster_classes(counts, names))
        shown.setdefault(name, segmentation.match(counts)[labels])
    for seed in run.config["seeds"]:
        encoder = new_encoder(recipe, shapes).to(test.device).eval()
        if shapes is None and "frozen" in baselines.by_model:
            encoder.load_state_dict(run.weights(f"seed{seed}/{FIRST}"))
        for name in baselines.by_model:
            counts = baseline_counts(name, encoder, recipe, train, test, seed)
            baselines.add(name, scores(counts, names))
    largest = baselines.by_model["largest"][0]["accuracy"]
    evaluation = Evaluation(measured, baselines, split, recipe.test_clusters, names, largest, examples, shown)
    run.write_results(evaluation.as_dict())
    if clusters is None:
        run.write_results(classes, CLUSTERS_FILE)
    console = Console()
    console.print(table(evaluation, len(test)))
    console.print(f"report: {write_report(run, evaluation, test)}")
    return evaluation


def show_clusters(run: FinishedRun, test: Pictures, *, split: str = "test") -> None:
    """Segment pictures without masks by every model; print the clusters' shares, write results.json and report.html."""
    recipe = run.recipe(C2LRecipe)
    shapes = None if test.maps is None else [tuple(shape) for shape in run.config["map_shapes"]]
    examples = evenly_spaced(len(test))
    shares: dict[str, list[list[float]]] = {}
    shown: dict[str, Tensor] = {}
    for name, seed in run.models():
        model = new_model(name, recipe, shapes).to(test.device)
        model.load_state_dict(run.weights(f"seed{seed}/{name}"))
        counts, labels = cluster_pixels(model, test, seed, examples)
        shares.setdefault(name, []).append((counts / counts.sum()).tolist())
        shown.setdefault(name, labels)
    found = Clusters(shares, split, examples, shown)
    run.write_results(found.as_dict())
    console = Console()
    console.print(shares_table(found, len(test)))
    console.print(f"report: {write_clusters_report(run, found, test)}")


def known_baselines(run: FinishedRun, shapes: list[MapShape] | None) -> list[str]:
    """The baselines that the run's files allow; prints which are left out."""
    files = [run.path / f"seed{seed}" / f"{FIRST}.pt" for seed in run.config["seeds"]]
    if shapes is not None or all(file.is_file() for file in files):
        return list(BASELINES)
    print(f"{run.path} does not keep its first encoder, whose baselines are left out", file=sys.stderr)
    return [name for name in BASELINES if name not in ("frozen", "probe")]
