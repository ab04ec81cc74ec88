"""``cmx train cmac`` and the evaluations of its runs; what trains and measures is imported once one is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmx_fast.data.sets.audio_sets import AUDIO_SETS
from cmx_fast.data.sets.layouts import layout_of
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.data.sets.video_sets import VIDEO_SETS, WITH_SOUND
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
    Preset,
    Resume,
    RunData,
    RunSeed,
    Seeds,
    Set,
    SyncBN,
    Workers,
    choose_models,
    layout,
    words,
)
from cmx_fast.systems.cmac.options import (
    NAMES,
    POOLS,
    UNTRAINED,
    CMACRun,
    DataFolder,
    Fold,
    Model,
    Models,
    MostRecordings,
    Split,
    check_evaluation,
    split_of,
)
from cmx_fast.systems.cmac.recipe import CMACRecipe, FinetuneRecipe
from cmx_fast.train.settings import changes


def train_cmac(
    data: Annotated[Path, typer.Option(help="Videos with sound, e.g. from cmx simulate clips.")],
    dataset: Annotated[str | None, layout(WITH_SOUND)] = None,
    out: Out = Path("runs/cmac"),
    preset: Preset = "paper",
    seed: FirstSeed = 0,
    seeds: Seeds = 1,
    model: Models = ["cmac"],  # noqa: B006
    encoder: Encoder = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    device: Device = None,
    workers: Workers = None,
    precision: Precision = "fp32",
    compile: Compile = False,
    sync_bn: SyncBN = False,
    fsdp: FSDP = False,
    split: Split = None,
    evaluate: Annotated[
        str,
        typer.Option(
            help="Measures: all, retrieval (no classification, so no look at the training videos), or none.",
            autocompletion=words("all", "retrieval", "none"),
        ),
    ] = "all",
    recordings: MostRecordings = 0,
    logger: Loggers = [],  # noqa: B006
    resume: Resume = False,
    set: Annotated[Set, CMACRecipe] = [],  # noqa: B006
) -> None:
    """Train CMAC on videos with sound, evaluate on the held-out split, write report.html.

    Models are the rows of the paper's Table 1: random weights, a single modality, only the attention consistency, only
    the contrastive loss, and CMAC. Tables 2 and 3 are --set levels, norm, within_negatives, within_positives. Videos
    that are broken, too short or without sound are left out and named.

    With --encoder the frames' maps by that pretrained encoder are computed once and kept, and temporal convolutions on
    them are the video encoder. Frames are then squares of the side that it was trained at, and not augmented.

    A folder of one's own videos is split by a hash of their names, and so is a table (path,label) without a column
    split: 70 % to train on, 10 % to choose settings by, "val", and 20 % to test on once, by cmx evaluate cmac --split
    test.
    """
    models = choose_models(model, [*NAMES, "all"])
    check_evaluation(evaluate, ("none", "retrieval", "all"))
    changed = changes(set, CMACRecipe, batch=batch_size, lr=lr)
    recipe = CMACRecipe.preset(preset, **changed)
    if encoder is None and recipe.frame_channels:
        raise ValueError("frame_channels are those of --encoder, which sets them")
    dataset = layout_of(dataset, data, WITH_SOUND)
    held_out = split_of(dataset, split)

    from cmx_fast.networks.visual_encoders import open_visual_encoder
    from cmx_fast.systems.cmac.evaluate import evaluate_run
    from cmx_fast.systems.cmac.features import open_clips
    from cmx_fast.systems.cmac.frame_maps import keep_frame_maps, maps_file
    from cmx_fast.systems.cmac.train import Training, check_key_splits, on_maps
    from cmx_fast.train.session import Session, require_a_batch

    pretrained = None if encoder is None else open_visual_encoder(encoder)
    if pretrained is not None:
        recipe = on_maps(
            recipe, pretrained, own_size="size" in changed or "size" in CMACRecipe.MORE.get(preset, {})
        )
    session = Session(
        "train cmac",
        recipe,
        preset=preset,
        device=device,
        precision=precision,
        compile=compile,
        sync_bn=sync_bn,
        fsdp=fsdp,
        loggers=logger,
    )
    check_key_splits(recipe, session.fabric.world_size)
    splits = ("train", held_out)
    train, test = (
        open_clips(VIDEO_SETS[dataset](data, split), recipe, session.fabric.device, workers=workers)
        for split in splits
    )
    for split, clips in zip(splits, (train, test), strict=True):
        session.say(f"{split}: {len(clips)} recordings{left_out(clips.skipped)}")
    require_a_batch(len(train), recipe.batch, "recordings")
    numbers = range(seed, seed + seeds)
    config = {
        "data": str(data),
        "dataset": dataset,
        "encoder": encoder,
        "encoder_fingerprint": None if pretrained is None else pretrained.fingerprint(),
        "seeds": list(numbers),
        "models": models,
        "split": held_out,
        "evaluate": evaluate,
        "recordings": recordings,
    }
    with session.recording(out, config, resume=resume, splits=(train, test)) as run:
        if pretrained is not None:
            for split, clips in zip(splits, (train, test), strict=True):
                file = maps_file(run.path, split) if session.fabric.is_global_zero else None
                keep_frame_maps(clips, pretrained, recipe, file, mixed=precision == "bf16")
        training = Training(session, recipe, train, test, most=recordings, curves=evaluate != "none")
        for number in numbers:
            for name in models:
                training.train(name, number)
    if evaluate != "none":
        evaluate_run(run.finished(), train, test, data, split=held_out, evaluate=evaluate, most=recordings)


def evaluate_cmac(
    run: CMACRun,
    data: RunData = None,
    split: Split = None,
    evaluate: Annotated[
        str | None, typer.Option(help="Measures: all, or retrieval (no classification); default: the run's.")
    ] = None,
    recordings: MostRecordings = 0,
    encoder_file: EncoderFile = None,
    device: Device = None,
) -> None:
    """Evaluate a finished run on the held-out split: table, results.json and report.html."""
    from cmx_fast.systems.cmac.evaluate import evaluate_run
    from cmx_fast.systems.cmac.features import open_clips
    from cmx_fast.systems.cmac.frame_maps import keep_frame_maps, maps_file
    from cmx_fast.train.fabric import chosen_device
    from cmx_fast.train.frozen_features import run_encoder
    from cmx_fast.train.run_folder import RunFolder

    finished = RunFolder.open_finished(run, "train cmac")
    root, recipe = data or Path(finished.config["data"]), finished.recipe(CMACRecipe)
    dataset = finished.config["dataset"]
    if evaluate is None:
        evaluate = finished.config.get("evaluate", "all")
        evaluate = "all" if evaluate == "none" else evaluate
    check_evaluation(evaluate, ("retrieval", "all"))
    held_out = split_of(dataset, split)
    encoder = run_encoder(finished, encoder_file)
    train, test = (
        open_clips(VIDEO_SETS[dataset](root, name), recipe, chosen_device(device))
        for name in ("train", held_out)
    )
    if encoder is not None:
        for name, clips in (("train", train), (held_out, test)):
            mixed = finished.config["precision"] == "bf16"
            keep_frame_maps(clips, encoder, recipe, maps_file(run, name), mixed=mixed)
    evaluate_run(finished, train, test, root, split=held_out, evaluate=evaluate, most=recordings)


def evaluate_retrieval(
    run: CMACRun,
    data: DataFolder,
    dataset: Annotated[
        str,
        typer.Option(
            help="Data set: kinetics, vggsound, folder, ucf101 or hmdb51.", autocompletion=words(*VIDEO_SETS)
        ),
    ] = "ucf101",
    fold: Fold = 1,
    model: Model = "cmac",
    seed: RunSeed = None,
    encoder_file: EncoderFile = None,
    device: Device = None,
) -> None:
    """Retrieve training videos by held-out ones without fine-tuning; those of the same class are hits (Table 5)."""
    from cmx_fast.systems.cmac.downstream import adapters, nearest, open_model, report
    from cmx_fast.systems.cmac.features import open_clips, video_features
    from cmx_fast.systems.cmac.frame_maps import keep_frame_maps, maps_file
    from cmx_fast.train.fabric import chosen_device
    from cmx_fast.train.frozen_features import run_encoder
    from cmx_fast.train.run_folder import RunFolder

    place = chosen_device(device)
    network, mixed = open_model(run, model, seed, place)
    encoder = run_encoder(RunFolder.open_finished(run, "train cmac"), encoder_file)
    folds: list[dict[str, float]] = []
    counts: list[dict[str, dict[str, int]]] = []
    for splits in adapters(VIDEO_SETS, dataset, data, fold):
        clips = [open_clips(split, network.recipe, place, audio=False) for split in splits]
        for name, videos in zip(("gallery", "queries"), clips, strict=True):
            if encoder is not None:
                file = maps_file(run, f"{dataset}_{len(folds) + 1}_{name}")
                keep_frame_maps(videos, encoder, network.recipe, file, mixed=mixed)
            typer.echo(f"{name}: {len(videos)} videos{left_out(videos.skipped)}", err=True)
        (gallery, gallery_labels), (queries, labels) = (
            video_features(network, videos, mixed=mixed) for videos in clips
        )
        folds.append(nearest(queries, labels, gallery, gallery_labels))
        counts.append({name: part.counts for name, part in zip(("gallery", "queries"), clips, strict=True)})
    title = f"{dataset}: held-out videos among the training videos, %"
    report(run, f"retrieval-{dataset}", title, folds, counts)


def evaluate_linear(
    run: CMACRun,
    data: DataFolder,
    dataset: Annotated[
        str, typer.Option(help="Data set: esc50, dcase2013 or dcase2014.", autocompletion=words(*AUDIO_SETS))
    ] = "esc50",
    fold: Fold = 0,
    model: Annotated[
        str, typer.Option(help="Model of the run, or without training: scratch, or log-mel.")
    ] = "cmac",
    pool: Annotated[
        str,
        typer.Option(
            help="Features: mean of the encoder's maps; bands, mean and deviation over time in each row of them; or "
            "levels, mean and deviation over time and over frequency of all stages but the last.",
            autocompletion=words(*POOLS),
        ),
    ] = "mean",
    machine: Annotated[
        str,
        typer.Option(
            help="Classifier: svm, or ridge (least squares; quick with many features).",
            autocompletion=words("svm", "ridge"),
        ),
    ] = "svm",
    supervised: Annotated[
        bool, typer.Option("--supervised", help="Train the encoder on each fold's labelled sounds first.")
    ] = False,
    seed: RunSeed = None,
    device: Device = None,
) -> None:
    """Classify sounds by a linear machine on the frozen audio encoder (Table 6).

    It is trained on clips; a held-out sound's class is that of its clips' mean decision. Two baselines need no
    training: "scratch", the encoder with the seed's first weights, and "log-mel", means and deviations over time of
    the log filterbank. A third, --supervised, trains the model's encoder on the labels of the training sounds.
    """
    if pool not in POOLS:
        raise ValueError(f"pool must be {', '.join(POOLS[:-1])} or {POOLS[-1]}; got {pool!r}")

    from cmx_fast.systems.cmac.downstream import SoundClassification, adapters, open_model, report
    from cmx_fast.train.fabric import chosen_device
    from cmx_fast.train.run_folder import RunFolder

    if seed is None:
        seed = RunFolder.open_finished(run, "train cmac").config["seeds"][0]
    network, mixed = open_model(run, model, seed, chosen_device(device), UNTRAINED)
    splits = adapters(AUDIO_SETS, dataset, data, fold)
    classification = SoundClassification(
        network,
        dataset,
        log_mel=model == "log-mel",
        pool=pool,
        machine=machine,
        supervised_seed=seed if supervised else None,
        mixed=mixed,
    )
    folds, counts = zip(*(classification.measure(train, test) for train, test in splits), strict=True)
    name = f"{model}-supervised" if supervised else model
    title = f"{dataset}, {name}: classes by a linear classifier, %"
    report(run, f"linear-{dataset}-{name}", title, folds, counts)


def evaluate_finetune(
    run: CMACRun,
    data: DataFolder,
    dataset: Annotated[
        str,
        typer.Option(
            help="Data set: ucf101, hmdb51, kinetics, vggsound or folder.", autocompletion=words(*VIDEO_SETS)
        ),
    ] = "ucf101",
    fold: Annotated[int, typer.Option(help="Fold of ucf101 or hmdb51, 1 to 3; 0: the mean of all.")] = 1,
    model: Annotated[
        str, typer.Option(help="Model of the run; scratch starts from random weights.")
    ] = "cmac",
    seed: RunSeed = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder to write; default RUN/finetune-DATASET-MODEL.")
    ] = None,
    encoder_file: EncoderFile = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    device: Device = None,
    workers: Workers = None,
    precision: Precision = "fp32",
    sync_bn: SyncBN = False,
    logger: Loggers = [],  # noqa: B006
    resume: Resume = False,
    set: Annotated[Set, FinetuneRecipe] = [],  # noqa: B006
) -> None:
    """Fine-tune a run's video encoder on labelled videos and report the held-out top-1 accuracy (Table 4).

    Under torchrun the processes share each batch, and the held-out videos.
    """
    recipe = FinetuneRecipe(**changes(set, FinetuneRecipe, batch=batch_size, lr=lr))

    from cmx_fast.systems.cmac.downstream import adapters, open_model
    from cmx_fast.systems.cmac.finetune import Finetuning, report
    from cmx_fast.train.frozen_features import run_encoder
    from cmx_fast.train.run_folder import RunFolder
    from cmx_fast.train.session import Session

    session = Session(
        "evaluate finetune", recipe, device=device, precision=precision, sync_bn=sync_bn, loggers=logger
    )
    world = session.fabric.world_size
    if recipe.batch < 2 * world:
        raise ValueError(f"batch = {recipe.batch} leaves {world} processes fewer than two videos each")
    folds = adapters(VIDEO_SETS, dataset, data, fold)
    finished = RunFolder.open_finished(run, "train cmac")
    seed = finished.config["seeds"][0] if seed is None else seed
    pretrained, mixed = open_model(run, model, seed, "cpu")
    encoder = run_encoder(finished, encoder_file)
    config = {
        "run": str(run),
        "data": str(data),
        "dataset": dataset,
        "fold": fold,
        "model": model,
        "seed": seed,
    }
    with session.recording(out or run / f"finetune-{dataset}-{model}", config, resume=resume) as folder:
        tuning = Finetuning(session, recipe, pretrained, encoder, seed, mixed_maps=mixed, workers=workers)
        measured = [tuning.measure(number, *splits) for number, splits in enumerate(folds, 1)]
    if session.fabric.is_global_zero:
        report(folder.finished(), f"{dataset}, {model}", *zip(*measured, strict=True))
