"""``cmx train c2l``: C2L, the steps of its ablation and its baselines, from pictures to a table and a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cmx_fast.evaluate.segmentation import scores
from cmx_fast.networks.fpn import FPN, MapShape, load_imagenet
from cmx_fast.networks.visual_encoders import open_visual_encoder
from cmx_fast.options import (
    FSDP,
    Compile,
    Encoder,
    Out,
    Precision,
    Resume,
    Seeds,
    Set,
    SkipBad,
    SyncBN,
    choose_models,
)
from cmx_fast.systems.c2l.data import Pictures
from cmx_fast.systems.c2l.dff import DFF
from cmx_fast.systems.c2l.encoder_maps import KeptViews, keep_maps, keep_views
from cmx_fast.systems.c2l.evaluate import Merge, SkipChictopia, evaluate_run
from cmx_fast.systems.c2l.evaluation import FIRST, NAMES, new_model, open_split, segment
from cmx_fast.systems.c2l.model import C2L
from cmx_fast.systems.c2l.picie import PiCIE
from cmx_fast.systems.c2l.pseudo_labels import PseudoLabels, clustering_bytes, final_centroids
from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.train.initial import initialised
from cmx_fast.train.loop import Stage, constant, warmup_and_cosine
from cmx_fast.train.session import Session
from cmx_fast.train.settings import changes


def train_c2l(
    data: Annotated[Path, typer.Option(help="Data in ATR's layout, e.g. from cmx simulate people.")],
    out: Out = Path("runs/c2l"),
    preset: Annotated[
        str, typer.Option(help="Recipe: paper, or for two CPU cores demo (simulated) or photos (--encoder).")
    ] = "paper",
    seeds: Seeds = 1,
    model: Annotated[
        list[str], typer.Option(help="Model: picie, part, part+pixel, c2l, dff, or all; repeatable.")
    ] = ["all"],  # noqa: B006
    imagenet: Annotated[
        Path | None, typer.Option(help="resnet18-f37072fd.pth; without it the encoder starts at random.")
    ] = None,
    encoder: Encoder = None,
    split: Annotated[
        str, typer.Option(help="Held-out pictures: test, or val to choose a recipe's numbers by.")
    ] = "test",
    merge: Merge = None,
    skip_chictopia: SkipChictopia = False,
    precision: Precision = "fp32",
    compile: Compile = False,
    sync_bn: SyncBN = False,
    fsdp: FSDP = False,
    resume: Resume = False,
    skip_bad: SkipBad = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Train C2L, its ablation and its baselines without masks, evaluate on held-out pictures, write report.html.

    The networks are a ResNet with a pyramid, from random or from ImageNet weights. With --encoder they are a pyramid
    on the maps of that pretrained encoder, which stays as it is: maps of the pictures and of some draws of their views
    are computed once for all models and seeds, and kept in the run folder.
    """
    models = choose_models(model, [*NAMES, "all"])
    changed = changes(set, C2LRecipe)
    if imagenet is not None:
        if encoder is not None:
            raise ValueError("--imagenet is for the ResNet that is trained; with --encoder there is none")
        changed.setdefault("backbone", "resnet18")  # the file's, whatever the preset has
    recipe = C2LRecipe.preset(preset, **changed)
    for name in ("map_stride", "grid_stride", "kept_views"):
        if encoder is None and name in changed:
            raise ValueError(f"{name} is of the maps of --encoder, which is not given")
    pretrained = None if encoder is None else open_visual_encoder(encoder)
    shapes = None if pretrained is None else pretrained.map_shapes(recipe.size, recipe.map_stride)
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
    train, held_out = (
        open_split(
            data,
            name,
            recipe,
            session.fabric.device,
            merge=merge,
            skip_chictopia=skip_chictopia,
            skip_bad=skip_bad,
        )
        for name in ("train", split)
    )
    for name, pictures in (("train", train), (split, held_out)):
        skipped = len(pictures.dataset.skipped)
        session.say(
            f"{name}: {len(pictures)} pictures" + (f"; {skipped} unreadable left out" if skipped else "")
        )
    batch = recipe.batch * session.fabric.world_size
    if len(train) < batch:
        session.say(f"batches of {len(train)} instead of {batch}: there are no more pictures")
    side = recipe.size // 4 if shapes is None else max(shapes[0][1], recipe.size // recipe.grid_stride)
    kept_bytes = clustering_bytes(recipe, len(train), side, session.fabric.world_size)
    session.say(f"clustering keeps up to {kept_bytes / 1e9:.2g} GB; fewer init_pixels need less")
    if imagenet is None and encoder is None:
        session.say("encoder: neither --encoder nor --imagenet weights, so it starts at random")
    config = {
        "data": str(data),
        "split": split,
        "merge": None if merge is None else str(merge),
        "skip_chictopia": skip_chictopia,
        "seeds": list(range(seeds)),
        "models": models,
        "classes": held_out.dataset.class_names,
        "imagenet": None if imagenet is None else str(imagenet),
        "encoder": encoder,
        "encoder_fingerprint": None if pretrained is None else pretrained.fingerprint(),
        "map_shapes": shapes,
        "skip_bad": skip_bad,
    }
    with session.recording(out, config, resume=resume) as run:
        kept_views = None
        if pretrained is not None:

            def kept(name: str) -> Path | None:
                return run.path / f"maps_{name}.npy" if session.fabric.is_global_zero else None

            for name, pictures in (("train", train), (split, held_out)):
                keep_maps(pictures, pretrained, recipe, kept(name))
            kept_views = keep_views(train, pretrained, recipe, kept("views"))
        training = Training(session, recipe, train, held_out, imagenet, shapes, kept_views)
        for seed in range(seeds):
            for name in models:
                training.train(name, seed)
    if session.fabric.is_global_zero:
        evaluate_run(run.finished(), train, held_out, split=split)


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
        """Cluster the training pictures for the classifier, and measure it on held-out ones, for the curves."""
        model.centroids.copy_(final_centroids(self.fabric, model, self.pictures, seed))
        if not self.fabric.is_global_zero:
            return {}
        return scores(segment(model, self.held_out, seed)[0])
