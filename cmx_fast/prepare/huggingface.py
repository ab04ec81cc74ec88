"""Reads a local folder of Hugging Face's ``datasets``: its columns of pictures, sounds and videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cmx_fast._extras import require
from cmx_fast.prepare.unpacked import MEDIA, Unpacked

_PARTS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
#: Columns that name a sample's class, the first that is there.
LABELS = ("label", "labels", "class", "category", "fine_label")
#: The ending of content without a name, by its first bytes.
_MAGIC = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"fLaC", ".flac"),
    (b"OggS", ".ogg"),
    (b"ID3", ".mp3"),
    (b"\xff\xfb", ".mp3"),
    (b"\x1a\x45\xdf\xa3", ".mkv"),
)


def open_splits(folder: Path, cache: Path) -> dict[str, Any]:
    """The splits of a folder that ``save_to_disk`` wrote, or that was downloaded (Parquet, Arrow, ImageFolder, ...).

    Args:
        cache: a folder for what ``datasets`` writes while it reads.

    Raises:
        MissingExtraError: ``datasets`` is not installed.
        ValueError: no such folder, or ``datasets`` can't read it.
    """
    datasets = require("datasets", "huggingface")
    if not folder.is_dir():
        raise ValueError(f"dataset: there is no folder {folder}; download it first")
    try:
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(str(folder), cache_dir=str(cache))
    except Exception as error:  # its own errors are of many kinds
        raise ValueError(f"dataset: {folder} can't be read ({error})") from error
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}


def unpack_split(name: str, dataset: Any, unpacked: Unpacked, tick: Callable[[], None]) -> None:
    """Write the media of a split, a file for each sample and column; ``tick`` is called after each sample.

    Raises:
        ValueError: it has no column of pictures, sounds or videos.
    """
    datasets = require("datasets", "huggingface")
    kinds = (datasets.Image, datasets.Audio, datasets.Video)
    media = [column for column, feature in dataset.features.items() if isinstance(feature, kinds)]
    if not media:
        raise ValueError(
            f"dataset: the split {name!r} has no column of pictures, sounds or videos; it has "
            f"{', '.join(dataset.features)}"
        )
    labelled = next((column for column in LABELS if column in dataset.features), None)
    for column in media:  # as stored
        dataset = dataset.cast_column(column, type(dataset.features[column])(decode=False))
    columns = [*media, *([] if labelled is None else [labelled])]
    for number, row in enumerate(dataset.select_columns(columns)):
        label = "" if labelled is None else _label(dataset.features[labelled], row[labelled])
        for column in media:
            file = f"{name or 'data'}/{column}/{number:07d}"
            try:
                content, suffix = _stored(row[column])
            except ValueError as error:
                unpacked.skipped.append((Path(file), str(error)))
            else:
                unpacked.write(file + suffix, content, label=label, split=_PARTS.get(name, ""))
        tick()


def _label(feature: Any, value: Any) -> str:
    names = getattr(feature, "names", None)
    return str(value if names is None or value is None or value < 0 else names[value])


def _stored(value: dict[str, Any] | None) -> tuple[bytes, str]:
    """Content and ending of a stored file.

    Raises:
        ValueError: it is not there, or of no kind that is known.
    """
    content, path = (value or {}).get("bytes"), (value or {}).get("path")
    if content is None:
        if path is None or not Path(path).is_file():
            raise ValueError(f"its file {path} is not there" if path else "is empty")
        content = Path(path).read_bytes()
    named = Path(path).suffix.lower() if path else ""
    suffix = named if named in MEDIA else _suffix(content)
    if suffix is None:
        raise ValueError("is of no known kind")
    return content, suffix


def _suffix(content: bytes) -> str | None:
    if content[:4] == b"RIFF":
        return {b"WAVE": ".wav", b"WEBP": ".webp", b"AVI ": ".avi"}.get(content[8:12])
    if content[4:8] == b"ftyp":
        return ".m4a" if content[8:11] == b"M4A" else ".mp4"
    return next((suffix for start, suffix in _MAGIC if content.startswith(start)), None)
