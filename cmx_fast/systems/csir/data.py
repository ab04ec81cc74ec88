"""Image-speech pairs of one split as batches of pictures and log-mels, from memory or by loader workers."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, default_collate

from cmx_fast.data.loaders.upload import upload
from cmx_fast.data.loaders.workers import CORES, load_batches
from cmx_fast.data.media.decode import FILE_BACKENDS, check_backend
from cmx_fast.data.transforms.reverberation import peak_normalise, reverberate
from cmx_fast.systems.csir.model import FrozenImageEncoder
from cmx_fast.train.frozen_features import frozen_rows, rows_key
from cmx_fast.train.trainable import Batch

#: Utterances, evenly spaced over the training set, from which each band's mean and standard deviation are taken.
STATISTICS_FROM = 1000


def levels(logmel: nn.Module, waves: Tensor, range_db: float) -> Tensor:
    """Log-mels (B, n_mels, frames) of waves (B, samples) at one loudness, down to ``range_db`` below their peak."""
    level = logmel(peak_normalise(waves))
    return level.maximum(level.amax((1, 2), keepdim=True) - range_db)


class PairData:
    """The image-speech pairs of one split, with labels at hand and batches by index.

    Utterance u belongs to pair u // sentences_per_air. Pairs without a picture, which are heard alone, come last.

    Args:
        dataset: a :class:`cmx_fast.data.sets.image2reverb.Image2Reverb`, or anything with its attributes.
        cache: compute every picture and log-mel once and keep it (float16 log-mels: 77 kB per 6 s); else workers read
            files, and the device convolves rooms with speech and computes log-mels.
        backend: "dali" decodes each batch's files together, in this process (JPEG on the GPU, if there is one).

    Attributes:
        pictured: the number of pairs with a picture.
        paired: the number of their utterances.
        space: (utterances,) int64; -1 where a space that is heard alone is not among the training's.
        rt60: (utterances,) float32 seconds, NaN where it is not known.
        pair: (utterances,) int64.
    """

    def __init__(
        self,
        dataset: Any,
        logmel: nn.Module,
        *,
        range_db: float = 80.0,
        cache: bool = False,
        backend: str = "auto",
        device: torch.device | str = "cpu",
        workers: int | None = None,
    ):
        self.workers = CORES if workers is None else workers
        self.dataset, self.range_db, self.device = dataset, range_db, torch.device(device)
        self.logmel = logmel.to(self.device)
        check_backend(backend, FILE_BACKENDS)
        self.backend = backend
        per_pair = len(dataset) // len(dataset.pairs)
        numbers = range(len(dataset.pairs))
        self.pictured: int = dataset.pictured
        self.paired = self.pictured * per_pair
        self.pair = torch.tensor(numbers).repeat_interleave(per_pair)
        self.space = torch.tensor([dataset.class_of(i) for i in numbers]).repeat_interleave(per_pair)
        self.rt60 = torch.tensor([dataset.rt60(u) for u in range(len(dataset))])
        self.image_features: Tensor | None = None
        self.logmels: Tensor | None = None
        if cache:
            self.logmels = torch.cat([batch["logmel"].half().cpu() for batch in self.in_order(("logmel",))])

    def __len__(self) -> int:
        return len(self.space)

    @functools.cached_property
    def images(self) -> Tensor:
        """Every picture, (pictured, 3, S, S), kept once it is asked for."""
        return torch.stack([self.dataset.load_image(i) for i in range(self.pictured)]).cpu()

    @torch.no_grad()
    def freeze_images(self, encoder: FrozenImageEncoder, file: Path | None = None) -> None:
        """From now on, give a frozen encoder's features of the pictures instead of the pictures.

        They are computed once, at the pictures' size and not augmented, and kept in ``file`` if there is one.
        """
        encoder = encoder.to(self.device)

        def compute() -> Iterator[tuple[Tensor, Tensor]]:
            for pairs in torch.arange(self.pictured).split(32):
                pictures = torch.stack([self.dataset.load_image(pair) for pair in pairs.tolist()])
                yield pairs, encoder(pictures.to(self.device))

        paths = [pair.image for pair in self.dataset.pairs[: self.pictured]]
        key = rows_key([encoder.fingerprint(), self.dataset.image_size], paths)
        self.image_features = frozen_rows(file, key, (self.pictured, encoder.width), compute)

    @property
    def first(self) -> Tensor:
        """The first utterance of every pair with a picture, (pictured,) int64."""
        return torch.arange(self.pictured) * (len(self) // len(self.dataset.pairs))

    @property
    def hidden_rt60(self) -> int:
        """The number of pairs whose RT60 is not known: noise hides the decay, or the manifest says so."""
        return sum(math.isnan(pair.rt60) for pair in self.dataset.pairs)

    def in_order(
        self, modalities: tuple[str, ...], batch: int = 32, rows: Iterable[int] | None = None
    ) -> Iterator[Batch]:
        """Batches of every utterance once, or of those in ``rows``, in order and not augmented."""
        order = iter(range(len(self)) if rows is None else rows)
        return self.load(iter(lambda: list(islice(order, batch)), []), modalities)

    def load(self, rows: Iterator[list[int]], modalities: tuple[str, ...]) -> Iterator[Batch]:
        """For each of ``rows``, utterances' numbers, a batch on the device.

        It has "space", "rt60", "pair" and, of the ``modalities``, "image" (B, 3, S, S) and "logmel" (B, mels, T).
        Frozen images are "image_features" (B, d_v) instead.
        """
        loader: Iterable[Batch]
        frozen = self.image_features if "image" in modalities else None
        if frozen is not None:
            modalities = tuple(name for name in modalities if name != "image")
        if self.logmels is not None:
            loader = (self._from_memory(torch.tensor(batch), modalities) for batch in rows)
        else:
            together = self.backend == "dali"
            loader = load_batches(
                _Items(self.dataset, self.space, self.rt60, self.pair, modalities, together),
                rows,
                workers=0 if together else self.workers,
                collate=_padded,
                pin_memory=self.device.type == "cuda" and not together,
            )
        for batch in loader:
            batch = {name: upload(value, self.device) for name, value in batch.items()}
            if "dry" in batch:
                with torch.no_grad():
                    waves = reverberate(batch.pop("dry"), batch.pop("air"), self.dataset.samples)
                    batch["logmel"] = levels(self.logmel, waves, self.range_db)
            if frozen is not None:
                batch["image_features"] = upload(frozen[batch["pair"].cpu()], self.device)
            yield batch

    def _from_memory(self, rows: Tensor, modalities: tuple[str, ...]) -> Batch:
        assert self.logmels is not None
        batch = {"space": self.space[rows], "rt60": self.rt60[rows], "pair": self.pair[rows]}
        if "logmel" in modalities:
            batch["logmel"] = self.logmels[rows].float()
        if "image" in modalities:
            batch["image"] = self.images[self.pair[rows]]
        return batch

    def mel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each mel band in dB, (n_mels,) each."""
        rows = range(0, len(self), math.ceil(len(self) / STATISTICS_FROM))
        moments = []
        for batch in self.in_order(("logmel",), rows=rows):
            x = batch["logmel"].double().cpu()
            moments += [torch.stack([u.mean(1), u.square().mean(1)]) for u in x]
        mean, square = torch.stack(moments).mean(0)
        return mean.float(), (square - mean.square()).clamp_min(0).sqrt().float()


class _Items(Dataset[Batch]):
    """Items with the ``modalities`` alone: for the speech encoder no picture is decoded."""

    def __init__(
        self,
        dataset: Any,
        space: Tensor,
        rt60: Tensor,
        pair: Tensor,
        modalities: tuple[str, ...],
        together: bool,
    ):
        self.dataset, self.space, self.rt60, self.pair, self.modalities = (
            dataset,
            space,
            rt60,
            pair,
            modalities,
        )
        self.together = together

    def __len__(self) -> int:
        return len(self.space)

    def __getitems__(self, utterances: list[int]) -> list[Batch]:
        if self.together:
            pairs = self.pair[utterances].tolist() if "image" in self.modalities else []
            spoken = utterances if "logmel" in self.modalities else []
            self.dataset.decode_ahead(pairs, spoken, CORES)
        return [self[utterance] for utterance in utterances]

    def __getitem__(self, utterance: int) -> Batch:
        item = {
            "space": self.space[utterance],
            "rt60": self.rt60[utterance],
            "pair": self.pair[utterance],
        }
        if "logmel" in self.modalities:
            item["dry"], item["air"] = self.dataset.load_sounds(utterance)
        if "image" in self.modalities:
            item["image"] = self.dataset.load_image(int(self.pair[utterance]))
        return item


def _padded(items: list[Batch]) -> Batch:
    """Collate items to a batch; silence makes all sounds as long as the longest, which no convolution minds."""
    sounds = [name for name in ("dry", "air") if name in items[0]]
    padded = {name: pad_sequence([item.pop(name) for item in items], batch_first=True) for name in sounds}
    return default_collate(items) | padded
