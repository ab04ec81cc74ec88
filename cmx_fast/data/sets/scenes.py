"""Scenes: a picture and the sound at its moment, in the layouts that Sound2Scene trains on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from cmx_fast.data.media.decode import BrokenVideoError, Media, probe
from cmx_fast.data.media.files import audio_problem, picture_problem
from cmx_fast.data.media.suffixes import PICTURES
from cmx_fast.data.sets.lists import printable, read_list
from cmx_fast.data.sets.names import VEGAS_CLASSES
from cmx_fast.data.sets.own_files import own_files, place_of
from cmx_fast.data.sets.recordings import Recording, Recordings, check_split, of_kind
from cmx_fast.data.sets.selection import key
from cmx_fast.data.sets.video_sets import VIDEO_SETS, held_out, vggsound_list

#: Scenes per class of VEGAS to train on, and held out (the paper's numbers; its split is not published).
VEGAS_TRAIN, VEGAS_TEST = 800, 50
#: Share of the pairs without a list that are held out.
HELD_OUT = 0.1


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


def read_classes(path: Path | str) -> list[str]:
    """The names of classes in a file, one a line, as ``--classes`` takes them.

    Raises:
        ValueError: there is no such file, or it names fewer than two classes, or one twice.
    """
    names = read_list(Path(path))
    twice = sorted({name for name in names if names.count(name) > 1})
    if len(names) < 2 or twice:
        raise ValueError(
            f"{path} must name two classes or more, one a line, each once; it names {len(names)}"
            + (f", {', '.join(twice)} twice" if twice else "")
        )
    return names


def _numbers(class_names: Sequence[str], wanted: Sequence[str]) -> dict[int, int]:
    """The new number of each class that is wanted, by its number in the set; underscores count as spaces.

    Raises:
        ValueError: the set has no such class.
    """
    known = {_spaced(name): number for number, name in enumerate(class_names)}
    unknown = [name for name in wanted if _spaced(name) not in known]
    if unknown:
        near = difflib.get_close_matches(_spaced(unknown[0]), known, 1)
        raise ValueError(
            f"classes: the data has no {', '.join(map(repr, unknown[:5]))}"
            + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
            + (f" (did you mean {near[0]!r}?)" if near else "")
        )
    return {known[_spaced(name)]: new for new, name in enumerate(wanted)}


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def of_videos(recordings: Recordings, classes: Sequence[str] | None = None) -> Scenes:
    """Scenes of videos with sound: VGGSound's, Kinetics'; ``classes`` are those to keep, in their order."""
    entries, class_names = recordings.entries, recordings.class_names
    if classes is not None:
        numbers = _numbers(class_names, classes)
        entries = [Recording(r.path, numbers[r.label], r.name) for r in entries if r.label in numbers]
        class_names = list(classes)
    scenes = Scenes([], class_names, list(recordings.skipped))
    for recording in entries:
        try:
            media = probe(recording.path)
        except BrokenVideoError as error:
            scenes.skipped.append((recording.path, error.reason))
        else:
            scenes.entries.append(
                Scene(recording.name, recording.label, recording.path, recording.path, media)
            )
    return scenes


def pairs(root: Path | str, split: str, classes: Sequence[str] | None = None) -> Scenes:
    """The layout of Sound2Scene's code: ``<root>/images/<name>.jpg`` and ``<root>/audios/<name>.wav``.

    A name is ``<id>_<start>``, in seconds with six digits, or ``<id>_<start>_<end>`` in milliseconds as the authors
    have it. ``<root>/vggsound.csv`` (YouTube id,start,label,split; no header) says which class and split. Without it
    the pairs have no classes; the folders are then ``<root>/train`` and ``<root>/test``, or a tenth of the videos,
    chosen by a hash of their ids, is held out.
    """
    check_split(split, ("train", "val", "test"))
    root = Path(root)
    table = root / "vggsound.csv"
    if not table.is_file():
        return _unlisted_pairs(root, split, classes)
    listed, names = vggsound_list(table, split)
    numbers = {name: number for number, name in enumerate(names)}
    return whole_scenes(
        [
            Scene(printable(name), numbers[label], picture, sound)
            for name, label in listed
            for picture, sound in [_pair(root, name)]
        ],
        [printable(name) for name in names],
        f"{table} lists no scene of the split {split!r} that can be used",
        classes,
    )


def _pair(root: Path, name: str) -> tuple[Path, Path]:
    """The files of a scene that a list names in seconds, by that name or in milliseconds."""
    for stem in (name, key(name)):
        picture, sound = root / "images" / f"{stem}.jpg", root / "audios" / f"{stem}.wav"
        if picture.is_file() or sound.is_file():
            return picture, sound
    return root / "images" / f"{name}.jpg", root / "audios" / f"{name}.wav"


def _unlisted_pairs(root: Path, split: str, classes: Sequence[str] | None) -> Scenes:
    if classes is not None:
        raise ValueError(f"classes: {root} has no vggsound.csv, which would say what is of which class")
    divided = (root / "train").is_dir()
    folder = root / split if divided else root
    for part in ("images", "audios"):
        if not (folder / part).is_dir():
            raise ValueError(
                f"there is no {root / 'vggsound.csv'}, and without it no {folder / part}; pairs are images/<name>.jpg "
                "and audios/<name>.wav"
            )
    if split == "val" and not divided:
        raise ValueError(f"{root} has no split 'val'")
    pictures = {file.stem: file for file in of_kind(folder / "images", PICTURES)[0]}
    sounds = {file.stem: file for file in of_kind(folder / "audios", (".wav",))[0]}
    scenes = [
        Scene(printable(name), 0, pictures[name], sounds[name])
        for name in sorted(pictures.keys() & sounds.keys())
        if divided or (share_of(name) < HELD_OUT) == (split == "test")
    ]
    result = whole_scenes(
        scenes, ["unlabelled"], f"{folder} has no pair of the split {split!r} that can be used"
    )
    alone = sorted(pictures.keys() ^ sounds.keys())
    result.skipped += [(pictures.get(name) or sounds[name], "has no file of the same name") for name in alone]
    return result


def share_of(name: str) -> float:
    """A number in [0, 1) that a scene's video has, always the same: videos below 0.1 are a tenth of all.

    ``name`` is the scene's; the YouTube id alone decides where it begins with one.
    """
    video = match[1] if (match := re.fullmatch(r"(.{11})_\d+(?:_\d+)?", name)) else name
    return place_of(video)


def validation_part(scenes: Scenes, share: float) -> tuple[Scenes, Scenes]:
    """Divide a split by :func:`share_of` the videos: the scenes that stay, and about a ``share`` to validate on.

    Raises:
        ValueError: either would be empty.
    """
    parts: tuple[list[Scene], list[Scene]] = [], []
    for entry in scenes.entries:
        # The numbers below HELD_OUT may be another split's already.
        parts[(share_of(entry.name) - HELD_OUT) % 1 < share].append(entry)
    if not all(parts):
        raise ValueError(
            f"validation = {share} of {len(scenes)} scenes leaves {len(parts[0])} to train on and {len(parts[1])} to "
            "validate on; --set validation=... up to 1, or 0 for none"
        )
    return tuple(Scenes(part, scenes.class_names, list(scenes.skipped)) for part in parts)  # type: ignore[return-value]


def vegas(root: Path | str, split: str, classes: Sequence[str] | None = None) -> Scenes:
    """VEGAS: ``<root>/<class>/img/<name>.jpg`` and ``<root>/<class>/audios/<name>.wav``, ten classes.

    There is no official split: of each class's names, sorted and shuffled by a fixed seed, 800 are to train on and the
    next 50 are held out, or in small copies 16 of 17.
    """
    check_split(split, ("train", "test"))
    root = Path(root)
    folders = [name for name in VEGAS_CLASSES if (root / name).is_dir()]
    if not folders:
        raise ValueError(f"{root} has no class folder of VEGAS ({', '.join(VEGAS_CLASSES)})")
    scenes = []
    for label, of_class in enumerate(folders):
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
    nothing = f"{root} has no scene of the split {split!r} that can be used"
    return whole_scenes(scenes, folders, nothing, classes)


#: The parts of one's own pictures: there is no "test", as nothing measures a generator by them.
UNDIVIDED = {"train": 0.9, "val": 0.1}


def pictures(root: Path | str, split: str, classes: Sequence[str] | None = None) -> Scenes:
    """Pictures without sound, to train a generator on: ``<root>/<split>/<class>/*``, ImageNet's layout.

    split "train" or "val". Classes are numbered over both. A ``root`` without these folders is one of one's own
    pictures, or a table of them (:func:`cmx_fast.data.sets.own_files.own_files`): nine tenths are "train", but for
    those that a table says to be of another part.
    """
    splits = ("train", "val")
    check_split(split, splits)
    folder = Path(root) / split
    if not any((Path(root) / part).is_dir() for part in splits):
        own = own_files(root, split, PICTURES, UNDIVIDED)
        listed = [Scene(picture.name, picture.label, picture.path, None) for picture in own]
        scenes = whole_scenes(listed, own.class_names, f"{root} has no picture that can be used", classes)
        scenes.skipped += own.skipped
        return scenes
    if not folder.is_dir():
        raise ValueError(f"{root} has no folder {split}; it should hold {split}/<class>/*.jpg")
    folders = sorted(
        {path.name for part in splits for path in (Path(root) / part).glob("*") if path.is_dir()}
    )
    kinds = {
        label: of_kind(folder / name, PICTURES)
        for label, name in enumerate(folders)
        if (folder / name).is_dir()
    }
    listed = [
        Scene(printable(f"{folders[label]}/{file.name}"), label, file, None)
        for label, (files, _) in kinds.items()
        for file in files
    ]
    names = [printable(name) for name in folders]
    nothing = f"{folder} has no picture in a class folder that can be used"
    scenes = whole_scenes(listed, names, nothing, classes)
    scenes.skipped += [other for _, others in kinds.values() for other in others]
    return scenes


def whole_scenes(
    listed: list[Scene], class_names: list[str], nothing: str, classes: Sequence[str] | None = None
) -> Scenes:
    """The scenes whose files are whole as far as headers and ends tell; decodes nothing.

    ``classes`` are those to keep, in their order; ``nothing`` is the error where no scene is left.
    """
    if classes is not None:
        numbers = _numbers(class_names, classes)
        listed = [replace(scene, label=numbers[scene.label]) for scene in listed if scene.label in numbers]
        class_names = list(classes)
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


def _videos(name: str) -> Callable[[Path, str, Sequence[str] | None], Scenes]:
    return lambda root, split, classes: of_videos(VIDEO_SETS[name](root, split), classes)


#: By the name that the commands take.
SCENE_SETS: dict[str, Callable[[Path, str, Sequence[str] | None], Scenes]] = {
    "kinetics": _videos("kinetics"),
    "vggsound": _videos("vggsound"),
    "folder": _videos("folder"),
    "vegas": vegas,
    "pairs": pairs,
    "pictures": pictures,
}


def open_scenes(name: str, root: Path, split: str, classes: Sequence[str] | None = None) -> Scenes:
    """The "train" or "test" split of a set; "test" is the held-out split, by whatever name the set has for it.

    Args:
        split: also "val", where a set's list has one (:func:`has_validation`).
        classes: the classes to keep, which are numbered in this order; None: all of the set.

    Raises:
        ValueError: an unknown set, a root without its lists, one without a usable scene, or without one of the classes.
    """
    if name not in SCENE_SETS:
        raise ValueError(f"dataset must be one of {', '.join(SCENE_SETS)}; got {name!r}")
    held = {"pictures": "val", "folder": "test"}.get(name) or held_out(name)
    scenes = SCENE_SETS[name](root, held if split == "test" else split, classes)
    if not scenes.entries:
        if not scenes.skipped:
            raise ValueError(f"{root} has no video of these classes in the split {split!r}")
        path, reason = scenes.skipped[0]
        raise ValueError(f"none of the {len(scenes.skipped)} videos in {root} can be used; {path}: {reason}")
    return scenes


def has_validation(name: str, root: Path) -> bool:
    """True if a set has a split "val" beside the one that is held out: in its list, as a folder, or by its names."""
    table = Path(root) / "vggsound.csv"
    if name in ("vggsound", "pairs") and table.is_file():
        return bool(vggsound_list(table, "val")[0])
    return name == "folder" or (
        name == "pairs" and (Path(root) / "train").is_dir() and (Path(root) / "val").is_dir()
    )
