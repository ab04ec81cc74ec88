"""``cmx train c2l`` and ``cmx evaluate c2l``; what trains and measures is imported once one is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmx_fast.data.sets.layouts import layout_of
from cmx_fast.data.sets.names import PARSED
from cmx_fast.options import (
    FSDP,
    BatchSize,
    Compile,
    Device,
    Encoder,
    EncoderFile,
    FirstSeed,
    LearningRate,
    Loggers,
    Out,
    Precision,
    Resume,
    RunData,
    Seeds,
    Set,
    SkipBad,
    SyncBN,
    Workers,
    choose_models,
    layout,
    words,
)
from cmx_fast.systems.c2l.options import NAMES, Merge, Models, SkipChictopia
from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.train.settings import changes


def train_c2l(
    data: Annotated[Path, typer.Option(help="Pictures, with masks to measure by or without.")],
    dataset: Annotated[str | None, layout(PARSED)] = None,
    out: Out = Path("runs/c2l"),
    preset: Annotated[
        str, typer.Option(help="Recipe: paper, or for two CPU cores demo (simulated) or photos (--encoder).")
    ] = "paper",
    seed: FirstSeed = 0,
    seeds: Seeds = 1,
    model: Models = ["all"],  # noqa: B006
    imagenet: Annotated[
        Path | None, typer.Option(help="resnet18-f37072fd.pth; without it the encoder starts at random.")
    ] = None,
    encoder: Encoder = None,
    split: Annotated[
        str,
        typer.Option(
            help="Held-out pictures: test, or val to choose a recipe's numbers by.",
            autocompletion=words("test", "val"),
        ),
    ] = "test",
    merge: Merge = None,
    skip_chictopia: SkipChictopia = False,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    device: Device = None,
    workers: Workers = None,
    precision: Precision = "fp32",
    compile: Compile = False,
    sync_bn: SyncBN = False,
    fsdp: FSDP = False,
    logger: Loggers = [],  # noqa: B006
    resume: Resume = False,
    skip_bad: SkipBad = False,
    set: Annotated[Set, C2LRecipe] = [],  # noqa: B006
) -> None:
    """Train C2L, its ablation and its baselines without masks, evaluate on held-out pictures, write report.html.

    The networks are a ResNet with a pyramid, from random or from ImageNet weights. With --encoder they are a pyramid
    on the maps of that pretrained encoder, which stays as it is: maps of the pictures and of some draws of their views
    are computed once for all models and seeds, and kept in the run folder.

    Pictures are any folder of photographs, of which 70 % are trained on and 20 % shown in the report; masks are
    train/masks/NAME.png for train/pictures/NAME.jpg, or those of ATR and VOC. With masks the report has figures.
    """
    models = choose_models(model, [*NAMES, "all"])
    changed = changes(set, C2LRecipe, batch=batch_size, lr=lr)
    if imagenet is not None:
        if encoder is not None:
            raise ValueError("--imagenet is for the ResNet that is trained; with --encoder there is none")
        changed.setdefault("backbone", "resnet18")  # the file's, whatever the preset has
    recipe = C2LRecipe.preset(preset, **changed)
    dataset = layout_of(dataset, data, PARSED)
    for name in ("map_stride", "grid_stride", "kept_views"):
        if encoder is None and name in changed:
            raise ValueError(f"{name} is of the maps of --encoder, which is not given")

    from cmx_fast.networks.fpn import FPN, load_imagenet
    from cmx_fast.networks.visual_encoders import open_visual_encoder
    from cmx_fast.systems.c2l.encoder_maps import keep_maps, keep_views
    from cmx_fast.systems.c2l.evaluate import report_run
    from cmx_fast.systems.c2l.evaluation import open_split
    from cmx_fast.systems.c2l.pseudo_labels import clustering_bytes
    from cmx_fast.systems.c2l.train import Training
    from cmx_fast.train.session import Session

    pretrained = None if encoder is None else open_visual_encoder(encoder)
    shapes = None if pretrained is None else pretrained.map_shapes(recipe.size, recipe.map_stride)
    if imagenet is not None:
        load_imagenet(FPN(recipe.backbone), imagenet)  # fails before the data are read
    session = Session(
        "train c2l",
        recipe,
        preset=preset,
        device=device,
        precision=precision,
        compile=compile,
        sync_bn=sync_bn,
        fsdp=fsdp,
        loggers=logger,
    )
    world = session.fabric.world_size
    if world > 1 and recipe.batch < 2 * world:
        raise ValueError(
            f"batch = {recipe.batch} leaves {world} processes fewer than two pictures each; --batch-size ..."
        )
    train, held_out = (
        open_split(
            dataset,
            data,
            name,
            recipe,
            session.fabric.device,
            merge=merge,
            skip_chictopia=skip_chictopia,
            skip_bad=skip_bad,
            workers=workers,
        )
        for name in ("train", split)
    )
    for name, pictures in (("train", train), (split, held_out)):
        skipped = len(pictures.dataset.skipped)
        session.say(
            f"{name}: {len(pictures)} pictures" + (f"; {skipped} unreadable left out" if skipped else "")
        )
    if len(train) < recipe.batch:
        session.say(f"batches of {len(train)} instead of {recipe.batch}: there are no more pictures")
    side = recipe.size // 4 if shapes is None else max(shapes[0][1], recipe.size // recipe.grid_stride)
    kept_bytes = clustering_bytes(recipe, len(train), side, world)
    session.say(f"clustering keeps up to {kept_bytes / 1e9:.2g} GB; fewer init_pixels need less")
    if imagenet is None and encoder is None:
        session.say("encoder: neither --encoder nor --imagenet weights, so it starts at random")
    numbers = range(seed, seed + seeds)
    config = {
        "data": str(data),
        "dataset": dataset,
        "split": split,
        "merge": None if merge is None else str(merge),
        "skip_chictopia": skip_chictopia,
        "seeds": list(numbers),
        "models": models,
        "classes": held_out.class_names,
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
        for number in numbers:
            for name in models:
                training.train(name, number)
    if session.fabric.is_global_zero:
        report_run(run.finished(), train, held_out, split=split)


def evaluate_c2l(
    run: Annotated[Path, typer.Option(help="Run folder of cmx train c2l.")],
    data: RunData = None,
    split: Annotated[
        str,
        typer.Option(
            help="test, or val, of which the paper's tables are.", autocompletion=words("test", "val")
        ),
    ] = "test",
    clusters: Annotated[
        int | None,
        typer.Option(min=2, help="Cluster the training pictures anew; default: the run's clusters."),
    ] = None,
    merge: Merge = None,
    skip_chictopia: SkipChictopia = False,
    encoder_file: EncoderFile = None,
    device: Device = None,
    skip_bad: SkipBad = False,
) -> None:
    """Evaluate a finished run on held-out pictures: table, results.json and report.html."""
    from cmx_fast.systems.c2l.encoder_maps import keep_maps
    from cmx_fast.systems.c2l.evaluate import report_run
    from cmx_fast.systems.c2l.evaluation import open_split
    from cmx_fast.train.fabric import chosen_device
    from cmx_fast.train.frozen_features import run_encoder
    from cmx_fast.train.run_folder import RunFolder

    finished = RunFolder.open_finished(run, "train c2l")
    root, recipe = data or Path(finished.config["data"]), finished.recipe(C2LRecipe)
    stored = finished.config.get("merge")
    train, held_out = (
        open_split(
            finished.config.get("dataset", "atr"),
            root,
            name,
            recipe,
            chosen_device(device),
            merge=merge or (None if stored is None else Path(stored)),
            skip_chictopia=skip_chictopia or finished.config.get("skip_chictopia", False),
            skip_bad=skip_bad,
        )
        for name in ("train", split)
    )
    encoder = run_encoder(finished, encoder_file)
    if encoder is not None:
        for name, pictures in (("train", train), (split, held_out)):
            keep_maps(pictures, encoder, recipe, finished.path / f"maps_{name}.npy")
    report_run(finished, train, held_out, split=split, clusters=clusters)
