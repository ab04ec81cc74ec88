"""Trains a sound encoder on labelled sounds before it is aligned: for sets too small to learn hearing from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.data.loaders.upload import upload
from cmx_fast.data.media.files import BrokenFileError, check_enough_left, read_audio
from cmx_fast.data.media.suffixes import SOUNDS
from cmx_fast.data.sets.recordings import of_kind
from cmx_fast.nn.power_spectrogram import lasting
from cmx_fast.systems.sound2scene.model import SAMPLE_RATE, SoundEncoder
from cmx_fast.train.trainable import Batch


class SoundClassification(nn.Module):
    """Tells labelled sounds apart by the maps of a sound encoder, which it trains in place but for its last layer.

    A batch has "wave" (B, samples) and "label" (B,) int64.
    """

    def __init__(self, sound_encoder: SoundEncoder, classes: int):
        super().__init__()
        self.sound_encoder = sound_encoder
        self.head = nn.Linear(sound_encoder.resnet.fc.in_features, classes)

    def forward(self, batch: Batch) -> Batch:
        spectrogram = self.sound_encoder.standardised_spectrogram(batch["wave"])
        return {"logits": self.head(self.sound_encoder.resnet.maps(spectrogram).mean((2, 3)))}

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        right = (outputs["logits"].argmax(1) == batch["label"]).float().mean()
        return {"loss": F.cross_entropy(outputs["logits"], batch["label"]), "right": right}


class LabelledSounds:
    """Batches of the sounds in ``<root>/<class>/*``, (B, seconds at 16 kHz): of each another part in every epoch.

    All sounds are kept in memory, 32 kB per second. An epoch is incomplete batches short; the batches are the same for
    the same seed.

    Attributes:
        class_names: the folders' names. skipped: (file, reason) of those that can't be used.

    Raises:
        ValueError: fewer than two folders with sounds, or most of the sounds are broken.
    """

    def __init__(
        self,
        root: Path,
        seconds: float,
        batch: int,
        seed: int,
        device: torch.device | str,
        longest: float = 60.0,
    ):
        folders = [path for path in sorted(root.iterdir()) if path.is_dir()] if root.is_dir() else []
        files = {folder: of_kind(folder, SOUNDS)[0] for folder in folders}
        self.class_names = [folder.name for folder in folders if files[folder]]
        if len(self.class_names) < 2:
            raise ValueError(
                f"sounds: {root} must hold a folder of sounds for each of two classes or more, {root}/<class>/*.wav; "
                f"it has {len(self.class_names)}"
            )
        self.skipped: list[tuple[Path, str]] = []
        self.waves: list[Tensor] = []
        labels = []
        listed = [
            (number, file) for number, name in enumerate(self.class_names) for file in files[root / name]
        ]
        for label, file in listed:
            try:
                wave = read_audio(file, SAMPLE_RATE, round(longest * SAMPLE_RATE), mix=True)
            except BrokenFileError as error:
                self.skipped.append((error.path, error.reason))
                check_enough_left(self.skipped, len(self.skipped), len(listed))
            else:
                if len(wave) < seconds * SAMPLE_RATE:
                    wave = lasting(wave, seconds)
                self.waves.append((wave.clamp(-1, 1) * 32767).round().short())
                labels.append(label)
        self.labels = torch.tensor(labels)
        self.samples = round(seconds * SAMPLE_RATE)
        self.batch, self.seed, self.device = min(batch, len(self.waves)), seed, device

    def __len__(self) -> int:
        return len(self.waves)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.waves) // self.batch

    def __call__(self, start: int) -> Iterator[Batch]:
        epoch, skip = divmod(start, self.steps_per_epoch)
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.waves), generator=generator)
            places = torch.rand(len(self.waves), generator=generator)
            for rows in order.split(self.batch)[skip : self.steps_per_epoch]:
                parts = torch.stack([self._part(row, float(places[row])) for row in rows.tolist()])
                yield {
                    "wave": upload(parts.float() / 32767, self.device),
                    "label": upload(self.labels[rows], self.device),
                }
            epoch, skip = epoch + 1, 0

    def _part(self, row: int, place: float) -> Tensor:
        wave = self.waves[row]
        first = int(place * (len(wave) - self.samples + 1))
        return wave[first : first + self.samples]
