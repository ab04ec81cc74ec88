"""Measures a CMAC run's frozen encoders on other data sets."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor

from cmx_fast.data.media.decode import read_wave
from cmx_fast.data.sets.recordings import Recordings
from cmx_fast.data.sets.video_sets import held_out
from cmx_fast.evaluate.linear import MACHINES, classify
from cmx_fast.evaluate.retrieval import hits, rank
from cmx_fast.evaluate.summary import new_table
from cmx_fast.networks.audio_video import ResNet9
from cmx_fast.systems.cmac.evaluation import new_model
from cmx_fast.systems.cmac.model import CMAC
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.systems.cmac.sounds import cut, playable
from cmx_fast.systems.cmac.supervised import train_encoder
from cmx_fast.train.initial import initialised
from cmx_fast.train.run_folder import RunFolder

#: Numbers of nearest neighbours among which a hit counts (Table 5).
RANKS = (1, 5, 10)
#: Evenly spaced clips of a sound and their seconds, by data set (the paper's section 4.2).
SOUND_CLIPS = {"esc50": (10, 2.0), "dcase2013": (60, 1.0), "dcase2014": (60, 1.0)}
#: Folds of the data sets that have some.
FOLDED = {
    "ucf101": (1, 2, 3),
    "hmdb51": (1, 2, 3),
    "esc50": (1, 2, 3, 4, 5),
    "dcase2013": (1, 2, 3, 4, 5),
}


def open_model(
    run: Path, name: str, seed: int | None, device: str, untrained: tuple[str, ...] = ()
) -> tuple[CMAC, bool]:
    """Open a finished model of a run in evaluation mode; True beside it if the run had mixed precision.

    ``seed`` None is the run's first. Those that ``untrained`` names have the seed's first weights, whatever the run has
    trained.

    Raises:
        ValueError: the run is not finished, or has no such model or seed.
    """
    finished = RunFolder.open_finished(run, "train cmac")
    config = finished.config
    seed = config["seeds"][0] if seed is None else seed
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


def nearest(queries: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor) -> dict[str, float]:
    """R@1, R@5 and R@10 by class; "chance" is R@1 of a random ranking."""
    among = hits(rank(queries, gallery, max(RANKS)), gallery_labels, labels)
    figures = {f"R@{k}": float(among[:, min(k, among.shape[1]) - 1].double().mean()) for k in RANKS}
    return figures | {"chance": float((gallery_labels == labels[:, None]).double().mean())}


class SoundClassification:
    """Sounds of a data set by a linear machine on a model's frozen audio encoder.

    Args:
        log_mel: describe sounds by the log filterbank instead of the encoder.
        pool: of :func:`encoder_features`. machine: of :func:`cmx_fast.evaluate.linear.classify`.
        supervised_seed: train the encoder on the labels of each fold's training sounds first, from this seed.
        mixed: of :func:`sound_features`.

    Raises:
        ValueError: an unknown machine; or a seed with ``log_mel``, which has no encoder to train.
    """

    def __init__(
        self,
        model: CMAC,
        dataset: str,
        *,
        log_mel: bool,
        pool: str,
        machine: str,
        supervised_seed: int | None,
        mixed: bool,
    ):
        if machine not in MACHINES:
            raise ValueError(f"machine must be {' or '.join(MACHINES)}; got {machine!r}")
        if supervised_seed is not None and log_mel:
            raise ValueError("supervised needs a model with an encoder; log-mel has none")
        self.model, self.mixed, self.machine, self.supervised_seed = model, mixed, machine, supervised_seed
        self.features = functools.partial(log_mel_features if log_mel else encoder_features, pool=pool)
        self.clips, self.seconds = SOUND_CLIPS[dataset]
        self._known: dict[Path, Tensor] = {}

    def measure(
        self, train: Recordings, test: Recordings
    ) -> tuple[dict[str, float], dict[str, dict[str, int]]]:
        """The accuracy on a fold's test part, beside "chance", the share of its largest class; and sounds by part."""
        network, known = self.model, self._known
        if self.supervised_seed is not None:
            network, known = copy.deepcopy(self.model), {}
            train_encoder(network, train, self.seconds, self.supervised_seed)
        describe = functools.partial(self.features, network)
        (rows, labels), (held, held_labels) = (
            sound_features(network, describe, split, self.clips, self.seconds, known, mixed=self.mixed)
            for split in (train, test)
        )
        sound = torch.arange(len(labels)).repeat_interleave(self.clips)
        values = classify(
            rows.flatten(0, 1), labels[sound], held.flatten(0, 1), groups=sound, machine=self.machine
        )
        right = values.unflatten(0, (-1, self.clips)).mean(1).argmax(1) == held_labels
        largest = float(held_labels.bincount().max() / len(held_labels))
        return {"accuracy": float(right.double().mean()), "chance": largest}, {
            name: {"listed": len(part) + len(part.skipped), "used": len(used)}
            for name, part, used in (("train", train, labels), ("test", test, held_labels))
        }


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


def report(
    run: Path,
    name: str,
    title: str,
    folds: Sequence[dict[str, float]],
    counts: Sequence[dict[str, dict[str, int]]],
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
