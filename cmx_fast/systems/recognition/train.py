"""Trains the network with one attention module."""

from __future__ import annotations

from cmx_fast.systems.recognition.classifiers import ProposalStart, ScaleClassifier
from cmx_fast.systems.recognition.data import Data, TrainingBatches
from cmx_fast.systems.recognition.evaluation import measure
from cmx_fast.systems.recognition.networks import new_model
from cmx_fast.train.initial import initialised
from cmx_fast.train.loop import Stage
from cmx_fast.train.session import Session


def train_model(session: Session, splits: Data, name: str, seed: int) -> None:
    """Train the network with one attention module from a seed, or load it where the run has finished it."""
    recipe, stage = splits.recipe, f"seed{seed}/{name}"
    classes = len(splits.pictures("train").class_names)
    model = initialised(seed, lambda: new_model(splits.task, splits.plan(name, classes)))
    examples, held_out = (splits.examples(split, name) for split in ("train", "val"))
    batches = TrainingBatches(examples, recipe, seed)
    if isinstance(model, ScaleClassifier):
        start = ProposalStart(model)
        session.train(
            Stage(
                f"{stage}-proposals",
                start,
                [{"params": list(model.scales.proposals.parameters()), "lr": recipe.lr}],
                recipe.proposal_epochs * batches.steps_per_epoch,
                batches,
                seed,
                labels=None,
            )
        )
    steps = recipe.epochs * batches.steps_per_epoch
    session.train(
        Stage(
            stage,
            model,
            model.groups(),
            steps,
            batches,
            seed,
            weight_decay=recipe.weight_decay,
            turns=ScaleClassifier.TURNS if isinstance(model, ScaleClassifier) else (),
            labels=None,
            evaluation=lambda: measure(model, held_out).figures,
            evaluate_every=max(1, steps // recipe.evaluations),
        )
    )
