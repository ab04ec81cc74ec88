"""Embeds videos and sounds by a trained CMAC run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.data.media.files import BrokenFileError, read_audio
from cmx_fast.data.sets.recordings import Recording, Recordings
from cmx_fast.data.transforms.clip_views import MEAN, STD
from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.systems.cmac.evaluation import NAMES, Example, attention_examples, new_model
from cmx_fast.systems.cmac.features import moments_or_mean, open_clips, spaced_clips
from cmx_fast.systems.cmac.frame_maps import keep_frame_maps, map_level
from cmx_fast.systems.cmac.model import CMAC
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.train.fabric import default_device
from cmx_fast.train.frozen_features import run_encoder
from cmx_fast.train.run_folder import RunFolder
from cmx_fast.train.trained_model import Encoders, Tower, TrainedModel

#: Seconds of a sound file that are heard at most.
LONGEST = 600.0


class CMACEmbedder(TrainedModel):
    """The pictures of videos, and sounds, as unit vectors of CMAC's common space, as the evaluation has them.

    Args:
        model: the network; its key encoders and banks, which serve the training alone, are dropped.
        encoder: the fixed encoder whose maps of frames it takes; None: it takes frames.
    """

    SYSTEM = "CMAC"
    PAPER = "Min et al., Cross-Modal Attention Consistency for Video-Audio Unsupervised Learning, ICCV 2021"
    LIMITS = "It tells sounds and sights of the kinds that its videos had, a clip of the recipe's length at a time."
    TASK = "feature-extraction"

    kinds = ("audio", "video")

    def __init__(self, model: CMAC, encoder: VisualEncoder | None = None):
        super().__init__()
        model.drop_keys()
        self.model, self.recipe, self.encoder = model, model.recipe, encoder
        self.requires_grad_(False).eval()

    @classmethod
    def from_run(
        cls,
        folder: Path | str,
        *,
        model: str | None = None,
        seed: int | None = None,
        encoder_file: Path | str | None = None,
    ) -> CMACEmbedder:
        """Open a model of a finished ``cmx train cmac`` folder, on the GPU if there is one.

        Args:
            model, seed: as of :meth:`FinishedRun.choose`; default "cmac", or the run's last.
            encoder_file: weights of the run's pretrained encoder, if not where the run had them.

        Raises:
            ValueError: no finished run, it has no such model or seed, or its encoder has other weights.
        """
        run = RunFolder.open_finished(Path(folder), "train cmac")
        name, seed = run.choose(tuple(reversed(NAMES)), model, seed)
        trained = new_model(name, run.recipe(CMACRecipe))
        trained.load_state_dict(run.weights(f"seed{seed}/{name}"))
        encoder = run_encoder(run, encoder_file)
        return cls(trained, encoder).from_the(run, name, seed).to(default_device())

    @classmethod
    def rebuild(cls, settings: dict[str, Any], encoders: Encoders, source: Path) -> CMACEmbedder:
        model = CMAC(CMACRecipe.stored(settings["recipe"], source), settings["objective"])
        return cls(model, encoders.visual)

    def settings(self) -> dict[str, Any]:
        return {"objective": self.model.objective, "recipe": self.recipe.as_dict()}

    def trained(self) -> CMAC:
        return self.model

    def towers(self) -> dict[str, tuple[Tower, Tensor]]:
        """ "video": :meth:`encode_clip`. "audio": :meth:`encode_sound`, of waves of the recipe's ``seconds``."""
        recipe = self.recipe
        clips = torch.rand(2, 3, recipe.frames, recipe.size, recipe.size)
        waves = torch.randn(2, round(recipe.seconds * recipe.sample_rate))
        heard = {"audio": self.model.audio, "filterbank": self.model.filterbank}
        return {
            "video": (Tower(self.encode_clip, {"video": self.model.video, "encoder": self.encoder}), clips),
            "audio": (Tower(self.encode_sound, heard), waves),
        }

    @torch.no_grad()
    def encode_clip(self, clip: Tensor) -> Tensor:
        """Embed clips (B, 3, T, S, S) in [0, 1]: (B, D) unit rows.

        T and S are the recipe's ``frames``, at its ``fps``, and its ``size``.
        """
        if self.encoder is None:
            return self.model.video((clip - MEAN) / STD)[3]
        stride = self.encoder.strides[map_level(self.encoder, self.recipe.frame_stride)]
        maps = self.encoder.maps(clip.transpose(1, 2).flatten(0, 1), coarsest=stride)[-1]
        return self.model.video(maps.unflatten(0, (-1, clip.shape[2])).transpose(1, 2))[3]

    @torch.no_grad()
    def encode_sound(self, wave: Tensor) -> Tensor:
        """Embed sounds (B, samples), mono at the recipe's ``sample_rate``: (B, D) unit rows.

        Of longer ones the recipe's first ``seconds`` count; shorter ones end in silence.
        """
        samples = round(self.recipe.seconds * self.recipe.sample_rate)
        wave = F.pad(wave[:, :samples], (0, max(0, samples - wave.shape[1])))
        return self.model.audio(self.model.spectrogram(wave))[3]

    @torch.no_grad()
    def embed(self, file: Path, kind: str) -> Tensor:
        """The unit vector (D,) of a video's pictures ("video") or of a sound ("audio"), float32 on the CPU.

        Of both, the recipe's number of evenly spaced clips counts. A video shorter than a clip is looped.

        Raises:
            BrokenFileError: the file can't be decoded, or is silent.
        """
        clips = self._of_video(file) if kind == "video" else self._of_sound(file)
        return F.normalize(moments_or_mean(clips.float(), self.recipe)[0], dim=0).cpu()

    def attend(self, file: Path) -> Example:
        """The middle clip of a video with the maps in which its picture and its sound attend to one another.

        Raises:
            BrokenFileError: the file can't be decoded, has no sound, or is shorter than a clip.
        """
        clips = self._clips(file, audio=True)
        (example,) = attention_examples(self.model, clips, torch.tensor([0]))
        return example

    def _of_video(self, file: Path) -> Tensor:
        (batch,) = spaced_clips(self._clips(file, audio=False), self.recipe)
        return self.model.video(batch.clip)[3]

    def _clips(self, file: Path, *, audio: bool) -> Clips:
        recordings = Recordings([Recording(file, 0, file.name)], [""])
        try:
            clips = open_clips(recordings, self.recipe, self.device, audio=audio)
            if self.encoder is not None:
                keep_frame_maps(clips, self.encoder, self.recipe)
        except ValueError as error:
            raise BrokenFileError(file, str(error)) from error
        return clips

    def _of_sound(self, file: Path) -> Tensor:
        recipe = self.recipe
        rate, samples = recipe.sample_rate, round(recipe.seconds * recipe.sample_rate)
        wave = read_audio(file, rate, round(LONGEST * rate), mix=True)
        wave = F.pad(wave, (0, max(0, samples - len(wave))))
        starts = torch.linspace(0, len(wave) - samples, recipe.clips).long().tolist()
        waves = torch.stack([wave[start : start + samples] for start in starts])
        return self.encode_sound(waves.to(self.device))
