"""Image2Reverb: pairs of a space's picture and its impulse response, heard through dry speech.

Reads the published layout and the one that ``cmx simulate rooms`` writes, which is the same::

    <root>/{train,val,test}_A/<space>_<pair>_label.jpg     pictures (any size; JPEG or PNG)
    <root>/{train,val,test}_B/<space>_<pair>_img.wav       acoustic impulse responses (AIR)
    <root>/speech/{train,val,test}/**/*.wav                dry sentences (or another folder, ``speech=``)
    <root>/manifest.csv                                    optional: image,air,space,indoor,rt60,split
    <root>/speech.csv                                      optional: file,split[,speaker]

The two tables take the place of the folders, and may name files anywhere: ``cmx prepare`` writes them. A row without an
image is a response that is heard alone.
"""

from __future__ import annotations

import importlib
import math
import os
import warnings
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cmx_fast.data.media.files import (
    BrokenFileError,
    audio_problem,
    picture_problem,
    read_audio,
    read_picture,
)
from cmx_fast.data.media.suffixes import PICTURES, SOUNDS
from cmx_fast.data.sets.lists import Row, read_table
from cmx_fast.data.sets.recordings import check_split, of_kind
from cmx_fast.data.transforms.reverberation import damp, peak_normalise, reverberate
from cmx_fast.data.transforms.schroeder import reverberation_time

# ImageNet's channel statistics, which the Places365 weights expect.
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
#: The parts of a set; not every set has a "val".
SPLITS = ("train", "val", "test")
#: The columns of manifest.csv and of speech.csv.
MANIFEST = ("image", "air", "space", "indoor", "rt60", "split")
SPEECH_TABLE = ("file", "split", "speaker")
#: Dry speech: also SPHERE by the names that LDC uses; WSJ0's .wv2 are of a far microphone.
SPEECH = (*SOUNDS, ".sph", ".nist", ".wv1")
#: Seconds of a response from which its RT60 is taken: it may be longer than the speech.
_LONGEST_RESPONSE = 30.0
_TRUE, _FALSE = ("1", "true", "yes", "indoor"), ("0", "false", "no", "outdoor")


def read_indoor(row: Row) -> bool | None:
    """The column "indoor" of a row: True, False, or None where it is empty.

    Raises:
        ValueError: it is anything else; names the line.
    """
    value = row["indoor"].lower()
    if value not in (*_TRUE, *_FALSE, ""):
        raise ValueError(f"{row.where}: indoor is {row['indoor']!r}, expected 1 or 0")
    return value in _TRUE if value else None


def measure_rt60(air: Path, sample_rate: int) -> float:
    """RT60 in seconds of a response's first channel; NaN where noise hides its decay.

    Raises:
        BrokenFileError: the file can't be decoded.
    """
    response = read_audio(air, sample_rate, round(_LONGEST_RESPONSE * sample_rate))
    return reverberation_time(response.numpy(), sample_rate)


@dataclass(frozen=True)
class Pair:
    """A picture and an impulse response of the same space.

    ``image`` is None for a response that is heard alone. ``indoor`` is None where no manifest says it; ``rt60`` is NaN
    where no manifest says it and noise hides the decay.
    """

    image: Path | None
    air: Path
    space: str
    indoor: bool | None
    rt60: float
    name: str


@dataclass
class PairFiles:
    """The files of one part of the published layout.

    Attributes:
        pairs: (picture, response, space), by name.
        alone: (file, reason) of pictures and responses that have no partner, or a name without a space.
        others: (file, reason) of files that don't belong to the layout.
    """

    pairs: list[tuple[Path, Path, str]]
    alone: list[tuple[Path, str]]
    others: list[tuple[Path, str]]


def files_of_pairs(root: Path, split: str) -> PairFiles:
    """Pair the pictures of ``<root>/<split>_A`` with the responses of ``<root>/<split>_B`` by their names.

    Raises:
        ValueError: one of the folders is not there.
    """
    found = PairFiles([], [], [])

    def identities(folder: Path, ending: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
        if not folder.is_dir():
            raise ValueError(f"root: no folder {folder}; expected Image2Reverb's layout or a manifest.csv")
        files, others = of_kind(folder, suffixes)
        unnamed = [(p, f"is not called <space>_<pair>{ending}") for p in files if not p.stem.endswith(ending)]
        found.others += others + unnamed
        return {p.stem.removesuffix(ending): p for p in files if p.stem.endswith(ending)}

    images = identities(root / f"{split}_A", "_label", PICTURES)
    airs = identities(root / f"{split}_B", "_img", (".wav",))
    for identity in sorted(images.keys() | airs.keys()):
        if identity not in airs:
            found.alone.append((images[identity], f"has no partner {split}_B/{identity}_img.wav"))
        elif identity not in images:
            found.alone.append((airs[identity], f"has no partner {split}_A/{identity}_label.jpg"))
        elif "_" not in identity:
            found.alone.append((images[identity], "name is not <space>_<pair>_label"))
        else:
            found.pairs.append((images[identity], airs[identity], identity.rsplit("_", 1)[0]))
    return found


class _Cache:
    """Decoded tensors by path, oldest out first once ``limit`` bytes are held."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._tensors: OrderedDict[Path, Tensor] = OrderedDict()

    def get(self, path: Path) -> Tensor | None:
        return self._tensors.get(path)

    def put(self, path: Path, tensor: Tensor) -> None:
        self._tensors[path] = tensor
        self._held += tensor.nbytes
        while self._held > self._limit and len(self._tensors) > 1:
            _, dropped = self._tensors.popitem(last=False)
            self._held -= dropped.nbytes


class Image2Reverb(Dataset[dict[str, Any]]):
    """A split of Image2Reverb with an item per (pair, sentence): the picture, and the sentence in the pair's space.

    ``root``, ``split`` ("train", "val" or "test"): the folder and the part to read. ``speech``: folder of dry sentences
    (default: those of ``speech.csv``, else ``<root>/speech/<split>``): WAV, FLAC, OGG or SPHERE, at any depth.
    ``sentences_per_air``: sentences drawn without replacement for each pair, by ``seed`` and the names of its picture
    and its response, so they do not depend on which other files are there (paper: 5). ``seconds`` and
    ``sample_rate``: length and rate of the speech (paper: 6 s, 22,050 Hz); files of another rate are resampled.
    ``image_size``: pictures are resized and centre-cropped to this (paper: 224). ``spaces``: names that fix the
    class numbers; pass ``train.spaces`` for the other splits. ``damping``: each utterance's response is damped so that
    its RT60 is (1 - damping) to 1 of the measured one, log-uniform by ``seed``; for training. ``cache_bytes`` bounds
    each of the three caches of
    decoded files (pictures, AIRs, speech).

    The constructor checks every file's header and end. A broken, missing or unpaired file raises
    ``BrokenFileError`` (a ValueError), or with ``skip_bad`` is left out and listed in ``skipped`` as
    (path, reason), as are the files that do not belong to the layout. Damage that only decoding shows is raised when
    the item is read; with ``skip_bad`` another pair of the same space stands in, with a warning.

    Items are ``image`` float32 (3, S, S) with ImageNet's mean and deviation removed, ``wave`` float32 (samples,)
    of peak 1, ``space`` int64, ``rt60`` float32 seconds (NaN: not known), ``indoor`` bool, ``pair`` and ``utterance``
    int64 (``utterance`` is the item's own index). ``indoor`` is absent where no manifest gives it.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        speech: str | Path | None = None,
        sentences_per_air: int = 5,
        seconds: float = 6.0,
        sample_rate: int = 22050,
        image_size: int = 224,
        spaces: list[str] | None = None,
        skip_bad: bool = False,
        damping: float = 0.0,
        seed: int = 0,
        cache_bytes: int = 1 << 30,
    ) -> None:
        check_split(split, SPLITS)
        if not 0 <= damping < 1:
            raise ValueError(f"damping must be in [0, 1), got {damping}")
        if sentences_per_air < 1 or seconds <= 0 or sample_rate < 1 or image_size < 1:
            raise ValueError(
                f"sentences_per_air ({sentences_per_air}), seconds ({seconds}), sample_rate ({sample_rate}) and "
                f"image_size ({image_size}) must be positive"
            )
        self.root = Path(root)
        self.split = split
        self.sample_rate = sample_rate
        self.samples = round(seconds * sample_rate)
        self.image_size = image_size
        self.sentences_per_air = sentences_per_air
        self.skipped: list[tuple[Path, str]] = []
        self._skip_bad = skip_bad
        self._pictures, self._airs, self._dry = (_Cache(cache_bytes) for _ in range(3))
        if not self.root.is_dir():
            raise ValueError(
                f"root: no folder {self.root}; write one with `cmx simulate rooms --out {self.root}`"
            )

        self.speech_files = self._checked_speech(None if speech is None else Path(speech))
        if len(self.speech_files) < sentences_per_air:
            raise ValueError(
                f"speech: {len(self.speech_files)} sentences, fewer than sentences_per_air={sentences_per_air}"
            )
        manifest = self.root / "manifest.csv"
        self.pairs = self._pairs_of_manifest(manifest) if manifest.is_file() else self._pairs_of_folders()
        if not self.pairs:
            raise ValueError(
                f"root: {self.root} has no usable pairs for split {split!r} ({len(self.skipped)} skipped)"
            )

        self.pairs.sort(key=lambda pair: pair.image is None)
        seen = {pair.space for pair in self.pairs if pair.image}
        heard = {pair.space for pair in self.pairs} - seen
        self.spaces = [*sorted(seen), *sorted(heard)] if spaces is None else list(spaces)
        unknown = sorted(seen - set(self.spaces))
        if unknown:
            raise ValueError(
                f"spaces: {unknown[:5]} of split {split!r} are not among the {len(self.spaces)} given"
            )
        self._class_of = {space: number for number, space in enumerate(self.spaces)}
        self._sentences, self._dampings = self._draw(seed, damping)

    def _bad(self, path: Path, reason: str) -> None:
        if not self._skip_bad:
            raise BrokenFileError(path, reason)
        self.skipped.append((path, reason))

    def _checked_speech(self, folder: Path | None) -> list[Path]:
        table = self.root / "speech.csv"
        if folder is None and table.is_file():
            rows = read_table(table, ("file", "split"))
            files = [self.root / row["file"] for row in rows if row.one_of("split", SPLITS) == self.split]
            place = f"{table} for split {self.split!r}"
        else:
            folder = folder or self.root / "speech" / self.split
            files, others = of_kind(folder, SPEECH, nested=True) if folder.is_dir() else ([], [])
            self.skipped += others
            place = str(folder)
        if not files:
            raise ValueError(
                f"speech: no sound files ({', '.join(SPEECH)}) in {place}; give a folder of dry sentences"
            )
        good = []
        for path in files:
            problem = audio_problem(path)
            if problem:
                self._bad(path, problem)
            else:
                good.append(path)
        return good

    def _pairs_of_manifest(self, manifest: Path) -> list[Pair]:
        pairs = []
        for row in read_table(manifest, ("image", "air", "space", "indoor", "split")):
            if row.one_of("split", SPLITS) != self.split:
                continue
            indoor = read_indoor(row)
            rt60 = row.real("rt60") if row.get("rt60") else None
            if rt60 is not None and (rt60 < 0 or math.isinf(rt60)):
                raise ValueError(
                    f"{row.where}: rt60 is {row['rt60']!r}, expected 0 or more seconds, nan where unknown"
                )
            pair = self._checked_pair(
                self.root / row["image"] if row["image"] else None,
                self.root / row["air"],
                row["space"],
                indoor,
                rt60,
            )
            if pair:
                pairs.append(pair)
        return pairs

    def _pairs_of_folders(self) -> list[Pair]:
        found = files_of_pairs(self.root, self.split)
        self.skipped += found.others
        for path, reason in found.alone:
            self._bad(path, reason)
        checked = (self._checked_pair(image, air, space, None, None) for image, air, space in found.pairs)
        return [pair for pair in checked if pair]

    def _checked_pair(
        self, image: Path | None, air: Path, space: str, indoor: bool | None, rt60: float | None
    ) -> Pair | None:
        for path, check in ((image, picture_problem), (air, audio_problem)):
            if path and (problem := check(path)):
                self._bad(path, problem)
                return None
        if rt60 is None:
            try:
                rt60 = measure_rt60(air, self.sample_rate)
            except BrokenFileError as error:
                self._bad(air, error.reason)
                return None
        name = image.stem.removesuffix("_label") if image else air.stem
        return Pair(image, air, space, indoor, rt60, name)

    def _draw(self, seed: int, damping: float) -> tuple[list[list[int]], list[list[float]]]:
        """For each pair its sentences, and the factor of RT60 for each of them."""
        sentences, factors = [], []
        repeated: Counter[bytes] = Counter()
        for pair in self.pairs:
            name = os.fsencode(f"{pair.image.stem if pair.image else ''}/{pair.air.stem}")
            rng = np.random.default_rng([seed, zlib.crc32(name), repeated[name]])
            repeated[name] += 1
            sentences.append(
                rng.choice(len(self.speech_files), self.sentences_per_air, replace=False).tolist()
            )
            known = pair.rt60 > 0
            factors.append(
                [(1 - damping) ** rng.random() if known else 1.0 for _ in range(self.sentences_per_air)]
            )
        return sentences, factors

    def __len__(self) -> int:
        return len(self.pairs) * self.sentences_per_air

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        number = index // self.sentences_per_air
        pair = self.pairs[number]
        item: dict[str, Any] = {
            "wave": self.load_wave(index),
            "space": torch.tensor(self.class_of(number)),
            "rt60": torch.tensor(self.rt60(index), dtype=torch.float32),
            "pair": torch.tensor(number),
            "utterance": torch.tensor(index),
        }
        if pair.image is not None:
            item["image"] = self.load_image(number)
        if pair.indoor is not None:
            item["indoor"] = torch.tensor(pair.indoor)
        return item

    @property
    def pictured(self) -> int:
        """The number of pairs that have a picture; they come first."""
        return sum(pair.image is not None for pair in self.pairs)

    def class_of(self, pair_index: int) -> int:
        """The class number of a pair's space; -1 for a response heard alone whose space is not among ``spaces``."""
        return self._class_of.get(self.pairs[pair_index].space, -1)

    def rt60(self, utterance_index: int) -> float:
        """RT60 in seconds of the response that an utterance is heard through, damped; NaN where it is not known."""
        number, order = divmod(utterance_index, self.sentences_per_air)
        return self.pairs[number].rt60 * self._dampings[number][order]

    def load_image(self, pair_index: int) -> Tensor:
        """The normalised picture of a pair, float32 (3, S, S); on the GPU where DALI decoded it there."""
        pixels = self._decoded(
            self._pictures,
            [image for i in self._stand_ins(pair_index) if (image := self.pairs[i].image)],
            lambda path: read_picture(path, self.image_size),
        )
        mean, std = _MEAN.to(pixels.device), _STD.to(pixels.device)
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    def load_wave(self, utterance_index: int) -> Tensor:
        """Reverberant speech, float32 (samples,), peak 1; utterance u is sentence u % n of pair u // n."""
        return peak_normalise(reverberate(*self.load_sounds(utterance_index), self.samples))

    def load_sounds(self, utterance_index: int) -> tuple[Tensor, Tensor]:
        """The dry speech and the AIR that :meth:`load_wave` convolves, float32 (at most samples,) each."""
        number, chosen = self._spoken(utterance_index)
        others = [self.speech_files[chosen - i] for i in range(len(self.speech_files))]
        airs = [self.pairs[i].air for i in self._stand_ins(number)]
        dry = self._decoded(self._dry, others, self._read_sound)
        air = self._decoded(self._airs, airs, self._read_sound)
        factor = self._dampings[number][utterance_index % self.sentences_per_air]
        return dry, air if factor == 1 else damp(air, self.sample_rate, self.pairs[number].rt60, factor)

    def decode_ahead(self, pairs: Iterable[int], utterances: Iterable[int], threads: int = 1) -> None:
        """Decode by DALI, together, the pictures of these pairs and the sounds of these utterances.

        They are then in the caches. Files that DALI can't decode are read, and named if broken, with their item.
        """
        dali = importlib.import_module("cmx_fast.data.media.decode_dali_files")
        spoken = [self._spoken(utterance) for utterance in utterances]

        def pictures(paths: list[Path]) -> Any:
            return dali.read_pictures(paths, self.image_size, threads=threads)

        def sounds(paths: list[Path]) -> Any:
            return dali.read_sounds(paths, self.sample_rate, self.samples, threads=threads)

        for cache, paths, read in (
            (self._pictures, [image for pair in pairs if (image := self.pairs[pair].image)], pictures),
            (self._airs, [self.pairs[pair].air for pair, _ in spoken], sounds),
            (self._dry, [self.speech_files[sentence] for _, sentence in spoken], sounds),
        ):
            missing = [path for path in dict.fromkeys(paths) if cache.get(path) is None]
            for path, content in zip(missing, read(missing), strict=True):
                if not isinstance(content, BrokenFileError):
                    cache.put(path, content)

    def _spoken(self, utterance_index: int) -> tuple[int, int]:
        """The pair and the sentence of an utterance."""
        pair, order = divmod(range(len(self))[utterance_index], self.sentences_per_air)
        return pair, self._sentences[pair][order]

    def _read_sound(self, path: Path) -> Tensor:
        return read_audio(path, self.sample_rate, self.samples)

    def _stand_ins(self, pair_index: int) -> list[int]:
        """The pair itself, then the other pairs of its space, nearest first."""
        space = self.pairs[pair_index].space
        same = (
            [i for i, pair in enumerate(self.pairs) if pair.space == space]
            if self._skip_bad
            else [pair_index]
        )
        return sorted(same, key=lambda i: abs(i - pair_index))

    def _decoded(self, cache: _Cache, paths: list[Path], read: Any) -> Tensor:
        """The first of ``paths`` that decodes; without ``skip_bad`` only the first is tried."""
        for path in paths:
            held = cache.get(path)
            if held is not None:
                return held
            try:
                held = read(path)
            except BrokenFileError as error:
                if not self._skip_bad:
                    raise
                warnings.warn(
                    f"{error.path}: {error.reason}; another file of the set stands in", stacklevel=2
                )
                self.skipped.append((error.path, error.reason))
                continue
            cache.put(path, held)
            return held
        raise BrokenFileError(
            paths[0], "can't be decoded, and neither can any file that could stand in for it"
        )
