"""The result of a data set's adapter: files with labels, and the listed files that the disk lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cmx_fast.data.sets.lists import printable


@dataclass(frozen=True)
class Recording:
    """A file with the number of its class, and a name of its own in its set."""

    path: Path
    label: int
    name: str


@dataclass
class Recordings:
    """A split of a data set.

    Attributes:
        entries: the files that are there.
        class_names: by number.
        skipped: (file, reason) of listed files that the disk lacks; sets on YouTube always miss some.
    """

    entries: list[Recording]
    class_names: list[str]
    skipped: list[tuple[Path, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Recording:
        return self.entries[index]

    def __iter__(self) -> Iterator[Recording]:
        return iter(self.entries)


def collect(
    listed: Iterable[tuple[Path, str]], class_names: list[str], source: Path, split: str
) -> Recordings:
    """Recordings of the listed (file, class), in the list's order.

    Raises:
        ValueError: none of the files is there, or a class is not among the names.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    result = Recordings([], [printable(name) for name in class_names])
    for path, label in listed:
        if label not in numbers:
            raise ValueError(
                f"{source} names the class {label!r}, which is not among the {len(numbers)} classes"
            )
        if path.is_file():
            result.entries.append(Recording(path, numbers[label], printable(path.stem)))
        else:
            result.skipped.append((path, f"listed in {source.name}, but not there"))
    if not result.entries:
        example = f"; the first missing one is {result.skipped[0][0]}" if result.skipped else ""
        raise ValueError(f"{source} lists no file of the split {split!r} that is there{example}")
    return result


def of_kind(
    folder: Path, suffixes: tuple[str, ...], *, nested: bool = False
) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The files of a folder that end in one of ``suffixes``, sorted, and the others with the reason.

    Folders and what is hidden are neither. ``nested``: the files of its folders count, too.
    """
    entries = sorted(folder.rglob("*") if nested else folder.iterdir())
    files = [
        path
        for path in entries
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    right = [path for path in files if path.suffix.lower() in suffixes]
    reason = f"does not end in {', '.join(suffixes)}"
    return right, [(path, reason) for path in files if path.suffix.lower() not in suffixes]


def check_split(split: str, splits: tuple[str, ...]) -> None:
    """Raise a ValueError for a split that a set does not have."""
    if split not in splits:
        raise ValueError(f"split must be one of {', '.join(map(repr, splits))}; got {split!r}")


def left_out(skipped: list[tuple[Path, str]], most: int = 5) -> str:
    """The number of files that can't be used, and the first few by name and reason; empty where all can."""
    if not skipped:
        return ""
    named = "".join(f"\n  {printable(path.name)}: {reason}" for path, reason in skipped[:most])
    more = f"\n  and {len(skipped) - most} more" if len(skipped) > most else ""
    return f"; {len(skipped)} left out:{named}{more}"
