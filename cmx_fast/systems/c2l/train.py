"""Trains C2L, the steps of its ablation and its baselines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cmx_fast.evaluate.segmentation import scores
from cmx_fast.networks.fpn import FPN, MapShape, load_imagenet
from cmx_fast.systems.c2l.data import Pictures
from cmx_fast.systems.c2l.dff import DFF
from cmx_fast.systems.c2l.encoder_maps import KeptViews
from cmx_fast.systems.c2l.evaluation import FIRST, new_model, segment
from cmx_fast.systems.c2l.model import C2L
from cmx_fast.systems.c2l.picie import PiCIE
from cmx_fast.systems.c2l.pseudo_labels import PseudoLabels, final_centroids
from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.train.initial import initialised
from cmx_fast.train.loop import Stage, constant, warmup_and_cosine
from cmx_fast.train.session import Session


class Training:
    """The models of one run, each from the same initial encoder."""

    def __init__(
        self,
        session: Session,
        recipe: C2LRecipe,
        train: Pictures,
        held_out: Pictures,
        imagenet: Path | None,
        shapes: Sequence[MapShape] | None,
        kept_views: KeptViews | None,
    ):
        self.session, self.fabric, self.recipe = session, session.fabric, recipe
        self.pictures, self.held_out, self.imagenet = train, held_out, imagenet
        self.shapes, self.kept_views = shapes, kept_views

    def train(self, name: str, seed: int) -> None:
        """Train a model from a seed, or load it where the run has finished it; DFF keeps its first encoder."""
        stage = f"seed{seed}/{name}"
        model = initialised(seed, lambda: new_model(name, self.recipe, self.shapes))
        if isinstance(model.encoder, FPN):
            if self.imagenet is not None:
                load_imagenet(model.encoder, self.imagenet)
            if not (self.session.run.path / f"seed{seed}" / f"{FIRST}.pt").is_file():
                self.session.run.finish(f"seed{seed}/{FIRST}", model.encoder.state_dict())
        if isinstance(model, DFF):
            if self.session.run.weights(stage) is None:
                self.session.run.finish(stage, model.state_dict())
            return
        model.to(self.fabric.device)

        def log(step: int, figures: dict[str, float]) -> None:
            self.session.run.log({"stage": stage, "step": step, **figures})

        labels = PseudoLabels(self.fabric, model, self.pictures, seed, log, self.kept_views)
        steps = self.recipe.epochs * labels.steps_per_epoch
        self.session.train(
            Stage(
                stage,
                model,
                [{"params": list(model.parameters()), "lr": self.recipe.lr}],
                steps,
                labels.batches,
                seed,
                labels=None,
                schedule=warmup_and_cosine if self.recipe.cosine else constant,
                after_step=model.project_ if isinstance(model, C2L) else None,
                state=labels,
                evaluation=lambda: self.evaluate(model, seed),
                evaluate_every=max(1, steps // self.recipe.evaluations),
            )
        )

    def evaluate(self, model: PiCIE, seed: int) -> dict[str, float]:
        """Cluster the training pictures for the classifier, and measure it on held-out masks, for the curves."""
        model.centroids.copy_(final_centroids(self.fabric, model, self.pictures, seed))
        if not self.fabric.is_global_zero or not self.held_out.class_names:
            return {}
        return scores(segment(model, self.held_out, seed)[0])
