from __future__ import annotations

import pytest
import torch

from cmx_fast.networks import weights


def test_round_trip(tmp_path):
    file = tmp_path / "a" / "b.pt"
    weights.save(file, {"step": 3, "module": {"w": torch.arange(3)}})
    state = weights.load(file)
    assert state["step"] == 3
    assert state["module"]["w"].tolist() == [0, 1, 2]


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "c.pt"
    weights.save(file, {"step": 1})

    def crash(state, target):
        target.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        weights.save(file, {"step": 2})
    assert weights.load(file)["step"] == 1


def test_unreadable_files_are_named(tmp_path):
    file = tmp_path / "c.pt"
    torch.save({"step": 1}, file)
    with pytest.raises(ValueError, match="format None; this version reads format 1"):
        weights.load(file)
    torch.save({"format": 1, "code": print}, file)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        weights.load(file)
