"""``cmx train c2l``: C2L, the steps of its ablation and its baselines, from pictures to a table and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmx_fast.evaluate.segmentation import scores
from cmx_fast.networks.fpn import FPN, load_imagenet
from cmx_fast.systems.c2l.data import Pictures
from cmx_fast.systems.c2l.dff import DFF
from cmx_fast.systems.c2l.evaluate import evaluate_run
from cmx_fast.systems.c2l.evaluation import NAMES, new_model, open_split, segment
from cmx_fast.systems.c2l.model import C2L
from cmx_fast.systems.c2l.picie import PiCIE
from cmx_fast.systems.c2l.pseudo_labels import PseudoLabels, final_centroids
from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.train.initial import initialised
from cmx_fast.train.loop import Stage, constant, warmup_and_cosine
from cmx_fast.train.options import (
    FSDP,
    Compile,
    Out,
    Precision,
    Preset,
    Resume,
    Seeds,
    Set,
    SkipBad,
    SyncBN,
    changes,
    choose_models,
)
from cmx_fast.train.session import Session


def train_c2l(
    data: Annotated[Path, typer.Option(help="Data in ATR's layout, e.g. from cmx simulate people.")],
    out: Out = Path("runs/c2l"),
    preset: Preset = "paper",
    seeds: Seeds = 1,
    model: Annotated[
        list[str], typer.Option(help="Model: picie, part, part+pixel, c2l, dff, or all; repeatable.")
    ] = ["all"],  # noqa: B006
    imagenet: Annotated[
        Path | None, typer.Option(help="resnet18-f37072fd.pth; without it the encoder starts at random.")
    ] = None,
    precision: Precision = "fp32",
    compile: Compile = False,
    sync_bn: SyncBN = False,
    fsdp: FSDP = False,
    resume: Resume = False,
    skip_bad: SkipBad = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Train C2L, its ablation and its baselines without masks, evaluate on the test split, write report.html."""
    models = choose_models(model, [*NAMES, "all"])
    recipe = C2LRecipe.preset(preset, **changes(set, C2LRecipe))
    if imagenet is not None:
        load_imagenet(FPN(recipe.backbone), imagenet)  # fails before the data are read
    session = Session(
        "train c2l",
        recipe,
        preset=preset,
        precision=precision,
        compile=compile,
        sync_bn=sync_bn,
        fsdp=fsdp,
    )
    train = open_split(data, "train", recipe, session.fabric.device, skip_bad=skip_bad)
    test = open_split(data, "test", recipe, session.fabric.device, skip_bad=skip_bad)
    for split, pictures in (("train", train), ("test", test)):
        skipped = len(pictures.dataset.skipped)
        session.say(
            f"{split}: {len(pictures)} pictures" + (f"; {skipped} unreadable left out" if skipped else "")
        )
    batch = recipe.batch * session.fabric.world_size
    if len(train) < batch:
        session.say(f"batches of {len(train)} instead of {batch}: there are no more pictures")
    if imagenet is None:
        session.say("encoder: no --imagenet weights, so it starts at random")
    config = {
        "data": str(data),
        "seeds": list(range(seeds)),
        "models": models,
        "classes": test.dataset.class_names,
        "imagenet": None if imagenet is None else str(imagenet),
        "skip_bad": skip_bad,
    }
    with session.recording(out, config, resume=resume) as run:
        training = Training(session, recipe, train, test, imagenet)
        for seed in range(seeds):
            for name in models:
                training.train(name, seed)
    if session.fabric.is_global_zero:
        evaluate_run(run.finished(), test)


class Training:
    """The models of one run, each from the same initial encoder."""

    def __init__(
        self,
        session: Session,
        recipe: C2LRecipe,
        train: Pictures,
        test: Pictures,
        imagenet: Path | None,
    ):
        self.session, self.fabric, self.recipe = session, session.fabric, recipe
        self.pictures, self.test, self.imagenet = train, test, imagenet

    def train(self, name: str, seed: int) -> None:
        """Train a model from a seed, or load it where the run has finished it; DFF keeps its first encoder."""
        stage = f"seed{seed}/{name}"
        model = initialised(seed, lambda: new_model(name, self.recipe))
        if self.imagenet is not None:
            load_imagenet(model.encoder, self.imagenet)
        if isinstance(model, DFF):
            if self.session.run.weights(stage) is None:
                self.session.run.finish(stage, model.state_dict())
            return
        model.to(self.fabric.device)

        def log(step: int, figures: dict[str, float]) -> None:
            self.session.run.log({"stage": stage, "step": step, **figures})

        labels = PseudoLabels(self.fabric, model, self.pictures, seed, log)
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
        """Cluster the training pictures for the classifier, and measure it on held-out ones, for the curves."""
        model.centroids.copy_(final_centroids(self.fabric, model, self.pictures, seed))
        if not self.fabric.is_global_zero:
            return {}
        return scores(segment(model, self.test, seed)[0])
