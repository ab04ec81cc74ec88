from __future__ import annotations

import os

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("av", reason="needs the media extra")

import typer
from cmx_fast.benchmarks import decoding
from video_files import write_broken, write_video


@pytest.fixture
def run():
    """The command's output; the process keeps its cores and threads."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    app = typer.Typer(add_completion=False)
    app.command()(decoding.main)
    yield lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


def test_every_backend_has_a_line_or_a_remedy(run, tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", 45)
    write_video(tmp_path / "b.mp4", 45, audio=None)
    write_broken(tmp_path)["damaged"].unlink()
    monkeypatch.setattr(
        decoding,
        "unavailable",
        lambda backend: None if backend == "pyav" else f"pip install 'cmx-fast[{backend}]'",
    )
    found = run(tmp_path, "--clips", 4, "--short-side", 32)
    assert found.exit_code == 0, found.output
    assert "4 of 4" in found.output
    assert "4 clips of 3 files, mostly 64x48 (3)" in found.output
    assert "DALI left out: pip install 'cmx-fast[dali]'" in found.output
    assert "TorchCodec left out: pip install 'cmx-fast[torchcodec]'" in found.output
    for name in ("truncated", "headless", "empty", "text", "short"):
        assert f"{name}.mp4 left out: " in found.output
    assert max(len(line) for line in found.output.splitlines()) <= 80


def test_a_backend_that_decodes_nothing_is_shown_as_such(monkeypatch, tmp_path):
    moments, _ = decoding.find(write_video(tmp_path / "a.mp4", 45).parent, 2, 0)

    def broken(path, *arguments, **options):
        raise decoding.BrokenVideoError(path, "not by this one")

    monkeypatch.setattr(decoding, "read_frames", broken)
    columns = decoding.table(moments, {"pyav": "PyAV"}, 32).columns
    assert [next(iter(column.cells)) for column in columns[2:]] == ["-", "-", "0 of 2"]


def test_a_folder_without_videos_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match="holds no video"):
        decoding.find(tmp_path, 3, 0)
