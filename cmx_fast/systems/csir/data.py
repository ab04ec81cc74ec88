"""Image-speech pairs of one split as batches of pictures and log-mels, from memory or by loader workers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, default_collate

from cmx_fast.data.loaders.upload import upload
from cmx_fast.data.loaders.workers import CORES, load_batches
from cmx_fast.data.media.decode import FILE_BACKENDS, check_backend
from cmx_fast.data.transforms.reverberation import peak_normalise, reverberate
from cmx_fast.train.trainable import Batch

#: Utterances, evenly spaced over the training set, behind the per-band mean and standard deviation.
STATISTICS_FROM = 1000


class PairData:
    """One split's image-speech pairs, with labels at hand and batches by index.

    ``dataset`` is a :class:`cmx_fast.data.sets.image2reverb.Image2Reverb` (or anything with its attributes):
    utterance u belongs to pair u // sentences_per_air. With ``cache`` every picture and log-mel is computed
    once and kept (float16 log-mels: 77 kB per 6 s); else workers read files, and rooms are convolved with speech and
    log-mels computed on the device. With ``backend="dali"`` DALI decodes each batch's files together, in this process
    (JPEG on the GPU, if there is one).

    Attributes:
        space: (utterances,) int64; rt60: (utterances,) float32 seconds, NaN where it is not known; pair:
            (utterances,) int64.
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
    ):
        self.dataset, self.range_db, self.device = dataset, range_db, torch.device(device)
        self.logmel = logmel.to(self.device)
        check_backend(backend, FILE_BACKENDS)
        self.backend = backend
        per_pair = len(dataset) // len(dataset.pairs)
        index = {space: i for i, space in enumerate(dataset.spaces)}
        self.pair = torch.arange(len(dataset.pairs)).repeat_interleave(per_pair)
        self.space = torch.tensor([index[p.space] for p in dataset.pairs]).repeat_interleave(per_pair)
        self.rt60 = torch.tensor([p.rt60 for p in dataset.pairs]).repeat_interleave(per_pair)
        self.images: Tensor | None = None
        self.logmels: Tensor | None = None
        if cache:
            self.images = torch.stack([dataset.load_image(i) for i in range(len(dataset.pairs))]).cpu()
            self.logmels = torch.cat([batch["logmel"].half().cpu() for batch in self.in_order(("logmel",))])

    def __len__(self) -> int:
        return len(self.space)

    @property
    def hidden_rt60(self) -> int:
        """The pairs whose RT60 is not known: noise hides the decay, or the manifest says so."""
        return sum(math.isnan(pair.rt60) for pair in self.dataset.pairs)

    def in_order(
        self, wanted: tuple[str, ...], batch: int = 32, rows: Iterable[int] | None = None
    ) -> Iterator[Batch]:
        """Every utterance once (or these), in order and as it is."""
        order = iter(range(len(self)) if rows is None else rows)
        return self.load(iter(lambda: list(islice(order, batch)), []), wanted)

    def load(self, rows: Iterator[list[int]], wanted: tuple[str, ...]) -> Iterator[Batch]:
        """Batches of these utterances on the device: "space", "rt60" and, as wanted, "image" (B, 3, S, S) and
        "logmel" (B, mels, T)."""
        loader: Iterable[Batch]
        if self.logmels is not None:
            loader = (self._from_memory(torch.tensor(batch), wanted) for batch in rows)
        else:
            together = self.backend == "dali"
            loader = load_batches(
                _Items(self.dataset, self.space, self.rt60, self.pair, wanted, together),
                rows,
                workers=0 if together else CORES,
                collate=_padded,
                pin_memory=self.device.type == "cuda" and not together,
            )
        for batch in loader:
            batch = {name: upload(value, self.device) for name, value in batch.items()}
            if "dry" in batch:
                with torch.no_grad():
                    waves = reverberate(batch.pop("dry"), batch.pop("air"), self.dataset.samples)
                    level = self.logmel(peak_normalise(waves))
                    batch["logmel"] = level.maximum(level.amax((1, 2), keepdim=True) - self.range_db)
            yield batch

    def _from_memory(self, rows: Tensor, wanted: tuple[str, ...]) -> Batch:
        assert self.images is not None
        assert self.logmels is not None
        batch = {"space": self.space[rows], "rt60": self.rt60[rows]}
        if "logmel" in wanted:
            batch["logmel"] = self.logmels[rows].float()
        if "image" in wanted:
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
    """Only the wanted modalities of an utterance: no picture is decoded for the speech encoder alone."""

    def __init__(
        self,
        dataset: Any,
        space: Tensor,
        rt60: Tensor,
        pair: Tensor,
        wanted: tuple[str, ...],
        together: bool,
    ):
        self.dataset, self.space, self.rt60, self.pair, self.wanted = dataset, space, rt60, pair, wanted
        self.together = together

    def __len__(self) -> int:
        return len(self.space)

    def __getitems__(self, utterances: list[int]) -> list[Batch]:
        if self.together:
            pairs = self.pair[utterances].tolist() if "image" in self.wanted else []
            heard = utterances if "logmel" in self.wanted else []
            self.dataset.decode_ahead(pairs, heard, CORES)
        return [self[utterance] for utterance in utterances]

    def __getitem__(self, utterance: int) -> Batch:
        item = {"space": self.space[utterance], "rt60": self.rt60[utterance]}
        if "logmel" in self.wanted:
            item["dry"], item["air"] = self.dataset.load_sounds(utterance)
        if "image" in self.wanted:
            item["image"] = self.dataset.load_image(int(self.pair[utterance]))
        return item


def _padded(items: list[Batch]) -> Batch:
    """A batch. Sounds become as long as the longest by silence, which no convolution minds."""
    sounds = [name for name in ("dry", "air") if name in items[0]]
    padded = {name: pad_sequence([item.pop(name) for item in items], batch_first=True) for name in sounds}
    return default_collate(items) | padded
