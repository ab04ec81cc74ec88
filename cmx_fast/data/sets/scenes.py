"""Scenes: a picture and the sound at its moment, in the layouts that Sound2Scene trains on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cmx_fast.data.media.decode import BrokenVideoError, Media, probe
from cmx_fast.data.media.files import audio_problem, picture_problem
from cmx_fast.data.sets.lists import printable
from cmx_fast.data.sets.recordings import Recordings, check_split, of_kind
from cmx_fast.data.sets.video_sets import VIDEO_SETS, held_out, vggsound_list

#: Scenes per class of VEGAS to train on, and held out (the paper's numbers; its split is not published).
VEGAS_TRAIN, VEGAS_TEST = 800, 50
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
VEGAS_CLASSES = (
    "baby_cry", "chainsaw", "dog", "drum", "fireworks",
    "helicopter", "printer", "rail_transport", "snoring", "water_flowing",
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A picture and the sound at that moment.

    Attributes:
        name: its own in the set; for videos from YouTube ``<id>_<start>``.
        label: the number of its class.
        picture: a picture file, or a video.
        sound: an audio file, or the same video; None: a picture alone.
        media: the tracks of the video; None where both are files of their own.
    """

    name: str
    label: int
    picture: Path
    sound: Path | None
    media: Media | None = None


@dataclass
class Scenes:
    """A split of a set of scenes.

    Attributes:
        entries: the scenes that can be used.
        class_names: by number.
        skipped: (file, reason) of the others: missing, broken, without sound.
    """

    entries: list[Scene]
    class_names: list[str]
    skipped: list[tuple[Path, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.entries)


def of_videos(recordings: Recordings) -> Scenes:
    """Scenes of videos with sound: VGGSound's, Kinetics'."""
    scenes = Scenes([], recordings.class_names, list(recordings.skipped))
    for recording in recordings:
        try:
            media = probe(recording.path)
        except BrokenVideoError as error:
            scenes.skipped.append((recording.path, error.reason))
        else:
            scenes.entries.append(
                Scene(recording.name, recording.label, recording.path, recording.path, media)
            )
    return scenes


def pairs(root: Path | str, split: str) -> Scenes:
    """The layout of Sound2Scene's code: ``<root>/images/<id>_<start>.jpg``, ``<root>/audios/<id>_<start>.wav``.

    ``<root>/vggsound.csv`` (YouTube id,start,label,split; no header) says which class and split, "train" or "test".
    """
    check_split(split, ("train", "test"))
    root = Path(root)
    table = root / "vggsound.csv"
    listed, classes = vggsound_list(table, split)
    numbers = {name: number for number, name in enumerate(classes)}
    return _of_files(
        [
            Scene(
                printable(name),
                numbers[label],
                root / "images" / f"{name}.jpg",
                root / "audios" / f"{name}.wav",
            )
            for name, label in listed
        ],
        [printable(name) for name in classes],
        f"{table} lists no scene of the split {split!r} that can be used",
    )


def vegas(root: Path | str, split: str) -> Scenes:
    """VEGAS: ``<root>/<class>/img/<name>.jpg`` and ``<root>/<class>/audios/<name>.wav``, ten classes.

    There is no official split: of each class's names, sorted and shuffled by a fixed seed, 800 are to train on and the
    next 50 are held out, or in small copies 16 of 17.
    """
    check_split(split, ("train", "test"))
    root = Path(root)
    classes = [name for name in VEGAS_CLASSES if (root / name).is_dir()]
    if not classes:
        raise ValueError(f"{root} has no class folder of VEGAS ({', '.join(VEGAS_CLASSES)})")
    scenes = []
    for label, of_class in enumerate(classes):
        names = sorted(file.stem for file in (root / of_class / "audios").glob("*.wav"))
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
        train = min(VEGAS_TRAIN, len(names) * VEGAS_TRAIN // (VEGAS_TRAIN + VEGAS_TEST))
        chosen = order[:train] if split == "train" else order[train : train + VEGAS_TEST]
        for name in (names[i] for i in sorted(chosen)):
            folder = root / of_class
            scenes.append(
                Scene(
                    f"{of_class}/{name}",
                    label,
                    folder / "img" / f"{name}.jpg",
                    folder / "audios" / f"{name}.wav",
                )
            )
    return _of_files(scenes, classes, f"{root} has no scene of the split {split!r} that can be used")


def pictures(root: Path | str, split: str) -> Scenes:
    """Pictures without sound, to train a generator on: ``<root>/<split>/<class>/*``, ImageNet's layout.

    split "train" or "val". Classes are numbered over both.
    """
    splits = ("train", "val")
    check_split(split, splits)
    folder = Path(root) / split
    if not folder.is_dir():
        raise ValueError(f"{root} has no folder {split}; it should hold {split}/<class>/*.jpg")
    classes = sorted(
        {path.name for part in splits for path in (Path(root) / part).glob("*") if path.is_dir()}
    )
    kinds = {
        label: of_kind(folder / name, PICTURE_SUFFIXES)
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
    }
    listed = [
        Scene(printable(f"{classes[label]}/{file.name}"), label, file, None)
        for label, (files, _) in kinds.items()
        for file in files
    ]
    names = [printable(name) for name in classes]
    scenes = _of_files(listed, names, f"{folder} has no picture in a class folder that can be used")
    scenes.skipped += [other for _, others in kinds.values() for other in others]
    return scenes


def _of_files(listed: list[Scene], class_names: list[str], nothing: str) -> Scenes:
    """The scenes whose files are whole as far as headers and ends tell; decodes nothing."""
    scenes = Scenes([], class_names)
    for scene in listed:
        if problem := picture_problem(scene.picture):
            scenes.skipped.append((scene.picture, problem))
        elif scene.sound is not None and (problem := audio_problem(scene.sound)):
            scenes.skipped.append((scene.sound, problem))
        else:
            scenes.entries.append(scene)
    if not scenes.entries:
        reason = f"; {scenes.skipped[0][0]}: {scenes.skipped[0][1]}" if scenes.skipped else ""
        raise ValueError(nothing + reason)
    return scenes


#: By the name that the commands take.
SCENE_SETS: dict[str, Callable[[Path, str], Scenes]] = {
    "kinetics": lambda root, split: of_videos(VIDEO_SETS["kinetics"](root, split)),
    "vggsound": lambda root, split: of_videos(VIDEO_SETS["vggsound"](root, split)),
    "vegas": vegas,
    "pairs": pairs,
    "pictures": pictures,
}


def open_scenes(name: str, root: Path, split: str) -> Scenes:
    """The "train" or "test" split of a set; "test" is the held-out split, by whatever name the set has for it.

    Raises:
        ValueError: an unknown set, a root without its lists, or one without a usable scene.
    """
    if name not in SCENE_SETS:
        raise ValueError(f"dataset must be one of {', '.join(SCENE_SETS)}; got {name!r}")
    held = "val" if name == "pictures" else held_out(name)
    scenes = SCENE_SETS[name](root, held if split == "test" else split)
    if not scenes.entries:
        path, reason = scenes.skipped[0]
        raise ValueError(f"none of the {len(scenes.skipped)} videos in {root} can be used; {path}: {reason}")
    return scenes
