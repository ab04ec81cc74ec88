"""Features or maps by a fixed encoder, computed once, kept in a memory-mapped file, and computed anew when stale."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from cmx_fast.data.media.files import BrokenFileError, read_picture
from cmx_fast.networks.visual_encoders import VisualEncoder, reopen_visual_encoder
from cmx_fast.networks.weights import write_text
from cmx_fast.train.run_folder import FinishedRun

#: Pictures per batch.
BATCH = 32
DTYPES = {torch.float32: np.float32, torch.float16: np.float16}


def run_encoder(run: FinishedRun, file: Path | str | None = None) -> VisualEncoder | None:
    """The pretrained encoder that a run was trained with, --encoder; None where it had none.

    Args:
        file: its weights, if not where the run had them.

    Raises:
        FileNotFoundError: the weights are not there any more.
        ValueError: ``file`` is given for a run without such an encoder, or its weights are others than the run's.
    """
    spec = run.config.get("encoder")
    if spec is not None:
        return reopen_visual_encoder(spec, run.config["encoder_fingerprint"], file)
    if file is not None:
        raise ValueError(f"--encoder-file {file}: {run.path} was trained without --encoder")
    return None


def frozen_rows(
    file: Path | None,
    key: str,
    shape: Sequence[int],
    compute: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Rows of ``shape`` (N, ...) that ``compute`` gives, kept in ``file``; NaN for those that it leaves out.

    The file is NumPy's, with the key beside it (``<file>.json``), which is written last: an interrupted computation
    leaves no valid file. The rows are read from it if its key is this one, and stay on the disk until they are used:
    1,000 maps of 40 x 56 x 56 in float16 are 250 MB there, and as little memory as is asked for.

    Args:
        file: named .npy; None: the rows are computed and kept in memory.
        key: a hash of all that decides the rows: encoder, pictures, and how they are read.
        compute: yields row numbers (B,) int64 and their values (B, ...).
        dtype: float32 or float16.

    Raises:
        ValueError: another dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be float32 or float16, got {dtype}")
    if file is not None and file.exists():
        stored = _stored(file, key, tuple(shape), dtype)
        if stored is not None:
            return stored
    if file is None:
        rows = torch.full(tuple(shape), torch.nan, dtype=dtype)
        _fill(rows, compute())
        return rows
    file.parent.mkdir(parents=True, exist_ok=True)
    partial, record = file.with_name(file.name + ".partial"), _record(file)
    record.unlink(missing_ok=True)
    mapped = np.lib.format.open_memmap(partial, "w+", DTYPES[dtype], tuple(shape))
    mapped[...] = np.nan
    _fill(torch.from_numpy(mapped), compute())
    mapped.flush()
    del mapped
    os.replace(partial, file)
    write_text(record, json.dumps({"key": key}) + "\n")
    return _open(file)


def picture_file_features(
    encoder: VisualEncoder,
    paths: Sequence[Path],
    device: torch.device | str,
    file: Path | None = None,
    *,
    stride: int | None = None,
    size: int | None = None,
    dtype: torch.dtype = torch.float16,
) -> Tensor:
    """A fixed encoder's features (P, width) of picture files, or its maps (P, C, h, w) of one stride.

    The largest centred square of each picture is read. Rows of files that can't be read are NaN; they are counted and
    named on stderr. A hash of the encoder's weights and of every file's name, size and time of change tells if a kept
    file is stale, see :func:`frozen_rows`.

    Args:
        stride: one of the encoder's; None: the pooled features.
        size: pixels of the square, a multiple of ``encoder.multiple``; default: the encoder's own.

    Raises:
        ValueError: the encoder has no such stride, or does not take that size.
    """
    if stride is not None and stride not in encoder.strides:
        raise ValueError(f"stride must be one of {encoder.name}'s, {encoder.strides}; got {stride}")
    size = size or encoder.size
    level = None if stride is None else encoder.strides.index(stride)
    if level is None:
        shape = [len(paths), encoder.width]
    else:
        side = size // encoder.strides[level]
        shape = [len(paths), encoder.channels[level], side, side]
    encoder.to(device).eval()

    @torch.no_grad()
    def compute() -> Iterator[tuple[Tensor, Tensor]]:
        broken = []
        for rows in track(
            torch.arange(len(paths)).split(BATCH), "features", disable=not sys.stderr.isatty(), transient=True
        ):
            pictures, readable = [], []
            for row in rows.tolist():
                try:
                    pictures.append(read_picture(paths[row], size, shorter=size))
                    readable.append(row)
                except BrokenFileError as error:
                    broken.append(error)
            if readable:
                batch = torch.stack(pictures).to(device).float() / 255
                yield (
                    torch.tensor(readable),
                    encoder(batch) if level is None else encoder.maps(batch)[level],
                )
        if broken:
            names = "; ".join(map(str, broken[:3])) + ("; ..." if len(broken) > 3 else "")
            print(f"{len(broken)} of {len(paths)} pictures have no features: {names}", file=sys.stderr)

    key = rows_key([encoder.fingerprint(), size, stride, str(dtype)], paths)
    return frozen_rows(file, key, shape, compute, dtype)


def rows_key(settings: object, paths: Iterable[Path]) -> str:
    """A hash of the settings and of the files' names, sizes and times of change."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for path in paths:
        status = path.stat() if path.exists() else None
        state = (status.st_size, status.st_mtime_ns) if status else None
        digest.update(json.dumps([str(path), state]).encode())
    return digest.hexdigest()


def _stored(file: Path, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """The file's rows; None, with a message, if they belong to others or can't be read."""
    try:
        rows = _open(file)
        stored_key = json.loads(_record(file).read_text()).get("key")
    except (OSError, ValueError, AttributeError) as error:
        print(f"{file} is not a readable file of features ({error}); computing them anew", file=sys.stderr)
        return None
    if stored_key == key and rows.shape == shape and rows.dtype == dtype:
        return rows
    print(
        f"{file} holds features of other pictures or of another encoder; computing them anew", file=sys.stderr
    )
    return None


def _open(file: Path) -> Tensor:
    """The rows as they lie on the disk; writing into them changes memory alone."""
    return torch.from_numpy(np.load(file, mmap_mode="c"))


def _record(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _fill(rows: Tensor, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    for index, values in batches:
        rows[index] = values.detach().to("cpu", rows.dtype)
