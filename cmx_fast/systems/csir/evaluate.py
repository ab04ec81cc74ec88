"""Evaluates a finished run's models on held-out pairs: table, results.json and report.html."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from cmx_fast.evaluate import retrieval
from cmx_fast.evaluate.retrieval import Embeddings, Recalls
from cmx_fast.systems.csir.data import PairData
from cmx_fast.systems.csir.evaluation import (
    Evaluation,
    Model,
    decay_errors,
    embed,
    new_model,
    pretrained_image_logits,
    pretrained_speech,
)
from cmx_fast.systems.csir.model import FrozenImageEncoder
from cmx_fast.systems.csir.recipe import CSIRRecipe
from cmx_fast.systems.csir.report import write_report
from cmx_fast.train.frozen_features import run_encoder
from cmx_fast.train.run_folder import FinishedRun


def evaluate_run(run: FinishedRun, data: PairData, encoder_file: Path | None = None) -> Evaluation:
    """Embed the pairs with every model of the run; print the table, write results.json and report.html.

    Args:
        encoder_file: the weights of the run's pretrained encoder, if not where the run had them.
    """
    recipe, spaces, models = run.recipe(CSIRRecipe), run.config["spaces"], run.config["models"]
    distinct = retrieval.distinct_images([p.image for p in data.dataset.pairs[: data.pictured]])
    recalls: dict[str, list[Recalls]] = {name: [] for name in models}
    alternative: dict[str, list[Recalls]] = {name: [] for name in models}
    shown: Embeddings | None = None
    shown_model: Model | None = None
    pretrained = run_encoder(run, encoder_file)
    frozen = None if pretrained is None else FrozenImageEncoder(pretrained)
    if frozen and data.image_features is None:
        data.freeze_images(frozen)
    for name, seed in run.models():
        model = new_model(name, recipe, len(spaces), frozen).to(data.device)
        model.load_state_dict(run.weights(f"seed{seed}/{name}"))
        embeddings = embed(model, data, recipe)
        recalls[name].append(retrieval.recalls(embeddings))
        alternative[name].append(retrieval.recalls(embeddings, distinct))
        if shown is None:
            shown, shown_model = embeddings, model
    assert shown is not None
    assert shown_model is not None
    decays = [
        decay_errors(pretrained_speech(run, seed, recipe).to(data.device), data, recipe)
        for seed in run.config["seeds"]
    ]
    evaluation = Evaluation(
        data.dataset.split,
        recalls,
        alternative,
        (len(shown.image), len(distinct)),
        retrieval.chance(shown),
        [seed for seed in decays if seed],
        shown,
    )
    run.write_results(evaluation.as_dict())
    console = Console()
    console.print(retrieval.table(recalls, evaluation.caption()))
    if evaluation.decays:
        console.print(evaluation.decay_note(), soft_wrap=True)
    before = None if frozen else pretrained_image_logits(run, recipe)
    console.print(f"report: {write_report(run, evaluation, data, shown_model, before)}")
    return evaluation
