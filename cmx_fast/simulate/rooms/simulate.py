"""A small stand-in for Image2Reverb, in its own layout, from simulated spaces."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from cmx_fast._extras import require
from cmx_fast.data.sets.image2reverb import MANIFEST, SPLITS
from cmx_fast.data.sets.lists import write_table
from cmx_fast.data.transforms.schroeder import reverberation_time
from cmx_fast.simulate.rooms.acoustics import impulse_response
from cmx_fast.simulate.rooms.catalogue import make_rooms
from cmx_fast.simulate.rooms.geometry import Room, predicted_decay_times
from cmx_fast.simulate.rooms.placement import draw_cameras, draw_positions
from cmx_fast.simulate.rooms.renderer import render
from cmx_fast.simulate.rooms.speech import synthesise_speech

SAMPLE_RATE = 22050
Row = dict[str, Any]  # one line of the manifest
Description = dict[str, Any]  # one space in rooms.json


def _simulate_room(
    room: Room, index: int, pairs: dict[str, int], image_size: int, seed: int, out: Path
) -> tuple[list[Row], Description]:
    """Write the pictures and responses of one space; return its manifest rows and its description."""
    soundfile = require("soundfile", "media")
    rng = np.random.default_rng([seed, index, 1])
    total = sum(pairs.values())
    positions = draw_positions(room, total, rng)
    cameras = draw_cameras(room, total, rng)
    splits = [split for split, count in pairs.items() for _ in range(count)]
    rows, placed = [], []
    for number, (split, (source, microphone), camera) in enumerate(
        zip(splits, positions, cameras, strict=True)
    ):
        identity = f"{room.name}_{number:02d}"
        image, air = f"{split}_A/{identity}_label.jpg", f"{split}_B/{identity}_img.wav"
        response = impulse_response(room, source, microphone, SAMPLE_RATE, seed=int(rng.integers(2**31)))
        soundfile.write(out / air, response, SAMPLE_RATE, subtype="PCM_16")
        written, _ = soundfile.read(out / air, dtype="float64")
        Image.fromarray(render(room, camera, image_size)).save(out / image, quality=92)
        rt60 = reverberation_time(written, SAMPLE_RATE)
        values = (image, air, room.name, int(room.indoor), f"{rt60:.3f}", split)
        rows.append(dict(zip(MANIFEST, values, strict=True)))
        stands = {"source": source, "microphone": microphone, "camera": asdict(camera)}
        placed.append({"air": air, "image": image, "split": split} | stands)
    description = asdict(room) | {
        "predicted_rt60": predicted_decay_times(room).round(3).tolist(),
        "pairs": placed,
    }
    return rows, description


def _write_speech(
    folder: Path, splits: list[str], recordings: dict[str, list[Path]] | None, seed: int
) -> None:
    """Write the dry sentences of these splits: synthesised, or these recordings at the set's rate."""
    soundfile = require("soundfile", "media")
    if recordings is None:
        synthesised, rate = synthesise_speech(seed, splits)
        for split, sentences in synthesised.items():
            (folder / split).mkdir(parents=True)
            for number, samples in enumerate(sentences):
                soundfile.write(folder / split / f"{number:03d}.wav", samples, rate, subtype="PCM_16")
        return
    import torch
    import torchaudio

    for split, files in recordings.items():
        (folder / split).mkdir(parents=True)
        for number, file in enumerate(files):
            samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
            wave = torchaudio.functional.resample(torch.from_numpy(samples[:, 0].copy()), rate, SAMPLE_RATE)
            name = folder / split / f"{number:03d}_{file.stem}.wav"
            soundfile.write(name, wave.numpy(), SAMPLE_RATE, subtype="PCM_16")


def write_rooms(
    folder: Path,
    rooms: int,
    pairs: dict[str, int],
    image_size: int,
    recordings: dict[str, list[Path]] | None,
    *,
    seed: int,
    workers: int,
) -> None:
    """Write spaces with this many pairs of each split into an empty folder, in Image2Reverb's layout.

    Args:
        pairs: by split; in the order in which they are drawn.
        recordings: dry speech of each split; None: it is synthesised.
        workers: processes; they don't change what is written.
    """
    for split in pairs:
        (folder / f"{split}_A").mkdir()
        (folder / f"{split}_B").mkdir()
    jobs = [
        (room, index, pairs, image_size, seed, folder) for index, room in enumerate(make_rooms(rooms, seed))
    ]
    # Spawned also for one worker: espeak-ng's library has a state that only a new process resets, and
    # torch's threads in the parent do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            talking = pool.submit(_write_speech, folder / "speech", list(pairs), recordings, seed)
            futures = [pool.submit(_simulate_room, *job) for job in jobs]
            waiting = (future.result() for future in futures)
            results = list(track(waiting, description="Simulating rooms", total=rooms))
            talking.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    rows = [row for room_rows, _ in results for row in room_rows]
    descriptions = [description for _, description in results]
    rows.sort(key=lambda row: (SPLITS.index(row["split"]), row["image"]))
    write_table(folder / "manifest.csv", MANIFEST, rows)
    (folder / "rooms.json").write_text(json.dumps({"seed": seed, "rooms": descriptions}, indent=1))
