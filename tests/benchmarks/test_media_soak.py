from __future__ import annotations

import sys

import pytest

pytest.importorskip("av", reason="needs the media extra")
if not sys.platform.startswith("linux"):
    pytest.skip("reads /proc", allow_module_level=True)

from cmx_fast.benchmarks.media.soak import FILES, soak


def test_memory_stays_flat_while_bad_files_are_named(tmp_path):
    memory, loader = soak(tmp_path / "clips", 640, workers=2, every=160)
    assert [row.clips for row in memory] == [160, 320, 480, 640]
    assert all(row.workers > row.process / 2 for row in memory)
    grown = memory[-1].process + memory[-1].workers - memory[1].process - memory[1].workers
    assert grown < 30  # MB; clips that stay would be 42
    reasons = {path.name: reason for path, reason in loader.skipped}
    # Of eight damaged files six show on opening and two on decoding; two more are broken on the way.
    assert FILES // 2 <= len(reasons) <= FILES // 2 + 2
    assert all("_bad" in name for name in list(reasons)[: FILES // 2])
