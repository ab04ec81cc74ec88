"""One small simulated data set for all tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("pyroomacoustics", reason="needs the media extra")
pytest.importorskip("espeakng_loader", reason="needs the media extra")
pytest.importorskip("soundfile", reason="needs the media extra")


@pytest.fixture(scope="session")
def tiny() -> dict[str, int]:
    """Options of the simulated set: three spaces, the third outdoors."""
    return {"rooms": 3, "train_pairs": 3, "test_pairs": 2, "image_size": 64, "seed": 5}


@pytest.fixture(scope="session")
def simulated(tiny, tmp_path_factory) -> Path:
    """The set, to be read only."""
    from cmx_fast.simulate.rooms.simulate import simulate_rooms

    out = tmp_path_factory.mktemp("rooms") / "set"
    simulate_rooms(out=out, workers=1, **tiny)
    return out


@pytest.fixture
def damageable(simulated, tmp_path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(simulated, tmp_path / "set"))
