"""Splits of labelled pictures as batches by index: pictures from files, or the maps of a fixed encoder."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from cmx_fast.data.loaders.upload import upload
from cmx_fast.data.loaders.workers import CORES, load_batches
from cmx_fast.data.sets.atr import ATR
from cmx_fast.data.sets.boxed_pictures import BOXED_SETS, BoxedPictures
from cmx_fast.data.sets.labelled_pictures import LABELLED_SETS, LabelledPictures
from cmx_fast.data.sets.masked_pictures import MASKED_SETS, MaskedPictures
from cmx_fast.data.transforms.picture_views import Views
from cmx_fast.networks.fpn import pack, unpack
from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.nn import warp
from cmx_fast.systems.recognition.model import Levels, Plan
from cmx_fast.systems.recognition.networks import needs_pictures
from cmx_fast.systems.recognition.options import CLASSIFY, DETECT, SEGMENT
from cmx_fast.systems.recognition.recipe import RecognitionRecipe
from cmx_fast.train.frozen_features import frozen_rows, rows_key
from cmx_fast.train.trainable import Batch

Pictures = MaskedPictures | LabelledPictures | BoxedPictures

#: The readers of a task's layouts; their names are :data:`cmx_fast.systems.recognition.options.LAYOUTS`.
READERS: dict[str, dict[str, Callable[..., Pictures]]] = {
    SEGMENT: {**MASKED_SETS, "atr": ATR},
    CLASSIFY: {**LABELLED_SETS},
    DETECT: {**BOXED_SETS},
}
#: The splits that a layout calls otherwise: VOC2012's test split is not public, CUB has two splits.
SPLITS = {"voc": {"test": "val"}, "cub": {"val": "test"}}
#: Folder of a run in which a fixed encoder's maps are kept.
MAPS = "maps"
#: Pictures per batch where nothing is trained.
BATCH = 32


class Examples:
    """Pictures of a split with what a network is to say of them.

    Batches have "index" (B,), "picture" (B, 3, S, S) in [0, 1], and the dataset's targets: "mask" (B, S, S); or "label"
    (B,) and perhaps "box" (B, 4); or "boxes" (B, M, 4), "labels" (B, M) and "difficult" (B, M).
    """

    def __init__(self, dataset: Pictures, device: torch.device | str, workers: int | None = None):
        self.dataset, self.device = dataset, torch.device(device)
        self.workers = CORES if workers is None else workers

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, rows: Iterable[Tensor]) -> Iterator[Batch]:
        """The batches of indices (B,) int64."""
        loader = load_batches(
            _Items(self.dataset),
            (index.tolist() for index in rows),
            workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        for loaded in loader:
            batch = {name: upload(value, self.device) for name, value in loaded.items()}
            yield {**batch, "picture": batch["picture"].float() / 255}

    def in_order(self, batch: int = BATCH) -> Iterator[Batch]:
        """Every picture once."""
        return self.load(torch.arange(len(self)).split(batch))


class _Items(Dataset[dict[str, Tensor]]):
    def __init__(self, dataset: Pictures):
        self.dataset = dataset

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            "index": torch.tensor(index),
            "picture": self.dataset.load_image(index),
            **self.dataset.target(index),
        }


class KeptMaps(Examples):
    """Examples whose batches have a fixed encoder's maps, "map0", "map1", ..., in place of pictures.

    The maps are computed once, and kept in float16, in a file or in memory; targets in memory.

    Args:
        file: where the maps are kept; stale ones are computed anew.
    """

    def __init__(
        self,
        dataset: Pictures,
        encoder: VisualEncoder,
        levels: Levels,
        device: torch.device | str,
        file: Path | None = None,
        workers: int | None = None,
    ):
        super().__init__(dataset, device, workers)
        self.shapes = [(c, side, side) for c, side in zip(levels.channels, levels.sides, strict=True)]
        length = sum(math.prod(shape) for shape in self.shapes)
        encoder.to(device)

        @torch.no_grad()
        def compute() -> Iterator[tuple[Tensor, Tensor]]:
            batches = Examples(dataset, device, workers).in_order()
            total = -(-len(self) // BATCH)
            for batch in track(batches, "maps", total, disable=not sys.stderr.isatty(), transient=True):
                maps = encoder.maps(batch["picture"])
                yield batch["index"].cpu(), pack(maps[number] for number in levels.numbers)

        settings = ["maps", encoder.fingerprint(), dataset.size, levels.numbers]
        key = rows_key(settings, [dataset.path(i) for i in range(len(dataset))])
        self.rows = frozen_rows(file, key, (len(dataset), length), compute, torch.float16)
        self.targets = _compact(default_collate([dataset.target(i) for i in range(len(dataset))]))

    def load(self, rows: Iterable[Tensor]) -> Iterator[Batch]:
        for index in rows:
            maps = unpack(upload(self.rows[index], self.device).float(), self.shapes)
            targets = {name: upload(value[index], self.device) for name, value in self.targets.items()}
            yield {
                "index": index,
                **{f"map{n}": x for n, x in enumerate(maps)},
                **{
                    name: value if value.is_floating_point() else value.long()
                    for name, value in targets.items()
                },
            }


def _compact(targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Classes in two bytes."""
    return {
        name: value if value.is_floating_point() else value.to(torch.int16) for name, value in targets.items()
    }


@dataclass
class TrainingBatches:
    """Batches of shuffled examples from any step on, the same for a seed; pictures are augmented, maps are as kept."""

    examples: Examples
    recipe: RecognitionRecipe
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """The number of full batches; examples left over come up in other epochs."""
        return len(self.examples) // self.recipe.batch

    def __call__(self, start: int) -> Iterator[Batch]:
        epoch, skipped = divmod(start, self.steps_per_epoch)
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.examples), generator=generator)
            rows = order.split(self.recipe.batch)[skipped : self.steps_per_epoch]
            for batch in self.examples.load(rows):
                yield self._augmented(batch, epoch) if "picture" in batch else batch
            epoch, skipped = epoch + 1, 0

    def _augmented(self, batch: Batch, epoch: int) -> Batch:
        """The batch with other colours, crops and mirrored pictures, its masks and boxes with them."""
        views = Views(
            batch["index"],
            seed=self.seed,
            epoch=epoch,
            jitter=self.recipe.jitter,
            hue=self.recipe.hue,
            smallest_crop=self.recipe.smallest_crop,
            device=self.examples.device,
        )
        changed = {"picture": views.geometric(views.photometric(batch["picture"], 1))}
        if "mask" in batch:
            mask = warp(batch["mask"][:, None].float(), views.theta, "nearest")
            changed["mask"] = mask[:, 0].long()
        if "box" in batch:
            changed["box"] = cropped_boxes(batch["box"][:, None], views.theta)[0][:, 0]
        if "boxes" in batch:
            changed["boxes"], inside = cropped_boxes(batch["boxes"], views.theta)
            changed["labels"] = torch.where(inside, batch["labels"], 0)
        return {**batch, **changed}


def cropped_boxes(boxes: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (B, M, 4), as shares of the picture, after the crop of :func:`cmx_fast.nn.warp` by ``theta`` (B, 2, 3).

    Also returns (B, M) bool, the boxes whose middle is in the crop: the objects that stay, as in SSD's crops.
    """
    scale = torch.stack([theta[:, 0, 0], theta[:, 1, 1]], 1)[:, None]
    ends = [((2 * end - 1 - theta[:, None, :, 2]) / scale + 1) / 2 for end in boxes.split(2, 2)]
    middle = (ends[0] + ends[1]) / 2
    inside = ((middle > 0) & (middle < 1)).all(2)
    return torch.cat([torch.minimum(*ends), torch.maximum(*ends)], 2).clamp(0, 1), inside


class Data:
    """The splits "train", "val" and "test" of a layout, as a network with some attention module takes them.

    Args:
        layout: one of the task's. root: its folder.
        encoder: whose maps are kept where it stays fixed. features: their folder; None: in memory.
        skip_bad: leave out unreadable pictures.
        workers: processes that read, by default as many as there are cores but at most 8; 0: this process.

    Raises:
        ValueError: no such layout, or an encoder that does not fit the recipe.
    """

    def __init__(
        self,
        task: str,
        layout: str,
        root: Path,
        recipe: RecognitionRecipe,
        encoder: VisualEncoder,
        device: torch.device | str,
        *,
        features: Path | None = None,
        skip_bad: bool = False,
        workers: int | None = None,
    ):
        if layout not in READERS[task]:
            raise ValueError(f"dataset must be one of {', '.join(READERS[task])}; got {layout!r}")
        self.task, self.layout, self.root, self.recipe = task, layout, root, recipe
        self.encoder, self.levels = encoder, Levels.of(encoder, recipe)
        self.device, self.features, self.skip_bad, self.workers = device, features, skip_bad, workers
        self._pictures: dict[str, Pictures] = {}
        self._examples: dict[tuple[str, bool], Examples] = {}

    def own_split(self, split: str) -> str:
        """The name that the layout has for a split; a plain folder without "val" or "test" has one for both."""
        named = SPLITS.get(self.layout, {}).get(split, split)
        if self.layout == "folder" and not (self.root / named).is_dir():
            named = {"val": "test", "test": "val"}.get(named, named)
        return named

    def pictures(self, split: str) -> Pictures:
        """The pictures of a split, opened once."""
        own = self.own_split(split)
        if own not in self._pictures:
            read = READERS[self.task][self.layout]
            self._pictures[own] = read(self.root, own, size=self.recipe.size, skip_bad=self.skip_bad)
        return self._pictures[own]

    def examples(self, split: str, attention: str) -> Examples:
        """The split's pictures, or a fixed encoder's maps of them, whichever the attention module's network takes."""
        own, as_pictures = self.own_split(split), needs_pictures(attention, self.recipe)
        if (own, as_pictures) not in self._examples:
            self._examples[own, as_pictures] = self._opened(own, as_pictures)
        return self._examples[own, as_pictures]

    def plan(self, attention: str, classes: int) -> Plan:
        """The plan of the network with an attention module; an encoder that learns is a copy of its own."""
        encoder = self.encoder if self.recipe.freeze else copy.deepcopy(self.encoder).unfreeze()
        return Plan(self.recipe, attention, classes, self.levels, encoder)

    def _opened(self, own: str, as_pictures: bool) -> Examples:
        pictures = self.pictures(own)
        if as_pictures:
            return Examples(pictures, self.device, self.workers)
        file = None if self.features is None else self.features / f"{self.task}-{self.layout}-{own}.npy"
        return KeptMaps(pictures, self.encoder, self.levels, self.device, file, self.workers)
