"""Dry speech, synthesised by espeak-ng's library or taken from the user's own recordings."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmx_fast._extras import require
from cmx_fast.simulate.rooms.sentences import TEST_SENTENCES, TRAIN_SENTENCES, VAL_SENTENCES

#: The sentences of each part, in the order in which they are spoken.
SENTENCES = {"train": TRAIN_SENTENCES, "test": TEST_SENTENCES, "val": VAL_SENTENCES}
_SYNCHRONOUS_RETRIEVAL = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback, nothing is played
_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan")
# No voices with an echo (the speech is to be dry) or with breath (its noise never comes the same twice).
_MEN = ("m1", "m3", "m4", "m5", "m7", "Lee", "Diogo", "Denis")
_WOMEN = ("f1", "Andrea", "belinda", "steph", "Annie", "anika", "linda")
_SPEAKERS = (*_MEN, *_WOMEN)
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class _Synthesiser:
    """espeak-ng through ctypes. The library holds one global voice, so there is one instance at a time."""

    def __init__(self) -> None:
        espeakng_loader = require("espeakng_loader", "simulate")
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.sample_rate = self._library.espeak_Initialize(
            _SYNCHRONOUS_RETRIEVAL, 0, str(espeakng_loader.get_data_path()).encode(), 0
        )
        if self.sample_rate <= 0:
            raise RuntimeError(
                f"espeak-ng did not start (code {self.sample_rate}): reinstall espeakng-loader"
            )
        self._chunks: list[NDArray[np.int16]] = []

        def collect(samples: ctypes._Pointer, count: int, _events: int) -> int:
            if samples and count > 0:
                self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        self._callback = _CALLBACK(collect)  # kept: the library calls it as long as this object lives
        self._library.espeak_SetSynthCallback(self._callback)

    def say(
        self, text: str, voice: str, words_per_minute: int, pitch: int, pitch_range: int
    ) -> NDArray[np.int16]:
        """Speak one utterance, silence at both ends removed; pitch and its range are espeak's 0..100."""
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in ((_RATE, words_per_minute), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, 0, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        samples = np.concatenate(self._chunks)
        loud = np.flatnonzero(np.abs(samples) > 200)
        return samples[loud[0] : loud[-1] + 1]


def synthesise_speech(seed: int, parts: Collection[str]) -> tuple[dict[str, list[NDArray[np.int16]]], int]:
    """The sentences of these parts, each by a voice drawn with ``seed``, and the sample rate (22,050 Hz).

    Accent, speaker, speed, pitch and intonation vary from sentence to sentence: 3 to 6 seconds each. In a new
    process the same seed gives the same samples; within one, the library carries the state of its voices from
    utterance to utterance.
    """
    synthesiser = _Synthesiser()
    rng = np.random.default_rng([seed, 7919])
    speech: dict[str, list[NDArray[np.int16]]] = {}
    for part, texts in SENTENCES.items():
        if part not in parts:
            continue
        speech[part] = [
            synthesiser.say(
                text,
                f"{_ACCENTS[rng.integers(len(_ACCENTS))]}+{_SPEAKERS[rng.integers(len(_SPEAKERS))]}",
                words_per_minute=int(rng.integers(105, 140)),
                pitch=int(rng.integers(30, 70)),
                pitch_range=int(rng.integers(35, 75)),
            )
            for text in texts
        ]
    return speech, synthesiser.sample_rate


def find_recordings(folder: Path, parts: Collection[str], seed: int) -> dict[str, list[Path]]:
    """The user's own dry recordings (WAV or FLAC) for these parts.

    A folder with a folder of each part's name inside keeps that division. Otherwise the recordings are divided by
    ``seed``: "test" gets a quarter, "val" an eighth where it is a part, and "train" the others.
    """
    if not folder.is_dir():
        raise ValueError(f"speech: no folder {folder}")

    def audio_in(place: Path) -> list[Path]:
        return sorted(p for p in place.rglob("*") if p.suffix.lower() in (".wav", ".flac"))

    others = [p for p in folder.rglob("*") if p.is_file() and p.suffix.lower() not in (".wav", ".flac")]
    if others:
        print(
            f"speech: {len(others)} files are neither WAV nor FLAC and left out, {others[0]} first",
            file=sys.stderr,
        )
    if all((folder / part).is_dir() for part in parts):
        recordings = {part: audio_in(folder / part) for part in parts}
    else:
        files = audio_in(folder)
        order = np.random.default_rng([seed, 104729]).permutation(len(files))
        first, recordings = 0, {}
        for part, count in (("test", len(files) // 4), ("val", len(files) // 8), ("train", len(files))):
            if part in parts:
                recordings[part] = [files[i] for i in sorted(order[first : first + count])]
                first += count
    for part, files in recordings.items():
        if not files:
            raise ValueError(
                f"speech: {folder} has no WAV or FLAC files for the {part} part "
                f"({8 if 'val' in parts else 4} or more are needed)"
            )
    return recordings
