"""Files as they come: odd, damaged, and changed under the loader. A clip or a named error, and loading goes on."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="needs the media extra")

from PIL import Image
from video_files import RATE, numbers, tone, turned, with_cover, write_broken, write_video

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.data.media.decode import BrokenVideoError, probe, read_frames, read_wave, unavailable
from cmx_fast.data.sets.recordings import Recording, Recordings

OPTIONS = {"frames": 4, "fps": 10, "seconds": 0.5, "sample_rate": 8000, "short_side": 48}
BACKENDS = [name for name in ("pyav", "torchcodec", "dali") if unavailable(name) is None]
VARIABLE = np.cumsum([0.0] + [0.02, 0.05, 0.033, 0.1] * 15).tolist()

#: Files that play, and the numbers of the frames shown at 0.5 and 0.9 s.
ODD = {
    "tiny.mkv": ({"size": (1, 1), "codec": "ffv1", "pixels": "yuv444p"}, None),
    "odd_width.mkv": ({"size": (65, 47), "codec": "libx264", "pixels": "yuv444p"}, [15, 27]),
    "odd_width_420.mkv": ({"size": (67, 49), "codec": "mpeg4"}, [15, 27]),
    "wide.mp4": ({"size": (512, 32)}, [15, 27]),
    "variable.mp4": ({"times": VARIABLE, "frames": 60}, [10, 18]),
    "surround.mp4": ({"layout": "5.1", "rate": 48000}, [15, 27]),
    "high_rate.mp4": ({"rate": 96000}, [15, 27]),
    "short_sound.mp4": ({"audio_seconds": 1.6}, [15, 27]),
    "deep.mp4": ({"pixels": "yuv420p10le"}, [15, 27]),
}
#: What a backend can't read and says so: TorchCodec finds no beginning behind a cover; DALI on a CPU knows few codecs.
BEYOND = {
    ("torchcodec", "cover.mp4"),
    *(("dali", name) for name in ("tiny.mkv", "odd_width_420.mkv")),
}


def jpeg(side: int = 64) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), 90, np.uint8)).save(content, "jpeg")
    return content.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("odd")
    made = {
        name: write_video(folder / name, **{"frames": 60} | options) for name, (options, _) in ODD.items()
    }
    plain = write_video(folder / "plain.mp4", 60)
    made["plain.mp4"] = plain
    for name, content in (
        ("turned.mp4", turned(plain.read_bytes())),
        ("cover.mp4", with_cover(plain.read_bytes(), jpeg())),
    ):
        made[name] = folder / name
        made[name].write_bytes(content)
    return made


def unusable(folder: Path) -> dict[str, Path]:
    """Files that no clip can be cut from, by what is wrong; of each the reason that probing gives."""
    made = {path.stem: path for path in write_broken(folder).values()}
    made["folder"] = folder / "folder.mp4"
    made["folder"].mkdir()
    made["picture"] = folder / "picture.mp4"
    made["picture"].write_bytes(jpeg())
    made["strip"] = write_video(folder / "strip.mp4", size=(4096, 16))
    made["column"] = write_video(folder / "column.mp4", size=(16, 4096), audio=None)
    made["dangling"] = folder / "dangling.mp4"
    made["dangling"].symlink_to(folder / "nowhere.mp4")
    return made


def listed(*paths: Path) -> Recordings:
    return Recordings([Recording(path, 0, path.stem) for path in paths], ["any"])


@pytest.mark.parametrize("name", [*ODD, "turned.mp4", "cover.mp4"])
def test_all_backends_give_the_same_clip_or_a_named_error(files, name):
    path, shown = files[name], ODD.get(name, (None, [15, 27]))[1]
    media = probe(path)
    assert media.seconds > 1.5
    pictures, waves = {}, {}
    for backend in BACKENDS:
        if (backend, name) in BEYOND:
            with pytest.raises(BrokenVideoError, match="can't (be decoded|decode it)"):
                read_frames(path, [0.5, 0.9], short_side=48, backend=backend)
        else:
            pictures[backend] = read_frames(path, [0.5, 0.9], short_side=48, backend=backend)
        if backend != "dali":
            waves[backend] = read_wave(path, 0.4, 1.0, RATE, backend=backend)
    for backend, picture in pictures.items():
        assert pictures[backend].shape == pictures["pyav"].shape
        if name == "turned.mp4":
            assert picture.shape[2:] == (64, 48)
            picture = torch.rot90(picture, 1, (2, 3))
        if shown is not None:
            assert numbers(picture) == shown, backend
        if backend != "dali":
            assert (pictures[backend].float() - pictures["pyav"].float()).abs().mean() < 3
    expected = tone(2.0)[round(0.4 * RATE) :][:RATE]
    for wave in waves.values():  # of 5.1 channels one holds low frequencies alone
        assert np.abs(wave.numpy() - expected).mean() < (0.06 if name == "surround.mp4" else 0.02)
        torch.testing.assert_close(wave, waves["pyav"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_turned_video_comes_upright_by_every_backend(tmp_path, backend, quarters):
    plain = write_video(tmp_path / "plain.mp4", 30)
    path = tmp_path / "turned.mp4"
    path.write_bytes(turned(plain.read_bytes(), quarters))
    stored, upright = (read_frames(p, [0.5, 0.9], short_side=48, backend=backend) for p in (plain, path))
    assert numbers(torch.rot90(upright, quarters, (2, 3))) == [15, 27]  # the file asks for clockwise quarters
    assert torch.equal(torch.rot90(upright, quarters, (2, 3)), stored)
    other = read_frames(path, [0.5, 0.9], short_side=48)
    assert upright.shape == other.shape and (upright.float() - other.float()).abs().mean() < 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_that_are_not_square_come_as_stored_by_every_backend(tmp_path, backend):
    wide = write_video(tmp_path / "wide.mkv", 30, aspect=(3, 2))
    plain = write_video(tmp_path / "plain.mkv", 30)
    frames = [read_frames(path, [0.5], short_side=48, backend=backend) for path in (wide, plain)]
    assert torch.equal(*frames)


@pytest.mark.parametrize(
    "name", ["a:b.mp4", "http:x.mp4", "file:x.mp4", "caf\udce9.mp4", "p%03d.mp4", " #?.mp4"]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_names_that_look_like_something_else_are_names(tmp_path, monkeypatch, backend, name):
    if backend == "torchcodec" and "\udce9" in name:
        pytest.skip("TorchCodec takes names in UTF-8 alone, and says so")
    plain = write_video(tmp_path / "plain.mp4", 30)
    monkeypatch.chdir(tmp_path)
    shutil.copy(plain, name)
    assert probe(name).seconds > 0.9
    assert numbers(read_frames(name, [0.5], short_side=48, backend=backend)) == [15]
    if backend != "dali":
        assert read_wave(name, 0.1, 0.5, RATE, backend=backend).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_can_not_be_used_is_named_by_every_backend(tmp_path, backend):
    for path in unusable(tmp_path).values():
        if path.stem in ("silent", "short", "truncated"):  # these have frames
            continue
        with pytest.raises(BrokenVideoError) as caught:
            read_frames(path, [0.5, 0.9], short_side=48, backend=backend)
        assert caught.value.path == path and caught.value.reason


def test_probe_says_what_is_odd(tmp_path):
    files = unusable(tmp_path)
    for kind, reason in {
        "folder": "is not a file",
        "strip": "has frames of 4096x16 pixels",
        "picture": "has no audio",
        "dangling": "missing",
        "empty": "is empty",
    }.items():
        with pytest.raises(BrokenVideoError, match=reason):
            probe(files[kind])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "dali"])
def test_loading_goes_on_with_what_is_left(files, tmp_path, backend, workers):
    bad = unusable(tmp_path)
    clips = Clips(listed(*files.values(), *bad.values()), backend=backend, workers=workers, **OPTIONS)
    assert len(clips) == len(files) + 1  # "damaged" shows only on decoding
    for epoch in range(2):
        batches = list(clips.load(torch.randperm(len(clips)).split(3), seed=0, epoch=epoch))
        assert sum(len(batch["index"]) for batch in batches) == len(clips)
    reasons = {path.stem: reason for path, reason in clips.skipped}
    beyond = {Path(name).stem for by, name in BEYOND if by == backend}
    assert reasons.keys() == bad.keys() | beyond and all(reasons.values())
    assert len(clips.skipped) == len(reasons)


CHANGES = {
    "vanishes": lambda path: path.unlink(),
    "becomes a folder": lambda path: (path.unlink(), path.mkdir()),
    "is cut": lambda path: os.truncate(path, path.stat().st_size // 3),
    "is emptied": lambda path: os.truncate(path, 0),
    "becomes a picture": lambda path: path.write_bytes(jpeg()),
    "gets shorter": lambda path: write_video(path, 20),
    "loses its sound": lambda path: write_video(path, 60, audio=None),
    "becomes a strip": lambda path: write_video(path, 60, size=(2048, 16)),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "dali"])
def test_files_that_change_after_opening_are_replaced_and_named(tmp_path, backend, workers):
    paths = [write_video(tmp_path / f"{kind}.mp4", 60) for kind in CHANGES]
    kept = [
        Path(shutil.copy(paths[0], tmp_path / f"kept {i}.mp4")) for i in range(len(paths) + 1)
    ]  # most are good
    clips = Clips(listed(*paths, *kept), backend=backend, workers=workers, **OPTIONS)
    before = list(clips.load([torch.arange(len(paths), len(clips))], seed=0, epoch=0))
    for path, change in zip(paths, CHANGES.values()):
        change(path)
    (batch,) = clips.load([torch.arange(len(paths))], seed=0, epoch=0)
    named = {path for path, _ in clips.skipped}
    # A shorter file may still have the clip that was drawn.
    assert {path for path in paths if path.stem != "gets shorter"} <= named <= set(paths)
    assert all(i >= len(paths) or clips.entries[i].path not in named for i in batch["index"].tolist())
    (again,) = clips.load([torch.arange(len(paths), len(clips))], seed=0, epoch=0)
    assert torch.equal(before[0]["frames"], again["frames"])
    assert torch.equal(before[0]["wave"], again["wave"])


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "dali"])
@pytest.mark.parametrize("other", [{"fps": 10, "frames": 20}, {"size": (96, 32)}])
def test_a_file_replaced_by_another_rate_or_size_is_read_as_it_is_now(tmp_path, backend, other):
    path = write_video(tmp_path / "a.mp4", 60)
    clips = Clips(listed(path), backend=backend, workers=0, **OPTIONS)
    write_video(path, **{"frames": 60} | other)
    (batch,) = clips.load([torch.tensor([0])], seed=0, epoch=0)
    start, (height, width) = float(batch["start"]), batch["size"][0].tolist()
    fps = other.get("fps", 30)
    assert numbers(batch["frames"][0]) == [int((start + k / 10) * fps + 0.01) for k in range(4)]
    assert (height, width) == ((48, 144) if "size" in other else (48, 64))


def test_a_data_set_that_falls_apart_stops_with_the_reasons(tmp_path):
    paths = [write_video(tmp_path / f"{i}.mp4", 30) for i in range(4)]
    clips = Clips(listed(*paths), workers=0, **OPTIONS)
    for path in paths[:3]:
        path.unlink()
    with pytest.raises(ValueError, match=r"3 of 4 recordings can't be used.*missing"):
        list(clips.load([torch.arange(3)], seed=0, epoch=0))
