"""Draws pictures and spectrograms with the places that their similarity comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from cmx_fast.data.media.files import BrokenFileError, read_audio, read_picture
from cmx_fast.data.transforms.clip_views import MEAN, STD
from cmx_fast.evaluate.figures import STYLE
from cmx_fast.systems.cmac.embedder import CMACEmbedder
from cmx_fast.systems.csir.embedder import CSIREmbedder

#: Frames of a clip that are shown.
FRAMES = 4


def draw_pair(embedder: CSIREmbedder, image: Path, audio: Path, out: Path) -> float:
    """Draw a picture and a recording with their heat maps into a PNG; gives their cosine.

    Raises:
        BrokenFileError: a file can't be decoded, or the recording is silent.
        ValueError: the picture encoder has no maps that Grad-CAM reads.
    """
    recipe, device = embedder.recipe, embedder.device
    picture = read_picture(image, recipe.image_size)[None].to(device) / 255
    wave = read_audio(audio, recipe.sample_rate, round(recipe.seconds * recipe.sample_rate)).to(device)
    seen, heard = embedder.encode_picture(picture), embedder.encode_speech(wave[None])
    heat = embedder.picture_heat(picture, heard)[0].cpu()
    falls = embedder.speech_heat(wave, seen[0]).cpu()
    cosine = float((seen * heard).sum())
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(9, 6.4), layout="constrained")
        axes = figure.subplots(2, 2)
        shown = picture[0].permute(1, 2, 0).cpu().numpy()
        _picture(axes[0, 0], shown, image.name)
        _picture(axes[0, 1], shown, f"Grad-CAM of the cosine, {cosine:.3f}", heat)
        level = embedder.level(wave[None])[0].cpu()
        _spectrogram(axes[1, 0], level, recipe.seconds, audio.name)
        drawn = _spectrogram(axes[1, 1], level, recipe.seconds, "fall of the cosine without each part", falls)
        figure.colorbar(drawn, ax=axes[1, 1])
        figure.savefig(out, dpi=110)
    return cosine


def draw_video(embedder: CMACEmbedder, video: Path, out: Path) -> None:
    """Draw frames of a video's middle clip and its sound, with the maps in which each is guided by the other.

    Raises:
        BrokenFileError: the file can't be decoded, has no sound, or is shorter than a clip.
    """
    example = embedder.attend(video)
    frames = (example.clip * STD + MEAN).clamp(0, 1)
    heat = _unit(example.maps["video guided"])
    moments = torch.linspace(0, frames.shape[1] - 1, FRAMES).round().long().tolist()
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(2.3 * FRAMES, 7.2), layout="constrained")
        grid = figure.add_gridspec(3, FRAMES)
        for column, moment in enumerate(moments):
            shown = frames[:, moment].permute(1, 2, 0).numpy()
            place = moment * len(heat) // frames.shape[1]
            _picture(figure.add_subplot(grid[0, column]), shown, f"frame {moment + 1}")
            _picture(figure.add_subplot(grid[1, column]), shown, "guided by the sound", heat[place])
        seconds, half = embedder.recipe.seconds, FRAMES // 2
        low = example.spectrogram.quantile(0.25)  # filters to which no frequency belongs lie far below
        level = example.spectrogram.clamp_min(low)
        _spectrogram(figure.add_subplot(grid[2, :half]), level, seconds, "sound")
        guided = _unit(example.maps["audio guided"])
        _spectrogram(figure.add_subplot(grid[2, half:]), level, seconds, "guided by the picture", guided)
        figure.savefig(out, dpi=110)


def draw(embedder: object, out: Path, image: Path | None, audio: Path | None, video: Path | None) -> str:
    """Draw what a run's embedder can explain into a PNG; gives a line that says what is there.

    Raises:
        ValueError: files of another kind than the run compares, or one that can't be used.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if isinstance(embedder, CSIREmbedder):
            if image is None or audio is None or video is not None:
                raise ValueError("a CSIR run compares a picture with a recording: give --image and --audio")
            cosine = draw_pair(embedder, image, audio, out)
            return f"cosine {cosine:.3f} of {image.name} and {audio.name}: {out}"
        assert isinstance(embedder, CMACEmbedder)
        if video is None or image is not None or audio is not None:
            raise ValueError("a CMAC run compares a video's pictures with its sound: give --video")
        draw_video(embedder, video, out)
    except BrokenFileError as error:
        raise ValueError(f"{error.path}: {error.reason}") from error
    return f"pictures and sound of {video.name}, each guided by the other: {out}"


def _picture(axes: Any, picture: Any, title: str, heat: Tensor | None = None) -> None:
    """A picture (H, W, 3), perhaps under a map (h, w) in [0, 1]."""
    axes.imshow(picture)
    if heat is not None:
        enlarged = F.interpolate(heat[None, None], picture.shape[:2], mode="bilinear")[0, 0]
        axes.imshow(enlarged.numpy(), cmap="jet", vmin=0, vmax=1, alpha=0.5)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def _spectrogram(axes: Any, level: Tensor, seconds: float, title: str, heat: Tensor | None = None) -> Any:
    """A spectrogram (F, T), low bands below, in grey under a map (f, t) if there is one."""
    extent = (0, seconds, 0, len(level))
    options = {"origin": "lower", "aspect": "auto", "extent": extent}
    drawn = axes.imshow(level.numpy(), cmap="magma" if heat is None else "gray", **options)
    if heat is not None:
        most = float(heat.abs().max().clamp_min(1e-6))
        drawn = axes.imshow(heat.numpy(), cmap="coolwarm", vmin=-most, vmax=most, alpha=0.55, **options)
    axes.set(title=title, xlabel="seconds", ylabel="band")
    axes.title.set_fontsize(9)
    return drawn


def _unit(maps: Tensor) -> Tensor:
    """Maps from 0, their least value, to 1, their largest."""
    maps = maps.float()
    return (maps - maps.min()) / (maps.max() - maps.min()).clamp_min(1e-6)
