"""Training in several processes: stopped, resumed, replicated or in pieces, it is one process's."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from distributed_training import hear_broken_files, train_players, train_with_a_bank
from PIL import Image
from process_groups import run_ranks

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch.distributed without gloo"
)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_stopped_and_resumed_training_is_one_processs(how, tmp_path):
    """Weights, banks and losses; several processes hold the same, and under FSDP each its part until the end."""
    folders = [tmp_path / str(world) for world in (1, 2)]
    for folder in folders:
        folder.mkdir()
    (whole,), parts = (
        run_ranks(functools.partial(train_with_a_bank, how if world > 1 else "ddp"), world, folder)
        for world, folder in zip((1, 2), folders)
    )
    for part in parts:
        assert part["interruptions"] == 1 and part["sharded"] == (how == "fsdp")
    for name, value in whole["state"].items():
        assert parts[0]["state"][name].equal(parts[1]["state"][name]), name
        torch.testing.assert_close(parts[0]["state"][name], value, rtol=1e-4, atol=1e-5)
    assert parts[0]["losses"] == pytest.approx(whole["losses"], rel=1e-5)


def test_players_share_their_batches_over_processes_and_passes(tmp_path):
    for i in range(12):
        (tmp_path / "train" / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (20 * i, 0, 90)).save(tmp_path / "train" / "a" / f"{i}.png")
    (tmp_path / "val").mkdir()
    first, second = run_ranks(functools.partial(train_players, 8, 2), 2, tmp_path)
    for name, value in first["state"].items():
        assert value.equal(second["state"][name]), name
        assert value.isfinite().all(), name
    # Each pass draws four pictures, two for each process.
    assert first["pictures"].shape == second["pictures"].shape == (2, 2)
    assert not first["pictures"].equal(second["pictures"])


def test_a_file_that_breaks_in_one_process_leaves_all_batches_equal(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="needs the media extra")
    pytest.importorskip("av", reason="needs the media extra")
    for folder in ("images", "audios"):
        (tmp_path / folder).mkdir()
    wave = 0.3 * np.sin(np.arange(1600))
    rows = ""
    for i in range(16):
        Image.new("L", (8, 8)).save(tmp_path / "images" / f"{i}_000001.jpg")
        soundfile.write(tmp_path / "audios" / f"{i}_000001.wav", 0 * wave if i in (3, 7) else wave, 16000)
        rows += f"{i},1,rain,train\n"
    (tmp_path / "vggsound.csv").write_text(rows)
    first, second = run_ranks(hear_broken_files, 2, tmp_path)
    assert first["steps"].equal(second["steps"]) and first["steps"].shape == (4, 2, 3)
    for step in first["steps"].flatten(1):
        assert len(step.unique()) == 6  # nobody stands in twice
        assert not set(step.tolist()) & {0, 3, 7}
    assert {"3_000001.wav", "7_000001.wav"} <= {*first["skipped"], *second["skipped"]}
