"""``cmx prepare rooms`` on a few files of each sort."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from cmx_fast.data.sets.image2reverb import Image2Reverb
from cmx_fast.data.sets.lists import read_table
from cmx_fast.prepare.commands import prepare_rooms
from cmx_fast.prepare.rooms import read_kinds
from cmx_fast.systems.csir.evaluation import open_split
from cmx_fast.systems.csir.recipe import CSIRRecipe

RATE = 8000
SPACES = {"nave": ("church", "a"), "crypt": ("church", "b"), "choir": ("church", "c"), "choir2": ("church", "c"),
          "galley": ("kitchen", "d"), "scullery": ("kitchen", "e"), "diner": ("kitchen", "f"),
          "tunnel": ("tunnel", "g"), "cave": ("cave", "h"), "kiln": ("kiln", "i")}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for kind in ("altar", "kitchen", "attic"):
        (root / "photographs" / kind).mkdir(parents=True)
        for number in range(8):
            picture = rng.integers(0, 255, (20, 30, 3)).astype(np.uint8)
            Image.fromarray(picture).save(root / "photographs" / kind / f"{number}.png")
    (root / "responses").mkdir()
    lines = ["name,space,place"]
    for number, (name, (space, place)) in enumerate(SPACES.items()):
        time = np.arange(RATE) / RATE
        decay = rng.standard_normal(RATE) * 10 ** (-3 * time / (0.2 + 0.05 * number))
        soundfile.write(root / "responses" / f"{name}.flac", 0.2 * decay, RATE)
        lines.append(f"{name},{space},{place}")
    (root / "responses.csv").write_text("\n".join(lines))
    for speaker in range(4):
        for sentence in range(2):
            file = root / "speech" / f"s{speaker}" / f"{sentence}.ogg"
            file.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(file, 0.1 * rng.standard_normal(RATE // 2), RATE)
    (root / "kinds.csv").write_text(
        "kind,photographs,responses\nchurch,altar,church\nkitchen,kitchen,kitchen\n"
    )
    return root


def prepare(files, out, **options):
    options = {"kinds": files / "kinds.csv", **options}
    prepare_rooms(
        files / "photographs", files / "responses", files / "responses.csv", files / "speech", out, **options
    )
    return read_table(out / "manifest.csv", ()), read_table(out / "speech.csv", ())


def parts_of(rows, name):
    parts = defaultdict(set)
    for row in rows:
        parts[name(row)].add(row["split"])
    return parts


def place(row):
    return SPACES[Path(row["air"]).stem][1]


def test_photographs_places_and_speakers_lie_in_one_part_each(files, tmp_path):
    rows, spoken = prepare(files, tmp_path)
    pairs = [row for row in rows if row["image"]]
    held_out = (pairs, lambda row: row["image"]), (rows, place), (spoken, lambda row: row["speaker"])
    for held in (parts_of(*each) for each in held_out):
        assert all(len(parts) == 1 for parts in held.values())
        assert set.union(*held.values()) == {"train", "val", "test"}
    assert {row["space"] for row in pairs} == {"church", "kitchen"}
    assert len(pairs) == 16
    for row in pairs:
        assert {"altar": "church", "kitchen": "kitchen"}[Path(row["image"]).parent.name] == row["space"]
        assert SPACES[Path(row["air"]).stem][0] == row["space"]


def test_a_seed_gives_its_division(files, tmp_path):
    first, again, other = (prepare(files, tmp_path / str(i), seed=i // 2)[0] for i in range(3))
    assert first == again
    assert first != other


def test_shared_responses_are_in_all_parts(files, tmp_path):
    rows, _ = prepare(files, tmp_path, share_responses=True)
    parts = parts_of([row for row in rows if row["image"] and row["space"] == "kitchen"], place)
    assert set.union(*parts.values()) == {"train", "val", "test"}
    assert len(parts["d"] | parts["e"] | parts["f"]) == 3 and max(map(len, parts.values())) > 1
    assert {row["split"] for row in rows if not row["image"]} == {"train"}


def test_folders_that_divide_photographs_keep_their_division(files, tmp_path):
    own = tmp_path / "photographs"
    for kind in ("altar", "kitchen"):
        for number, file in enumerate(sorted((files / "photographs" / kind).iterdir())):
            target = own / ("eval" if number < 3 else "train") / kind / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    prepare_rooms(
        own, files / "responses", files / "responses.csv", files / "speech", tmp_path / "set",
        kinds=files / "kinds.csv",
    )  # fmt: skip
    rows = read_table(tmp_path / "set" / "manifest.csv", ())
    for row in rows:
        if row["image"]:
            assert (Path(row["image"]).parents[1].name == "eval") == (row["split"] == "test")
    assert sum(row["split"] == "test" and row["image"] != "" for row in rows) == 6
    assert any(row["split"] == "val" for row in rows)


def test_responses_without_photographs_are_heard_alone(files, tmp_path, capsys):
    prepare(files, tmp_path)
    summary = json.loads((tmp_path / "prepared.json").read_text())
    assert summary["responses without photographs"] == {"train": 1, "val": 1, "test": 1}
    assert summary["not used"] == ["photographs attic"]
    assert "3 responses have no photographs" in capsys.readouterr().err
    options = {"seconds": 0.5, "sample_rate": RATE, "image_size": 16, "sentences_per_air": 1}
    train = Image2Reverb(tmp_path, "train", **options)
    assert train.spaces[:2] == ["church", "kitchen"] and len(train.spaces) == 3
    test = Image2Reverb(tmp_path, "test", spaces=train.spaces, **options)
    assert test.pictured < len(test.pairs)
    pictured = [pair.image is not None for pair in test.pairs]
    assert pictured == sorted(pictured, reverse=True)
    alone = test[len(test) - 1]
    assert "image" not in alone and alone["space"] == -1 and alone["rt60"] > 0
    waves = [train.load_wave(i) for i in range(train.pictured, train.pictured + 3)]
    assert any(not waves[0].equal(wave) for wave in waves[1:])  # each row draws its own sentences
    recipe = CSIRRecipe.preset("demo", seconds=0.5, crop_seconds=0.5, sample_rate=RATE, image_size=16, n_mels=32,
                           sentences_per_air=1)  # fmt: skip
    data = open_split(tmp_path, "test", recipe, "cpu", spaces=train.spaces)
    assert len(data.images) == data.pictured == data.paired < len(data)


def test_equal_names_are_kinds_without_a_table(files, tmp_path):
    with pytest.raises(ValueError, match=r"1 kinds have .*photographs altar.*--kinds.*--share-responses"):
        prepare(files, tmp_path, kinds=None)


def test_unusable_files_are_left_out_and_named(files, tmp_path, capsys):
    table = tmp_path / "responses.csv"
    table.write_text((files / "responses.csv").read_text() + "\nvestry,church,z\n")
    prepare_rooms(
        files / "photographs", files / "responses", table, files / "speech", tmp_path / "set",
        kinds=files / "kinds.csv",
    )  # fmt: skip
    assert "responses; 1 left out:\n  vestry: missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind,photographs\na,b", "lacks the columns responses"),
        (
            "kind,photographs,responses\na,x + y,z\nb,y,w",
            "line 3: photographs 'y' belong to kind 'a' already",
        ),
        ("kind,photographs,responses\na,,z", "line 2: kind 'a' has no photographs"),
    ],
)
def test_broken_tables_of_kinds(tmp_path, text, message):
    (tmp_path / "kinds.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_kinds(tmp_path / "kinds.csv")


def test_refuses(files, tmp_path):
    rest = files / "responses", files / "responses.csv", files / "speech", tmp_path / "set"
    with pytest.raises(ValueError, match="photographs: no folder"):
        prepare_rooms(tmp_path / "nowhere", *rest)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no folder with pictures .*make a folder for each kind"):
        prepare_rooms(tmp_path / "empty", *rest)
    with pytest.raises(ValueError, match="has 1 speakers"):
        prepare(files, tmp_path / "set", speaker="(s)")
    with pytest.raises(ValueError, match=r"val_share \(0.6\)"):
        prepare(files, tmp_path / "set", val_share=0.6, test_share=0.5)
