"""Dry speech by speaker: who speaks in a file, and the part of a data set that this speaker belongs to."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from cmx_fast.data.media.files import audio_problem
from cmx_fast.data.sets.image2reverb import SPEECH, SPLITS
from cmx_fast.data.sets.recordings import of_kind
from cmx_fast.prepare.parts import divide, generator

#: Patterns of a file's path below its folder, whose group names the speaker.
SPEAKERS = {
    "folder": r"([^/]+)/[^/]+$",
    "wsj0": r"(?:^|/)(\w{3})\w{5}\.\w+$",
    "librispeech": r"(?:^|/)(\d+)-\d+-\d+\.\w+$",
}


def speech_rows(
    folder: Path, speaker: str, val_share: float, test_share: float, seed: int
) -> tuple[list[dict[str, str]], list[tuple[Path, str]]]:
    """A row of speech.csv for each usable file of a folder, and (file, reason) of the others.

    A folder with ``train`` and ``test`` inside keeps that division; else speakers are divided, so that nobody speaks in
    two parts.

    Raises:
        ValueError: no speech; a pattern that is not a regular expression with a group, or that fits no file; fewer
            speakers than parts.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"speech: no folder {folder}")
    pattern = _pattern(speaker)
    files, others = of_kind(folder, SPEECH, nested=True)
    skipped: list[tuple[Path, str]] = []
    by_speaker: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        name = file.relative_to(folder).as_posix()
        match = pattern.search(name)
        problem = audio_problem(file) if match else f"--speaker {speaker} finds nobody in its name"
        if problem:
            skipped.append((file, problem))
        else:
            assert match is not None
            by_speaker["-".join(group for group in match.groups() if group)].append(file)
    skipped += others
    if not by_speaker:
        reason = f"; the first of {len(skipped)} others, {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise ValueError(f"speech: {folder} has no usable WAV, FLAC, OGG or SPHERE files{reason}")
    if all((folder / part).is_dir() for part in ("train", "test")):
        rows = [
            (file, part, name)
            for name, spoken in by_speaker.items()
            for file in spoken
            if (part := file.relative_to(folder).parts[0]) in SPLITS
        ]
    else:
        parts = divide(sorted(by_speaker), val_share, test_share, generator(seed, "speakers"))
        if parts is None:
            raise ValueError(
                f"speech: {folder} has {len(by_speaker)} speakers ({', '.join(sorted(by_speaker))}), fewer than parts; "
                "add speakers, or say with --speaker how a file's name tells them"
            )
        rows = [(file, parts[name], name) for name, spoken in by_speaker.items() for file in spoken]
    return [
        {"file": str(file.resolve()), "split": part, "speaker": name} for file, part, name in sorted(rows)
    ], skipped


def _pattern(speaker: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(SPEAKERS.get(speaker, speaker))
    except re.error as error:
        raise ValueError(f"speaker: {speaker!r} is not a regular expression: {error}") from error
    if not pattern.groups:
        raise ValueError(
            f"speaker must be {', '.join(SPEAKERS)} or a regular expression with a group, as in '^(\\d\\d)'; got "
            f"{speaker!r}"
        )
    return pattern
