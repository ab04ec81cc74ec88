"""Embeds videos and sounds by a trained CMAC run."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.data.media.files import BrokenFileError, read_audio
from cmx_fast.data.sets.recordings import Recording, Recordings
from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.systems.cmac.evaluation import NAMES, new_model
from cmx_fast.systems.cmac.features import moments_or_mean, open_clips, spaced_clips
from cmx_fast.systems.cmac.frame_maps import keep_frame_maps
from cmx_fast.systems.cmac.model import CMAC
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.train.frozen_features import run_encoder
from cmx_fast.train.options import default_device
from cmx_fast.train.run_folder import RunFolder

#: Seconds of a sound file that are heard at most.
LONGEST = 600.0


class CMACEmbedder:
    """The pictures of videos, and sounds, as unit vectors of CMAC's common space, as the evaluation has them.

    Attributes:
        model: the :class:`CMAC` itself, for clips and waves that are no files.
    """

    kinds = ("audio", "video")

    def __init__(self, model: CMAC, encoder: VisualEncoder | None = None):
        self.model, self.recipe, self.encoder = model.eval().requires_grad_(False), model.recipe, encoder

    @classmethod
    def from_run(
        cls, folder: Path | str, *, model: str | None = None, seed: int | None = None
    ) -> CMACEmbedder:
        """Open a model of a finished ``cmx train cmac`` folder, on the GPU if there is one.

        Args:
            model, seed: as of :meth:`FinishedRun.choose`; default "cmac", or the run's last.

        Raises:
            ValueError: no finished run, or it has no such model or seed.
        """
        run = RunFolder.open_finished(Path(folder), "train cmac")
        name, seed = run.choose(tuple(reversed(NAMES)), model, seed)
        trained = new_model(name, run.recipe(CMACRecipe))
        trained.load_state_dict(run.weights(f"seed{seed}/{name}"))
        return cls(trained.to(default_device()), run_encoder(run))

    @torch.no_grad()
    def embed(self, file: Path, kind: str) -> Tensor:
        """The unit vector (D,) of a video's pictures ("video") or of a sound ("audio"), float32 on the CPU.

        Of both, the recipe's number of evenly spaced clips counts. A video shorter than a clip is looped.

        Raises:
            BrokenFileError: the file can't be decoded, or is silent.
        """
        clips = self._of_video(file) if kind == "video" else self._of_sound(file)
        return F.normalize(moments_or_mean(clips.float(), self.recipe)[0], dim=0).cpu()

    def _of_video(self, file: Path) -> Tensor:
        recipe, device = self.recipe, next(self.model.parameters()).device
        recordings = Recordings([Recording(file, 0, file.name)], [""])
        try:
            clips = open_clips(recordings, recipe, device, audio=False)
            if self.encoder is not None:
                keep_frame_maps(clips, self.encoder, recipe)
            (batch,) = spaced_clips(clips, recipe)
        except ValueError as error:
            raise BrokenFileError(file, str(error)) from error
        return self.model.video(batch.clip)[3]

    def _of_sound(self, file: Path) -> Tensor:
        recipe, device = self.recipe, next(self.model.parameters()).device
        rate, samples = recipe.sample_rate, round(recipe.seconds * recipe.sample_rate)
        wave = read_audio(file, rate, round(LONGEST * rate), mix=True)
        wave = F.pad(wave, (0, max(0, samples - len(wave))))
        starts = torch.linspace(0, len(wave) - samples, recipe.clips).long().tolist()
        waves = torch.stack([wave[start : start + samples] for start in starts])
        return self.model.audio(self.model.spectrogram(waves.to(device)))[3]
