"""Reads every kind of file that this package opens, for ``python -m benchmarks.robustness.fuzz`` to damage."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cmx_fast.data.media.decode import probe, read_frames, read_wave
from cmx_fast.data.media.files import read_audio, read_picture
from cmx_fast.data.sets.atr import ATR
from cmx_fast.data.sets.image2reverb import Image2Reverb
from cmx_fast.data.sets.scenes import open_scenes
from cmx_fast.data.sets.selection import read_selection, write_selection
from cmx_fast.networks.weights import digest, load, save
from cmx_fast.train.run_folder import RunFolder

from .fuzz_operators import Wrong

CONFIG = {"command": "fuzz", "recipe": {"alpha": 0.5}, "seeds": [0]}


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    files: those that may be damaged, in the folder of seeds. read: opens them. simulated: the data set that it needs.
    """

    files: Callable[[Path], list[Path]]
    read: Callable[[Path], object]
    simulated: str = ""


#: Commands that write data sets, by their folders.
SIMULATED: dict[str, tuple[object, ...]] = {
    "vggsound": ("clips", "--clips", 16, "--layout", "vggsound", "--seconds", 1.5),
    "kinetics": ("clips", "--clips", 16, "--seconds", 1.5),
    "people": ("people", "--people", 6),
    "rooms": ("rooms", "--rooms", 4),
}


def write_seeds(folder: Path, readers: Iterable[Reader]) -> None:
    """Write real files for these readers; simulators run in processes of their own, so that this one has no threads."""
    for name in {reader.simulated for reader in readers} - {""}:
        command = [sys.executable, "-m", "cmx_fast", "simulate", *map(str, SIMULATED[name])]
        subprocess.run([*command, "--out", str(folder / name)], check=True, capture_output=True)
    save(folder / "state.pt", _state())
    write_selection(folder / "selection.json", {"a_0_10000": [1, 2, 3], "b_0_10000": [7]})
    RunFolder(folder / "run", CONFIG).close()
    (folder / "run/metrics.jsonl").write_text(
        "".join(json.dumps({"stage": "s", "step": n, "loss": 1 / n}) + "\n" for n in (1, 2, 3))
    )


def _state() -> dict[str, Any]:
    return {"stage": "s", "step": 3, "module": {"w": torch.arange(60.0).view(6, 10), "n": torch.tensor(2)}}


def _checkpoint(folder: Path) -> None:
    state = load(folder / "state.pt")
    del state["format"]
    if digest(state) != digest(_state()):
        raise Wrong("a damaged checkpoint was read as if it were whole")


def _run(folder: Path) -> None:
    run = RunFolder(folder / "run", CONFIG, resume=True)
    try:
        run.rewind("s", 2)
    finally:
        run.close()


def _video(folder: Path) -> None:
    file = _videos(folder)[0]
    media = probe(file)
    for backend in ("torchcodec", "pyav"):
        frames = read_frames(file, [0.1, 0.5], short_side=32, backend=backend)
        wave = read_wave(file, 0.2, 0.3, 8000, backend=backend)
        if frames.shape[0] != 2 or wave.shape[-1] != 2400 or not wave.isfinite().all():
            raise Wrong(f"{frames.shape}, {wave.shape} of {media}")


def _scenes(name: str, split: str) -> Callable[[Path], object]:
    return lambda folder: len(open_scenes(name, folder / name, split).entries)


def _people(folder: Path) -> None:
    people = ATR(folder / "people", "train", size=32, skip_bad=True)
    for index in range(len(people)):
        item = people[index]
        mask = item["mask"]
        if not isinstance(mask, torch.Tensor) or int(mask.max()) >= len(people.class_names):
            raise Wrong("a mask with classes that there are not")


def _rooms(folder: Path) -> None:
    rooms = Image2Reverb(folder / "rooms", "train", sentences_per_air=1, image_size=32, skip_bad=True)
    for index in range(min(3, len(rooms))):
        rooms.load_image(index)
        if not rooms.load_wave(index).isfinite().all():
            raise Wrong("a wave that is not finite")


def _wave(folder: Path) -> None:
    wave = read_audio(_waves(folder)[0], 8000, 16000)
    if not wave.isfinite().all():
        raise Wrong("a wave that is not finite")


def _videos(folder: Path) -> list[Path]:
    return sorted((folder / "vggsound").rglob("*.mp4"))[:1]


def _waves(folder: Path) -> list[Path]:
    return sorted((folder / "rooms").rglob("*.wav"))[:1]


def _pictures(folder: Path) -> list[Path]:
    return [*sorted((folder / "people").rglob("*.jpg"))[:1], *sorted((folder / "people").rglob("*.png"))[:1]]


def _some(folder: Path, *patterns: str) -> list[Path]:
    return [file for pattern in patterns for file in sorted(folder.rglob(pattern))]


READERS: dict[str, Reader] = {
    "checkpoint": Reader(lambda f: [f / "state.pt"], _checkpoint),
    "run folder": Reader(lambda f: [f / "run/config.json", f / "run/metrics.jsonl"], _run),
    "selection json": Reader(
        lambda f: [f / "selection.json"], lambda f: read_selection(f / "selection.json")
    ),
    "mp4": Reader(_videos, _video, "vggsound"),
    "wav": Reader(_waves, _wave, "rooms"),
    "jpeg, png": Reader(_pictures, lambda f: [read_picture(p, 32) for p in _pictures(f)], "people"),
    "vggsound csv": Reader(
        lambda f: _some(f / "vggsound", "*.csv"), _scenes("vggsound", "train"), "vggsound"
    ),
    "kinetics csv": Reader(
        lambda f: _some(f / "kinetics", "*.csv"), _scenes("kinetics", "train"), "kinetics"
    ),
    "atr lists, pictures": Reader(
        lambda f: _some(f / "people", "*_id.txt", "*.png", "*.jpg"), _people, "people"
    ),
    "room manifest, waves": Reader(lambda f: _some(f / "rooms", "*.csv", "*.wav"), _rooms, "rooms"),
}
