"""Loads our clips by the loops that people write: TorchCodec or PyAV, then torchvision's transforms."""

from __future__ import annotations

import bisect
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from cmx_fast._extras import require
from cmx_fast.data.loaders.workers import CORES
from cmx_fast.data.media.files import read_audio, read_picture
from cmx_fast.data.transforms.clip_views import MEAN, STD
from cmx_fast.networks.fpn import IMAGENET_MEAN, IMAGENET_STD

FRAMES, FPS, SECONDS, SAMPLE_RATE, CROP = 32, 30, 1.0, 24000, 128


@dataclass(frozen=True)
class Window:
    """A clip and its view: the first second, and a square of the frame in shares of its height and width."""

    path: Path
    start: float
    left: float
    top: float
    width: float
    height: float
    mirrored: bool

    @property
    def moments(self) -> list[float]:
        return [self.start + k / FPS for k in range(FRAMES)]

    def view(self, frames: Tensor) -> Tensor:
        """uint8 (T, 3, h, w) to float32 (3, T, CROP, CROP), normalised."""
        height, width = frames.shape[-2:]
        frames = transforms.resized_crop(
            frames,
            round(self.top * height),
            round(self.left * width),
            round(self.height * height),
            round(self.width * width),
            [CROP, CROP],
        )
        if self.mirrored:
            frames = transforms.horizontal_flip(frames)
        frames = transforms.normalize(
            transforms.to_dtype(frames, torch.float32, scale=True), [MEAN] * 3, [STD] * 3
        )
        return frames.transpose(0, 1)


def by_torchcodec(window: Window) -> tuple[Tensor, Tensor]:
    """Picture (3, T, CROP, CROP) and sound (samples,) as in TorchCodec's tutorials.

    A decoder per file gives the frames of these moments and the samples of this range.
    """
    decoders = require("torchcodec.decoders", "media")
    video = decoders.VideoDecoder(str(window.path))
    last = video.metadata.end_stream_seconds - 1e-6
    frames = video.get_frames_played_at([min(moment + 1e-4, last) for moment in window.moments]).data
    audio = decoders.AudioDecoder(str(window.path), sample_rate=SAMPLE_RATE)
    wave = audio.get_samples_played_in_range(window.start, window.start + SECONDS).data.mean(0)
    return window.view(frames), _filled(wave)


def by_pyav(window: Window) -> tuple[Tensor, Tensor]:
    """Picture and sound as in PyAV's cookbook: seek to the key frame before, decode from there with all threads."""
    av = require("av", "media")
    with av.open(str(window.path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        container.seek(int(window.start / stream.time_base), stream=stream)
        times: list[float] = []
        decoded: list[Any] = []
        moments = window.moments
        for frame in container.decode(stream):
            if times and frame.time > moments[-1] + 1e-4:
                break
            times.append(frame.time)
            decoded.append(frame)
        wanted = [max(0, bisect.bisect_right(times, moment + 1e-4) - 1) for moment in moments]
        arrays = {k: decoded[k].to_ndarray(format="rgb24") for k in set(wanted)}
    frames = torch.from_numpy(np.stack([arrays[k] for k in wanted])).permute(0, 3, 1, 2)
    with av.open(str(window.path)) as container:
        stream = container.streams.audio[0]
        container.seek(int(window.start / stream.time_base), stream=stream)
        resampler = av.AudioResampler(format="fltp", rate=SAMPLE_RATE)
        parts: list[np.ndarray] = []
        begin = None
        for frame in container.decode(stream):
            begin = frame.time if begin is None else begin
            if frame.time >= window.start + SECONDS:
                break
            parts += [part.to_ndarray().mean(0) for part in resampler.resample(frame)]
        parts += [part.to_ndarray().mean(0) for part in resampler.resample(None)]
    first = round((window.start - (begin or 0.0)) * SAMPLE_RATE)
    return window.view(frames), _filled(torch.from_numpy(np.concatenate(parts))[max(0, first) :])


def _filled(wave: Tensor) -> Tensor:
    """The samples cut or filled with zeros to the length of a clip."""
    count = round(SECONDS * SAMPLE_RATE)
    return torch.nn.functional.pad(wave[:count], (0, max(0, count - len(wave))))


# Plain files: sound (samples,) of the first channel, and pictures (3, SIDE, SIDE) with ImageNet's statistics.
SAMPLES, SIDE, SHORTER = 6 * SAMPLE_RATE, 224, 256
IMAGENET = list(IMAGENET_MEAN), list(IMAGENET_STD)


def by_torchaudio(path: Path) -> Tensor:
    """Sound by ``torchaudio.load``, which decodes with TorchCodec, and ``resample``."""
    torchaudio = require("torchaudio", "media")
    wave, rate = torchaudio.load(str(path))
    return _whole(torchaudio.functional.resample(wave[0], rate, SAMPLE_RATE))


def by_soundfile(path: Path) -> Tensor:
    """Sound by ``soundfile.read`` and torchaudio's ``resample``: the loop where TorchCodec finds no FFmpeg."""
    torchaudio = require("torchaudio", "media")
    samples, rate = require("soundfile", "media").read(str(path), dtype="float32", always_2d=True)
    return _whole(torchaudio.functional.resample(torch.from_numpy(samples[:, 0].copy()), rate, SAMPLE_RATE))


def our_sound(path: Path) -> Tensor:
    return _whole(read_audio(path, SAMPLE_RATE, SAMPLES))


def by_torchvision(path: Path) -> Tensor:
    """A picture by Pillow and torchvision: resize, centre crop, to float, normalise."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    image = transforms.center_crop(transforms.resize(image, [SHORTER]), [SIDE, SIDE])
    return transforms.normalize(
        transforms.to_dtype(transforms.to_image(image), torch.float32, scale=True), *IMAGENET
    )


def our_pictures(path: Path) -> Tensor:
    return _normalised(read_picture(path, SIDE, shorter=SHORTER))


def our_sounds_by_dali(paths: list[Path]) -> Tensor:
    """Sounds (B, samples), decoded together by a thread per core."""
    waves = _dali().read_sounds(paths, SAMPLE_RATE, SAMPLES, threads=CORES)
    return torch.stack([_whole(wave) for wave in waves])


def our_pictures_by_dali(paths: list[Path]) -> Tensor:
    pictures = _dali().read_pictures(paths, SIDE, shorter=SHORTER, threads=CORES)
    return _normalised(torch.stack(pictures))


def _dali() -> Any:
    return importlib.import_module("cmx_fast.data.media.decode_dali_files")


def _normalised(pictures: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, device=pictures.device)[:, None, None] for values in IMAGENET)
    return pictures.to(torch.float32).div_(255).sub_(mean).div_(std)


def _whole(wave: Tensor) -> Tensor:
    return torch.nn.functional.pad(wave[:SAMPLES], (0, max(0, SAMPLES - len(wave))))
