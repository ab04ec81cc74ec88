"""Pictures of one split as batches by index, from memory, by loader workers, or as a fixed encoder's maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cmx_fast.data.loaders.upload import upload
from cmx_fast.data.loaders.workers import CORES, load_batches
from cmx_fast.data.media.decode import FILE_BACKENDS, check_backend

#: Indices (B,) and their pictures (B, 3, S, S), or the pictures' packed maps (B, R).
IndexedPictures = tuple[Tensor, Tensor]


class Pictures:
    """Batches of a data set's pictures.

    Args:
        dataset: a :class:`cmx_fast.data.sets.atr.ATR`, or anything with ``__len__`` and ``load_image(i)``, and for
            :meth:`masks` with ``load_mask(i)`` and ``class_names``: one without has no masks.
        cache: decode every picture once and keep it, in bytes; else workers read files.
        backend: "dali" decodes the pictures of a batch together (the data set's ``load_images``), in this process, on
            the GPU if there is one.

    Attributes:
        class_names: the classes of the masks; none where there are no masks.
        maps: (pictures, R) float16, a fixed encoder's maps as :func:`cmx_fast.networks.fpn.pack` lays them, in the
            pictures' place (:mod:`cmx_fast.systems.c2l.encoder_maps`); None: the networks see the pictures.
    """

    maps: Tensor | None = None

    def __init__(
        self,
        dataset: Any,
        *,
        cache: bool = False,
        backend: str = "auto",
        device: torch.device | str = "cpu",
        workers: int | None = None,
    ):
        self.workers = CORES if workers is None else workers
        check_backend(backend, FILE_BACKENDS)
        self.dataset, self.backend, self.device = dataset, backend, torch.device(device)
        self.kept = torch.stack([dataset.load_image(i) for i in range(len(dataset))]) if cache else None
        self.class_names: list[str] = dataset.class_names if hasattr(dataset, "load_mask") else []
        self._masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def masks(self, index: Tensor) -> Tensor:
        """The masks of some pictures, int64 (B, S, S) of classes; -1 does not count.

        The first call reads those of all pictures, in threads, and keeps them: 1,000 of 320 pixels are 102 MB.
        """
        if self._masks is None:
            kind = torch.int8 if len(self.class_names) <= 127 else torch.int16
            with ThreadPoolExecutor(CORES) as pool:  # decoding leaves the interpreter free
                read = pool.map(lambda i: self.dataset.load_mask(i).to(kind), range(len(self)))
                self._masks = torch.stack(list(read))
        return self._masks[index.cpu()].long()

    def load(self, rows: Iterable[Tensor]) -> Iterator[IndexedPictures]:
        """For each of ``rows``, indices (B,) int64: these and what the networks see of them, on the device."""
        if self.maps is None:
            yield from self.load_images(rows)
        else:
            for index in rows:
                yield index, upload(self.maps[index], self.device).float()

    def load_images(self, rows: Iterable[Tensor]) -> Iterator[IndexedPictures]:
        """For each of ``rows``, indices (B,) int64: these and their pictures (B, 3, S, S), in [0, 1] on the device."""
        loader: Iterable[IndexedPictures]
        if self.kept is not None:
            loader = ((batch, self.kept[batch]) for batch in rows)
        else:
            together = self.backend == "dali"
            loader = load_batches(
                _Images(self.dataset, together),
                (batch.tolist() for batch in rows),
                workers=0 if together else self.workers,
                pin_memory=self.device.type == "cuda" and not together,
            )
        for index, images in loader:
            yield index, upload(images, self.device).float() / 255

    def in_order(self, batch: int = 32) -> Iterator[IndexedPictures]:
        """What the networks see of every picture, once."""
        return self.load(torch.arange(len(self)).split(batch))


class _Images(Dataset[tuple[int, Tensor]]):
    """Pictures with their index, without their masks."""

    def __init__(self, dataset: Any, together: bool):
        self.dataset, self.together = dataset, together

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Tensor]]:
        if self.together:
            return list(zip(indices, self.dataset.load_images(indices, CORES), strict=True))
        return [self[index] for index in indices]

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, self.dataset.load_image(index)
