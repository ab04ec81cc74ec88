"""Embeds pictures of rooms and reverberant speech by a trained CSIR run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.data.media.files import read_audio, read_picture
from cmx_fast.evaluate.gradcam import gradcam, last_map
from cmx_fast.evaluate.occlusion import occlusion
from cmx_fast.networks.fpn import IMAGENET_MEAN, IMAGENET_STD
from cmx_fast.nn.logmel import LogMel
from cmx_fast.systems.csir.data import levels
from cmx_fast.systems.csir.evaluation import MODELS, embed_speech, new_model
from cmx_fast.systems.csir.model import FrozenImageEncoder, TwoTowers
from cmx_fast.systems.csir.recipe import CSIRRecipe
from cmx_fast.train.fabric import default_device
from cmx_fast.train.frozen_features import run_encoder
from cmx_fast.train.run_folder import RunFolder
from cmx_fast.train.trained_model import Encoders, Tower, TrainedModel

#: Cells of a spectrogram, bands by times, that are taken away one by one.
CELLS = (8, 16)


class CSIREmbedder(TrainedModel):
    """Pictures and speech as unit vectors of CSIR's common space, as the evaluation has them.

    Example::

        csir = CSIREmbedder.from_run("runs/csir")
        similarity = csir.encode_picture(pictures) @ csir.encode_speech(waves).T
    """

    SYSTEM = "CSIR"
    PAPER = "Qian et al., Bi-directional Image-Speech Retrieval Through Geometric Consistency"
    LIMITS = "Rooms alike in kind and reverberation are not told apart; other kinds than in training are not known."
    TASK = "feature-extraction"

    kinds = ("image", "audio")
    mean: Tensor
    std: Tensor

    def __init__(self, model: TwoTowers):
        super().__init__()
        self.model, self.recipe = model, model.recipe
        if isinstance(model.image_encoder, FrozenImageEncoder):
            self.encoder = model.image_encoder.encoder
        recipe = self.recipe
        self.logmel = LogMel(recipe.sample_rate, recipe.n_fft, recipe.hop, recipe.n_mels)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    @classmethod
    def from_run(
        cls,
        folder: Path | str,
        *,
        model: str | None = None,
        seed: int | None = None,
        encoder_file: Path | str | None = None,
    ) -> CSIREmbedder:
        """Open a model of a finished ``cmx train csir`` folder, on the GPU if there is one.

        Args:
            model, seed: as of :meth:`FinishedRun.choose`: "csir", the default, or "dscmr".
            encoder_file: weights of the run's pretrained encoder, if not where the run had them.

        Raises:
            ValueError: no finished run, it has no such model or seed, or its encoder has other weights.
        """
        run = RunFolder.open_finished(Path(folder), "train csir")
        recipe = run.recipe(CSIRRecipe)
        name, seed = run.choose(("csir", "dscmr"), model, seed)
        encoder = run_encoder(run, encoder_file)
        frozen = None if encoder is None else FrozenImageEncoder(encoder)
        towers = new_model(name, recipe, len(run.config["spaces"]), frozen)
        towers.load_state_dict(run.weights(f"seed{seed}/{name}"))
        assert isinstance(towers, TwoTowers)
        return cls(towers).from_the(run, name, seed).to(default_device())

    @classmethod
    def rebuild(cls, settings: dict[str, Any], encoders: Encoders, source: Path) -> CSIREmbedder:
        recipe = CSIRRecipe.stored(settings["recipe"], source)
        frozen = None if encoders.visual is None else FrozenImageEncoder(encoders.visual)
        towers = new_model(settings["model"], recipe, settings["spaces"], frozen)
        assert isinstance(towers, TwoTowers)
        return cls(towers)

    def settings(self) -> dict[str, Any]:
        name = next(name for name, kind in MODELS.items() if type(self.model) is kind)
        return {"model": name, "recipe": self.recipe.as_dict(), "spaces": self.model.spaces}

    def trained(self) -> TwoTowers:
        return self.model

    def towers(self) -> dict[str, tuple[Tower, Tensor]]:
        """ "image": :meth:`encode_picture`. "audio": :meth:`encode_speech`, of waves of the recipe's ``seconds``."""
        recipe, parts = self.recipe, dict(self.model.named_children())
        image = {name: part for name, part in parts.items() if not name.startswith("speech")}
        speech = {name: part for name, part in parts.items() if not name.startswith("image")}
        pictures = torch.rand(2, 3, recipe.image_size, recipe.image_size)
        waves = torch.randn(2, round(recipe.seconds * recipe.sample_rate))
        return {
            "image": (Tower(self.encode_picture, {**image, "encoder": self.encoder}), pictures),
            "audio": (Tower(self.encode_speech, {**speech, "logmel": self.logmel}), waves),
        }

    @torch.no_grad()
    def encode_picture(self, picture: Tensor) -> Tensor:
        """Embed pictures (B, 3, S, S) in [0, 1], S the recipe's ``image_size``: (B, D) unit rows."""
        return F.normalize(self.model.encode_image((picture - self.mean) / self.std).float(), dim=1)

    @torch.no_grad()
    def encode_speech(self, wave: Tensor) -> Tensor:
        """Embed reverberant speech (B, samples), mono at the recipe's ``sample_rate``: (B, D) unit rows.

        Of longer ones the recipe's first ``seconds`` count; shorter ones end in silence. Level does not count.
        """
        return self._of_level(self.level(wave))

    def level(self, wave: Tensor) -> Tensor:
        """The log-mels (B, n_mels, frames) in decibels that :meth:`encode_speech` makes of waves."""
        recipe = self.recipe
        samples = round(recipe.seconds * recipe.sample_rate)
        wave = F.pad(wave[:, :samples], (0, max(0, samples - wave.shape[1])))
        return levels(self.logmel, wave, recipe.range_db)

    def _of_level(self, level: Tensor) -> Tensor:
        return F.normalize(embed_speech(self.model, level, self.recipe), dim=1)

    def picture_heat(self, picture: Tensor, speech: Tensor) -> Tensor:
        """Grad-CAM of the cosine between pictures (B, 3, S, S) in [0, 1] and speech, rows (B, D): (B, S, S) in [0, 1].

        Raises:
            ValueError: the pretrained picture encoder is one of tokens.
        """

        def score(features: Tensor) -> Tensor:
            return F.cosine_similarity(self.model.project_image(features), speech)

        if self.encoder is not None:
            return gradcam(self.encoder, picture, score, last_map(self.encoder, picture))
        standardised = (picture - self.mean) / self.std
        return gradcam(self.model.image_encoder, standardised, score, self.recipe.gradcam_layer)

    @torch.no_grad()
    def speech_heat(self, wave: Tensor, picture: Tensor) -> Tensor:
        """The fall of a wave's (samples,) cosine with a picture, its row (D,), without each part of the spectrogram.

        Returns:
            :data:`CELLS` numbers, from low bands up and from the start on. Each is the fall of the cosine when every
            band within the cell has its mean over time there.
        """
        return occlusion(self.level(wave[None])[0], lambda level: self._of_level(level) @ picture, CELLS)

    def embed(self, file: Path, kind: str) -> Tensor:
        """The unit vector (D,) of a picture ("image") or of a recording ("audio"), float32 on the CPU.

        Raises:
            BrokenFileError: the file can't be decoded, or is silent.
        """
        recipe, device = self.recipe, self.mean.device
        if kind == "image":
            picture = read_picture(file, recipe.image_size).to(device)
            return self.encode_picture(picture[None] / 255)[0].cpu()
        wave = read_audio(file, recipe.sample_rate, round(recipe.seconds * recipe.sample_rate))
        return self.encode_speech(wave[None].to(device))[0].cpu()
