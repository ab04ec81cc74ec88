from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="needs the media extra")

from video_files import numbers, tone, write_broken, write_video

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.data.sets.recordings import Recording, Recordings

OPTIONS = {"frames": 4, "fps": 10, "seconds": 0.5, "sample_rate": 8000, "short_side": 48, "workers": 0}
BATCHES = [torch.tensor([0, 2]), torch.tensor([1])]


def listed(*paths: Path) -> Recordings:
    return Recordings([Recording(path, 10 + i, path.stem) for i, path in enumerate(paths)], [])


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Recordings:
    folder = tmp_path_factory.mktemp("clips")
    return listed(
        write_video(folder / "a.mp4", 60),
        write_video(folder / "b.mp4", 45, size=(48, 64)),
        write_video(folder / "c.mkv", 90),
    )


def drawn(clips: Clips, batches=BATCHES, seed=3, epoch=1) -> list[dict[str, torch.Tensor]]:
    return list(clips.load(batches, seed=seed, epoch=epoch))


def same(first, second, sound=0.0) -> bool:
    return all(
        torch.allclose(a[name].double(), b[name].double(), rtol=0, atol=sound if name == "wave" else 0)
        for a, b in zip(first, second, strict=True)
        for name in a
    )


def test_picture_and_sound_from_one_moment(three):
    clips = Clips(three, **OPTIONS)
    assert len(clips) == 3 and clips.labels.tolist() == [10, 11, 12] and clips.skipped == []
    for epoch in range(3):
        for batch, indices in zip(drawn(clips, epoch=epoch), BATCHES):
            assert batch["index"].tolist() == indices.tolist()
            assert batch["frames"].shape == (len(indices), 4, 3, *batch["size"].amax(0))
            assert batch["wave"].shape == (len(indices), 4000)
            for row, start in enumerate(batch["start"].tolist()):
                height, width = batch["size"][row].tolist()
                shown = numbers(batch["frames"][row, :, :, :height, :width])
                assert shown == [int((start + k / 10) * 30 + 0.1) for k in range(4)]
                expected = tone(3, 8000)[round(start * 8000) :][:4000]
                if batch["index"][row] != 2:  # Matroska's clock is too coarse for this
                    assert np.abs(batch["wave"][row].numpy() - expected).mean() < 0.02


def test_smaller_frames_fill_the_corner(three):
    (batch,) = drawn(Clips(three, **OPTIONS), [torch.tensor([0, 1])])
    assert batch["size"].tolist() == [[48, 64], [64, 48]]
    assert batch["frames"].shape[-2:] == (64, 64)
    assert not batch["frames"][0, :, :, 48:].any() and not batch["frames"][1, :, :, :, 48:].any()


def test_clips_are_the_same_whatever_workers_and_cache(three):
    first = drawn(Clips(three, **OPTIONS))
    assert same(first, drawn(Clips(three, **OPTIONS | {"workers": 2})))
    assert same(first, drawn(Clips(three, cache=True, **OPTIONS)), sound=1.01 / 32768)
    assert same(first, drawn(Clips(three, cache=True, **OPTIONS | {"workers": 1})), sound=1.01 / 32768)


@pytest.mark.parametrize("other", [{"seed": 4}, {"epoch": 2}])
def test_seed_epoch_and_recording_decide(three, other):
    clips = Clips(three, **OPTIONS)
    every = [torch.arange(3)]
    (first,), (second,) = drawn(clips, every), drawn(clips, every, **other)
    assert (first["start"] != second["start"]).any()
    (alone,) = drawn(clips, [torch.tensor([2])])
    assert alone["start"] == first["start"][2]


def test_starts_cover_the_recording(three):
    clips = Clips(three, cache=True, **OPTIONS)
    starts = torch.cat([drawn(clips, [torch.tensor([0])], epoch=epoch)[0]["start"] for epoch in range(200)])
    places = {round(start, 3) for start in starts.tolist()}
    assert places == {round(place / 10, 3) for place in range(16)}  # clips of 0.5 s in 2 s


@pytest.mark.parametrize("cache", [False, True])
def test_uniform_clips_run_from_end_to_end(three, cache):
    clips = Clips(three, cache=cache, **OPTIONS)
    first, second = clips.uniform(BATCHES, clips=3)
    assert first["frames"].shape == (2, 3, 4, 3, 48, 64)
    assert first["wave"].shape == (2, 3, 4000)
    torch.testing.assert_close(first["start"][0], torch.tensor([0.0, 0.8, 1.5]).double())
    assert second["start"][0, 0] == 0 and second["start"][0, 2] == pytest.approx(1.0)
    assert numbers(first["frames"][0, 1]) == [24, 27, 30, 33]


def test_without_sound(three, tmp_path):
    silent = write_video(tmp_path / "silent.mp4", audio=None)
    clips = Clips(listed(silent), audio=False, **OPTIONS)
    (batch,) = drawn(clips, [torch.tensor([0])])
    assert set(batch) == {"frames", "index", "start", "size"}


def test_what_can_not_be_used_is_left_out_and_named(three, tmp_path):
    broken = write_broken(tmp_path)
    paths = [entry.path for entry in three.entries]
    del broken["damaged"]
    recordings = listed(paths[0], *broken.values(), paths[1])
    recordings.skipped.append((Path("listed.mp4"), "missing"))
    clips = Clips(recordings, **OPTIONS)
    assert [entry.path for entry in clips.entries] == paths[:2]
    assert clips.labels.tolist() == [10, 10 + len(broken) + 1]
    reasons = {path.stem: reason for path, reason in clips.skipped}
    assert reasons.keys() == {"listed", *broken}
    for kind, reason in {
        "truncated": "truncated: ",
        "headless": "not a video",
        "empty": "is empty",
        "text": "not a video",
        "silent": "has no audio",
        "short": "too short: plays 0.50 s, clips need 0.53 s",
        "missing": "missing",
    }.items():
        assert reasons[kind].startswith(reason)


def test_short_recordings_begin_again_where_only_pictures_are_wanted(three, tmp_path):
    short = write_video(tmp_path / "short.mp4", 6)  # 0.2 s; clips take 0.4 s
    recordings = listed(short, three.entries[0].path)
    recordings.skipped.append((Path("listed.mp4"), "missing"))
    clips = Clips(recordings, **OPTIONS | {"audio": False, "loop": True})
    assert clips.counts == {"listed": 3, "used": 2, "looped": 1}
    (batch,) = clips.load([torch.tensor([0, 1])], seed=0, epoch=0)
    assert numbers(batch["frames"][0]) == [0, 3, 0, 3]
    (spaced,) = clips.uniform([torch.tensor([0])], clips=2)
    assert [numbers(clip) for clip in spaced["frames"][0]] == [[0, 3, 0, 3]] * 2
    whole = {index: numbers(frames) for index, frames, _ in clips.whole()}
    assert whole[0] == [0, 3, 0, 3] and clips.frame_counts()[0] == 4
    with pytest.raises(ValueError, match="none of 1 recordings can be used: short.mp4: too short"):
        Clips(listed(short), **OPTIONS | {"audio": False})
    with pytest.raises(ValueError, match="loop is for pictures alone"):
        Clips(recordings, **OPTIONS | {"loop": True})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_while_decoding_is_replaced(three, tmp_path, workers):
    damaged = write_broken(tmp_path)["damaged"]
    recordings = listed(damaged, *(entry.path for entry in three.entries))
    clips = Clips(recordings, **OPTIONS | {"workers": workers})
    assert len(clips) == 4 and clips.skipped == []
    batches = [torch.tensor([1, 0]), torch.tensor([0, 3])]
    first, second = drawn(clips, batches)
    assert first["index"][0] == 1 and first["index"][1] in (2, 3)
    assert second["index"][1] == 3 and second["index"][0] in (1, 2)
    assert [path for path, _ in clips.skipped] == [damaged] and "decoded" in clips.skipped[0][1]
    assert same([first, second], drawn(clips, batches))  # now that it is known
    (evaluated,) = clips.uniform([torch.tensor([0, 1])], clips=2)
    assert evaluated["index"].tolist() == [1]
    assert len(clips.skipped) == 1


def test_a_file_that_breaks_while_caching_is_replaced(three, tmp_path):
    recordings = listed(write_broken(tmp_path)["damaged"], three.entries[0].path)
    clips = Clips(recordings, cache=True, **OPTIONS)
    assert len(clips.skipped) == 1
    (batch,) = drawn(clips, [torch.tensor([0])])
    assert batch["index"].tolist() == [1]
    with pytest.raises(ValueError, match=r"no recording can take the place of .*damaged\.mp4"):
        drawn(clips, [torch.tensor([0, 1])])


def test_clips_of_maps_are_cut_as_clips_of_frames_are(three, tmp_path):
    damaged = write_broken(tmp_path)["damaged"]
    clips = Clips(listed(damaged, *(entry.path for entry in three.entries)), **OPTIONS)
    frames = {index: value for index, value, _ in clips.whole()}
    assert sorted(frames) == [1, 2, 3] and [path for path, _ in clips.skipped] == [damaged]
    assert [len(frames[i]) for i in (1, 2, 3)] == clips.frame_counts()[1:]
    sizes = [tuple(frames[i].shape[2:]) for i in (1, 2, 3)]
    assert [tuple(size) for size in clips.frame_sizes(torch.tensor([1, 2, 3])).tolist()] == sizes
    rows = [torch.tensor([1, 3]), torch.tensor([2])]
    before = drawn(clips, rows)
    clips.keep_maps({index: value.half().mean((2, 3), keepdim=True) for index, value in frames.items()})
    assert clips.keeps_maps and len(clips.skipped) == 1
    for batch, whole in zip(drawn(clips, rows), before, strict=True):
        assert batch["start"].equal(whole["start"])
        assert (batch["wave"] - whole["wave"]).abs().max() < 1.01 / 32768
        height, width = whole["size"][0].tolist()
        means = whole["frames"][0, ..., :height, :width].half().mean((2, 3))
        assert batch["frames"][0, ..., 0, 0].equal(means)
    assert same(drawn(clips.from_files(), rows), before)
    again = Clips(listed(damaged, *(entry.path for entry in three.entries)), **OPTIONS)
    again.keep_maps({index: value.half() for index, value in frames.items()})
    assert again.skipped == [(damaged, "could not be decoded when its maps were made")]


def test_refuses(three, tmp_path):
    with pytest.raises(ValueError, match="fps must be positive, got 0"):
        Clips(three, **OPTIONS | {"fps": 0})
    with pytest.raises(ValueError, match="backend='x'"):
        Clips(three, backend="x", **OPTIONS)
    with pytest.raises(ValueError, match=r"none of 1 recordings can be used: gone\.mp4: missing"):
        Clips(listed(tmp_path / "gone.mp4"), **OPTIONS)
    with pytest.raises(ValueError, match="clips must be at least 1"):
        list(Clips(three, **OPTIONS).uniform(BATCHES, clips=0))


def test_dali_decodes_batches(three):
    pytest.importorskip("nvidia.dali", reason="needs the dali extra")
    recordings = listed(*(entry.path for entry in three.entries[:2]))
    batches = [torch.tensor([0, 1]), torch.tensor([1])]
    expected = drawn(Clips(recordings, **OPTIONS), batches)
    for ours, theirs in zip(drawn(Clips(recordings, backend="dali", **OPTIONS), batches), expected):
        assert (ours["frames"].float() - theirs["frames"].float()).abs().mean() < 3
        assert torch.equal(ours["wave"], theirs["wave"])


def test_dali_names_the_file_that_breaks(three, tmp_path):
    pytest.importorskip("nvidia.dali", reason="needs the dali extra")
    damaged = write_broken(tmp_path)["damaged"]
    clips = Clips(listed(damaged, *(e.path for e in three.entries[:2])), backend="dali", **OPTIONS)
    (batch,) = drawn(clips, [torch.tensor([0, 1])])
    assert batch["index"].tolist() == [2, 1]
    assert [path for path, _ in clips.skipped] == [damaged]
