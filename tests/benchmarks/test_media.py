from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("av", reason="needs the media extra")
pytest.importorskip("soundfile", reason="needs the media extra")

import soundfile
from typer.testing import CliRunner
from video_files import tone, write_broken, write_video

from cmx_fast import cli
from cmx_fast.benchmarks.media import loading, loops
from cmx_fast.data.media.decode import unavailable


def run(*arguments):
    return CliRunner().invoke(cli.app, ["bench", "data", *map(str, arguments)], prog_name="cmx")


def test_every_contender_has_a_line_within_the_width(tmp_path):
    write_video(tmp_path / "a.mp4", 60)
    write_video(tmp_path / "b.mp4", 60, size=(48, 64))
    write_broken(tmp_path)["damaged"].unlink()
    soundfile.write(tmp_path / "a.wav", tone(1.0), 16000)
    (tmp_path / "not.wav").write_text("no sound")
    Image.fromarray(np.arange(300 * 280 * 3, dtype=np.uint8).reshape(300, 280, 3)).save(tmp_path / "a.jpg")
    result = run(tmp_path, "--clips", 12, "--workers", 1)
    assert result.exit_code == 0, result.output
    for name, title in loading.BACKENDS.items():
        assert (f"ours, {title}" in result.output) == (unavailable(name) is None)
        if name != "dali":
            assert (f"{title} loop" in result.output) == (unavailable(name) is None)
    assert "waiting" in result.output and "soundfile loop" in result.output
    # torchaudio reads files with TorchCodec: without it the loop is left out, and that is said.
    assert ("torchaudio loop left out: torchcodec" in result.output) == (
        unavailable("torchcodec") is not None
    )
    assert "torchaudio loop" in result.output
    assert "Pillow, torchvision loop" in result.output and "1 sounds left out" in result.output
    assert "truncated.mp4 left out: truncated" in result.output
    assert max(len(line) for line in result.output.splitlines()) <= loading.WIDTH


@pytest.mark.parametrize("backend", ["pyav", "torchcodec"])
def test_the_loops_give_what_our_loader_gives(tmp_path, backend):
    if reason := unavailable(backend):
        pytest.skip(reason)
    paths = [
        write_video(tmp_path / "a.mp4", 75, size=(256, 192)),
        write_video(tmp_path / "b.mp4", 75, size=(192, 256)),
    ]
    videos = loading.Videos(paths, 4, seed=1, workers=0)
    clips = videos.loaders[backend]
    ((batch, _),) = videos._batches(clips)
    views = videos._views(batch)(batch["frames"])
    for row, window in enumerate(videos.windows):
        picture, wave = getattr(loops, f"by_{backend}")(window)
        assert picture.shape == views[row].shape and wave.shape == batch["wave"][row].shape
        assert (picture - views[row]).abs().mean() < 0.1
        assert (wave - batch["wave"][row]).abs().mean() < 0.01


@pytest.mark.parametrize("read", [loops.by_soundfile, loops.by_torchaudio])
def test_loops_of_sounds_give_what_ours_give(tmp_path, read):
    if read is loops.by_torchaudio and (reason := unavailable("torchcodec")):
        pytest.skip(f"torchaudio reads with TorchCodec: {reason}")
    soundfile.write(tmp_path / "a.wav", tone(2.0), 16000)
    ours, theirs = loops.our_sound(tmp_path / "a.wav"), read(tmp_path / "a.wav")
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_the_loop_of_pictures_gives_what_ours_gives(tmp_path):
    gradient = np.linspace(0, 255, 400 * 360 * 3).reshape(400, 360, 3).astype(np.uint8)
    Image.fromarray(gradient).save(tmp_path / "a.jpg", quality=95)
    ours, theirs = (read(tmp_path / "a.jpg") for read in (loops.our_pictures, loops.by_torchvision))
    assert ours.shape == theirs.shape and (ours - theirs).abs().mean() < 0.1


def test_a_folder_without_media_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    result = run(tmp_path)
    assert result.exit_code == 1 and "holds no files that end in" in str(result.exception)


@pytest.mark.parametrize("arguments", [[], ["kmeans", "--quick"], ["--quick"]])
def test_operators_is_what_bench_means_by_itself(arguments, monkeypatch):
    called = []

    def imported(name):
        called.append(name)
        raise ValueError("enough")

    monkeypatch.setattr(cli.importlib, "import_module", imported)
    CliRunner().invoke(cli.app, ["bench", *arguments])
    assert called == ["cmx_fast.benchmarks.commands"]
