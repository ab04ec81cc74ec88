"""Pictures with sound in which people have boxed what sounds: VGG-SS and Flickr-SoundNet, to judge localisers by."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cmx_fast.data.media.decode import BrokenVideoError, probe
from cmx_fast.data.media.suffixes import VIDEOS
from cmx_fast.data.sets.lists import printable, read_table, read_text
from cmx_fast.data.sets.scenes import Scene, Scenes, whole_scenes

#: Pixels along an edge of the pictures that Flickr-SoundNet's annotations count in.
FLICKR_SIDE = 256
#: People that have to mark a pixel of Flickr-SoundNet for it to count whole.
FLICKR_AGREEING = 2


@dataclass
class SoundingObjects:
    """Scenes and the boxes of what sounds in them.

    Attributes:
        scenes: pictures with their sounds; ``skipped`` names those whose files can't be used.
        boxes: (n, 4) of each scene, left, top, right and bottom as shares of the picture's sides.
        agreeing: the number of people whose boxes have to cover a pixel for it to count whole.
    """

    scenes: Scenes
    boxes: list[Tensor]
    agreeing: int


def vggss(root: Path | str) -> SoundingObjects:
    """VGG-SS: ``<root>/vggss.json`` beside VGGSound's pictures and sounds, or its videos.

    The list has an object per recording: "file", ``<youtube id>_<start>``; "class"; "bbox", boxes as shares of the
    picture's sides. Pictures and sounds are ``<root>/frames/<file>.jpg`` and ``<root>/audio/<file>.wav``; where there
    is no such folder, the middle frame and the sound of ``<root>/video/<file>.mp4``. Starts may be padded to six
    digits.

    Raises:
        ValueError: no such list, an entry that can't be read, or no recording whose files can be used.
    """
    root = Path(root)
    table = root / "vggss.json"
    entries = _read_entries(table)
    classes = sorted({label for _, label, _ in entries})
    numbers = {label: number for number, label in enumerate(classes)}
    boxes = {name: marked for name, _, marked in entries}
    labels = {name: numbers[label] for name, label, _ in entries}
    if (root / "frames").is_dir():
        scenes = whole_scenes(
            [
                _pair(name, label, root / "frames", root / "audio", padded=True)
                for name, label in labels.items()
            ],
            classes,
            f"{table} lists no recording that can be used",
        )
    else:
        scenes = _of_videos(root, labels, classes, table)
    scenes.class_names = [printable(name) for name in classes]
    return SoundingObjects(scenes, [boxes[scene.name] for scene in scenes.entries], 1)


def flickr_soundnet(root: Path | str) -> SoundingObjects:
    """Flickr-SoundNet's annotated part: ``<root>/Annotations/<id>.xml``, boxes of several people for each picture.

    Pictures and sounds are ``<root>/Data/<id>.jpg`` and ``.wav``, or in ``<root>/frames`` and ``<root>/audio``. With
    ``<root>/flickr_test.csv`` (an id per line) only those are taken. Boxes are in pixels of 256 x 256; a pixel counts
    whole where two people marked it.

    Raises:
        ValueError: no such folder, an annotation that can't be read or has no box, or no picture that can be used.
    """
    root = Path(root)
    folder = root / "Annotations"
    if not folder.is_dir():
        raise ValueError(f"{root} has no folder Annotations; it should hold <id>.xml of each picture")
    listed = root / "flickr_test.csv"
    if listed.is_file():
        ids = [Path(row["id"]).stem for row in read_table(listed, ("id",), header=False)]
    else:
        ids = sorted(file.stem for file in folder.glob("*.xml"))
    together = (root / "Data").is_dir()
    pictures, sounds = (root / ("Data" if together else name) for name in ("frames", "audio"))
    boxes = {name: _annotated(folder / f"{name}.xml") for name in ids}
    scenes = whole_scenes(
        [_pair(name, 0, pictures, sounds) for name in ids],
        ["sound"],
        f"{folder} has no picture that can be used",
    )
    return SoundingObjects(scenes, [boxes[scene.name] for scene in scenes.entries], FLICKR_AGREEING)


def _read_entries(table: Path) -> list[tuple[str, str, Tensor]]:
    """File, class and boxes of each recording in VGG-SS's list."""
    try:
        entries = json.loads(read_text(table))
    except json.JSONDecodeError as error:
        raise ValueError(f"{table} is no JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{table} must hold a list of recordings")
    by_name = {}
    for number, entry in enumerate(entries):
        try:
            name, label, boxes = entry["file"], entry["class"], entry["bbox"]
            if not isinstance(name, str) or not isinstance(label, str):
                raise ValueError("file and class must be text")
            by_name[name] = (label, _checked(boxes))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{table}, entry {number}: must have file, class and bbox, boxes as [left, top, right, bottom] in "
                f"shares of the picture's sides; {error!r}"
            ) from error
    return [(name, label, boxes) for name, (label, boxes) in by_name.items()]


def _checked(rows: list[list[float]]) -> Tensor:
    """Boxes (n, 4), at least one, within the picture as far as they reach beyond it."""
    boxes = torch.tensor(rows, dtype=torch.float32)
    if boxes.dim() != 2 or boxes.shape[1] != 4 or not boxes.isfinite().all():
        raise ValueError(f"got the boxes {rows}")
    boxes = boxes.clamp(0, 1)
    if not (boxes[:, :2] < boxes[:, 2:]).all():
        raise ValueError(f"a box of {rows} has no area")
    return boxes


def _annotated(file: Path) -> Tensor:
    """The boxes of an annotation of Flickr-SoundNet, of all people together."""
    try:
        tree = ElementTree.parse(file)
        rows = [[value / FLICKR_SIDE for value in _corners(box)] for box in tree.iter("bbox")]
        if not rows:
            raise ValueError("it has no bbox")
        return _checked(rows)
    except FileNotFoundError as error:
        raise ValueError(f"{file} is missing, though {file.stem} is in the list") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{file} can't be read as an annotation: {error}") from error


def _corners(box: ElementTree.Element) -> list[float]:
    """A box's left, top, right and bottom: by name, or the last four of its elements."""
    named = [box.findtext(name) for name in ("xmin", "ymin", "xmax", "ymax")]
    texts = named if all(text is not None for text in named) else [element.text for element in box][-4:]
    values = [float(text or "") for text in texts]
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise ValueError(f"a bbox has the numbers {texts}")
    return values


def _pair(name: str, label: int, pictures: Path, sounds: Path, *, padded: bool = False) -> Scene:
    """The scene of a picture file and a sound file of one name."""
    names = [name, _padded(name)] if padded else [name]
    picture, sound = (
        next((file for n in names if (file := folder / f"{n}{suffix}").is_file()), folder / f"{name}{suffix}")
        for folder, suffix in ((pictures, ".jpg"), (sounds, ".wav"))
    )
    return Scene(name, label, picture, sound)


def _padded(name: str) -> str:
    """``<youtube id>_<start>`` with the start padded to six digits."""
    identity, _, start = name.rpartition("_")
    return f"{identity}_{int(start):06d}" if start.isascii() and start.isdigit() else name


def _of_videos(root: Path, labels: dict[str, int], classes: list[str], table: Path) -> Scenes:
    """The recordings whose videos are there and can be opened."""
    scenes = Scenes([], classes)
    for name, label in labels.items():
        files = [root / "video" / f"{n}{suffix}" for n in (name, _padded(name)) for suffix in VIDEOS]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            scenes.skipped.append((files[0], f"listed in {table.name}, but not there"))
            continue
        try:
            scenes.entries.append(Scene(name, label, file, file, probe(file)))
        except BrokenVideoError as error:
            scenes.skipped.append((file, error.reason))
    if not scenes.entries:
        path, reason = scenes.skipped[0]
        raise ValueError(f"{table} lists no recording that can be used; {path}: {reason}")
    return scenes


#: By the name that the commands take.
OBJECT_SETS: dict[str, Callable[[Path | str], SoundingObjects]] = {
    "vggss": vggss,
    "flickr": flickr_soundnet,
}
