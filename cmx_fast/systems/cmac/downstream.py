"""``cmx evaluate retrieval`` and ``linear``: a CMAC run's frozen encoders on other data sets."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor

from cmx_fast.data.media.decode import read_wave
from cmx_fast.data.sets.audio_sets import AUDIO_SETS
from cmx_fast.data.sets.recordings import Recordings, left_out
from cmx_fast.data.sets.video_sets import VIDEO_SETS, held_out
from cmx_fast.evaluate.linear import MACHINES, classify
from cmx_fast.evaluate.retrieval import hits, rank
from cmx_fast.evaluate.summary import new_table
from cmx_fast.networks.audio_video import ResNet9
from cmx_fast.systems.cmac.evaluation import new_model
from cmx_fast.systems.cmac.features import open_clips, video_features
from cmx_fast.systems.cmac.frame_maps import keep_frame_maps, maps_file
from cmx_fast.systems.cmac.model import CMAC
from cmx_fast.systems.cmac.options import CMACRun, DataFolder, RunSeed
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.systems.cmac.sounds import cut, playable
from cmx_fast.systems.cmac.supervised import train_encoder
from cmx_fast.train.frozen_features import run_encoder
from cmx_fast.train.initial import initialised
from cmx_fast.train.options import EncoderFile, default_device
from cmx_fast.train.run_folder import RunFolder

#: Numbers of nearest neighbours among which a hit counts (Table 5).
RANKS = (1, 5, 10)
#: Evenly spaced clips of a sound and their seconds, by data set (the paper's section 4.2).
SOUND_CLIPS = {"esc50": (10, 2.0), "dcase2013": (60, 1.0), "dcase2014": (60, 1.0)}
#: Models that ``cmx evaluate linear`` knows without training, and the ways in which it pools an encoder's maps.
BASELINES, POOLS = ("scratch", "log-mel"), ("mean", "bands", "levels")
FOLDED = {
    "ucf101": (1, 2, 3),
    "hmdb51": (1, 2, 3),
    "esc50": (1, 2, 3, 4, 5),
    "dcase2013": (1, 2, 3, 4, 5),
}

Fold = Annotated[
    int,
    typer.Option(help="Fold of ucf101, hmdb51 (1 to 3), esc50 or dcase2013 (1 to 5); 0: the mean of all."),
]
Model = Annotated[str, typer.Option(help="Model of the run.")]


def open_model(
    run: Path, name: str, seed: int, device: str, untrained: tuple[str, ...] = ()
) -> tuple[CMAC, bool]:
    """Open a finished model of a run in evaluation mode; True beside it if the run had mixed precision.

    Those that ``untrained`` names have the seed's first weights, whatever the run has trained.

    Raises:
        ValueError: the run is not finished, or has no such model or seed.
    """
    finished = RunFolder.open_finished(run, "train cmac")
    config = finished.config
    if name in untrained:
        recipe = finished.recipe(CMACRecipe)
        model = initialised(seed, lambda: new_model("scratch", recipe))
        return model.to(device).eval(), config["precision"] == "bf16"
    for option, value, known in (
        ("model", name, [*config["models"], *untrained]),
        ("seed", seed, config["seeds"]),
    ):
        if value not in known:
            raise ValueError(f"{option} must be one of the run's {', '.join(map(str, known))}; got {value!r}")
    model = new_model(name, finished.recipe(CMACRecipe))
    model.load_state_dict(finished.weights(f"seed{seed}/{name}"))
    return model.to(device).eval(), config["precision"] == "bf16"


def adapters(
    sets: dict[str, Callable[..., Recordings]], dataset: str, data: Path, fold: int
) -> list[tuple[Recordings, Recordings]]:
    """Pairs of training and held-out split, one for each fold that is asked for; a set without folds has one pair.

    Raises:
        ValueError: an unknown data set, or a fold that it does not have.
    """
    if dataset not in sets:
        raise ValueError(f"dataset must be one of {', '.join(sets)}; got {dataset!r}")
    folds, make = FOLDED.get(dataset, ()), sets[dataset]
    if folds and fold not in (0, *folds):
        raise ValueError(f"fold must be 1 to {folds[-1]}, or 0 for all; got {fold}")
    options = [{"fold": f} for f in ([fold] if fold else folds)] if folds else [{}]
    return [(make(data, "train", **option), make(data, held_out(dataset), **option)) for option in options]


def evaluate_retrieval(
    run: CMACRun,
    data: DataFolder,
    dataset: Annotated[
        str, typer.Option(help="Data set: kinetics, vggsound, folder, ucf101 or hmdb51.")
    ] = "ucf101",
    fold: Fold = 1,
    model: Model = "cmac",
    seed: RunSeed = 0,
    encoder_file: EncoderFile = None,
) -> None:
    """Retrieve training videos by held-out ones without fine-tuning; those of the same class are hits (Table 5)."""
    device = default_device()
    network, mixed = open_model(run, model, seed, device)
    encoder = run_encoder(RunFolder.open_finished(run, "train cmac"), encoder_file)
    folds: list[dict[str, float]] = []
    counts: list[dict[str, dict[str, int]]] = []
    for splits in adapters(VIDEO_SETS, dataset, data, fold):
        clips = [open_clips(split, network.recipe, device, audio=False) for split in splits]
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
    _report(run, f"retrieval-{dataset}", title, folds, counts)


def nearest(queries: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor) -> dict[str, float]:
    """R@1, R@5 and R@10 by class; "chance" is R@1 of a random ranking."""
    among = hits(rank(queries, gallery, max(RANKS)), gallery_labels, labels)
    figures = {f"R@{k}": float(among[:, min(k, among.shape[1]) - 1].double().mean()) for k in RANKS}
    return figures | {"chance": float((gallery_labels == labels[:, None]).double().mean())}


def evaluate_linear(
    run: CMACRun,
    data: DataFolder,
    dataset: Annotated[str, typer.Option(help="Data set: esc50, dcase2013 or dcase2014.")] = "esc50",
    fold: Fold = 0,
    model: Annotated[
        str, typer.Option(help="Model of the run, or without training: scratch, or log-mel.")
    ] = "cmac",
    pool: Annotated[
        str,
        typer.Option(
            help="Features: mean of the encoder's maps; bands, mean and deviation over time in each row of them; or "
            "levels, mean and deviation over time and over frequency of all stages but the last."
        ),
    ] = "mean",
    machine: Annotated[
        str, typer.Option(help="Classifier: svm, or ridge (least squares; quick with many features).")
    ] = "svm",
    supervised: Annotated[
        bool, typer.Option("--supervised", help="Train the encoder on each fold's labelled sounds first.")
    ] = False,
    seed: RunSeed = 0,
) -> None:
    """Classify sounds by a linear machine on the frozen audio encoder (Table 6).

    It is trained on clips; a held-out sound's class is that of its clips' mean decision. Two baselines need no
    training: "scratch", the encoder with the seed's first weights, and "log-mel", means and deviations over time of
    the log filterbank. A third, --supervised, trains the model's encoder on the labels of the training sounds.
    """
    for option, value, choices in (("pool", pool, POOLS), ("machine", machine, MACHINES)):
        if value not in choices:
            raise ValueError(f"{option} must be {', '.join(choices[:-1])} or {choices[-1]}; got {value!r}")
    if supervised and model == "log-mel":
        raise ValueError("supervised needs a model with an encoder; log-mel has none")
    device = default_device()
    pretrained, mixed = open_model(run, model, seed, device, BASELINES)
    count, seconds = SOUND_CLIPS.get(dataset, (0, 0.0))
    folds, counts, known = [], [], dict[Path, Tensor]()
    for train, test in adapters(AUDIO_SETS, dataset, data, fold):
        network = pretrained
        if supervised:
            network, known = copy.deepcopy(pretrained), {}
            train_encoder(network, train, seconds, seed)
        describe = functools.partial(
            log_mel_features if model == "log-mel" else encoder_features, network, pool=pool
        )
        (rows, labels), (held, held_labels) = (
            sound_features(network, describe, split, count, seconds, known, mixed=mixed)
            for split in (train, test)
        )
        sound = torch.arange(len(labels)).repeat_interleave(count)
        values = classify(
            rows.flatten(0, 1), labels[sound], held.flatten(0, 1), groups=sound, machine=machine
        )
        right = values.unflatten(0, (-1, count)).mean(1).argmax(1) == held_labels
        largest = float(held_labels.bincount().max() / len(held_labels))
        folds.append({"accuracy": float(right.double().mean()), "chance": largest})
        counts.append(
            {
                name: {"listed": len(part) + len(part.skipped), "used": len(used)}
                for name, part, used in (("train", train, labels), ("test", test, held_labels))
            }
        )
    name = f"{model}-supervised" if supervised else model
    title = f"{dataset}, {name}: classes by a linear classifier, %"
    _report(run, f"linear-{dataset}-{name}", title, folds, counts)


def encoder_features(model: CMAC, waves: Tensor, *, pool: str) -> Tensor:
    """Features (B, D) of sounds by the audio encoder, pooled in one of :data:`POOLS`; means are unit vectors.

    "levels" leaves out the last stage, which has half of all channels and is the most of the task that it was trained
    on.
    """
    encoder = model.audio.encoder
    assert isinstance(encoder, ResNet9)
    levels = encoder.maps(model.spectrogram(waves))
    if pool == "levels":
        return torch.cat([over_time_and_frequency(maps) for maps in levels[:-1]], 1)
    last = levels[-1].float()
    return over_time(last) if pool == "bands" else F.normalize(last.flatten(2).mean(2), dim=1)


def log_mel_features(model: CMAC, waves: Tensor, *, pool: str) -> Tensor:
    """Means and deviations over time (B, 2 filters) of the log filterbank, whatever the pool."""
    return over_time(model.filterbank(waves)[:, None])


def over_time(maps: Tensor) -> Tensor:
    """Means and deviations over the last dimension, time, of maps (B, C, F, T): (B, 2 C F)."""
    deviations, means = torch.std_mean(maps.float(), 3, correction=0)
    return torch.cat([means, deviations], 1).flatten(1)


def over_time_and_frequency(maps: Tensor) -> Tensor:
    """Three numbers of every channel of maps (B, C, F, T), so (B, 3 C): the mean, the deviation over time (averaged
    over frequency), and the deviation over frequency of the means over time."""
    deviations, means = torch.std_mean(maps.float(), 3, correction=0)
    return torch.cat([means.mean(2), deviations.mean(2), means.std(2, correction=0)], 1)


@torch.no_grad()
def sound_features(
    model: CMAC,
    describe: Callable[[Tensor], Tensor],
    recordings: Recordings,
    count: int,
    seconds: float,
    known: dict[Path, Tensor],
    *,
    mixed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Features (N, count, D) of ``count`` evenly spaced clips of each sound, and labels (N,).

    ``describe`` gives those of waves at the model's rate, (B, samples) to (B, D). ``known`` keeps the features of every
    file, as folds share their sounds. Sounds that can't be read or are shorter than a clip are left out, and named on
    the standard error stream.
    """
    rate = model.recipe.sample_rate
    device = model.filterbank.bands.device
    rows, labels, skipped = [], [], list(recordings.skipped)
    for entry in track(recordings.entries, "sounds", transient=True):
        if entry.path in known:
            rows.append(known[entry.path])
            labels.append(entry.label)
            continue
        length, problem = playable(entry.path, seconds)
        if problem is not None:
            skipped.append((entry.path, problem))
            continue
        wave = read_wave(entry.path, 0.0, length, rate)
        starts = (torch.linspace(0, length - seconds, count) * rate).round().long().tolist()
        waves = torch.stack([cut(wave, start, round(seconds * rate)) for start in starts]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            known[entry.path] = describe(waves).float().cpu()
        rows.append(known[entry.path])
        labels.append(entry.label)
    for path, reason in skipped:
        typer.echo(f"left out {path}: {reason}", err=True)
    if not rows:
        raise ValueError(f"none of {len(recordings)} sounds can be used")
    return torch.stack(rows), torch.tensor(labels)


def _report(
    run: Path,
    name: str,
    title: str,
    folds: list[dict[str, float]],
    counts: list[dict[str, dict[str, int]]],
) -> None:
    """Print the mean over folds and write ``<run>/<name>.json``, with the recordings of each fold's parts."""
    mean = {key: sum(fold[key] for fold in folds) / len(folds) for key in folds[0]}
    result: dict[str, Any] = {"mean": mean, "folds": folds, "recordings": counts}
    (run / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    table = new_table(title, mean)
    for number, fold in enumerate(folds, 1) if len(folds) > 1 else ():
        table.add_row(f"fold {number}", *(f"{100 * value:.1f}" for value in fold.values()))
    table.add_row("mean" if len(folds) > 1 else "", *(f"{100 * value:.1f}" for value in mean.values()))
    Console().print(table)
