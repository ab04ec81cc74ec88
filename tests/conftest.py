"""What every test gets: the same seeds, and uninitialised memory that shows when it is read."""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import shutil
from pathlib import Path

# Read when NumPy is imported. Its matrix product, which no test is about, keeps a second thread busy waiting for the
# first: Triton's interpreter multiplies small tiles, often.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # Read when a kernel is decorated, so it has to be set before anything imports cmx_fast.kernels.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if importlib.util.find_spec("hypothesis"):  # the kernels' tests do without, on a GPU's machine that lacks it
    import hypothesis

    # Shared machines are slow at times, and a failure that only one run in ten finds helps nobody.
    hypothesis.settings.register_profile("cmx", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("cmx")


def pytest_collection_finish() -> None:
    """Garbage collection looks through what tests make, no longer through the modules of PyTorch and of all tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seeds every generator with the returned number before each test."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - third-party code draws from the global generator
    torch.manual_seed(0)
    return 0


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fills ``torch.empty`` with NaN (integers: the largest value), which shows when it is read unwritten."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before, warn_only=warn_only)


@pytest.fixture(scope="session")
def tiny() -> dict[str, int]:
    """Options of the simulated set: three spaces, the third outdoors."""
    return {"rooms": 3, "train_pairs": 3, "test_pairs": 2, "val_pairs": 1, "image_size": 64, "seed": 5}


@pytest.fixture(scope="session")
def simulated(tiny, tmp_path_factory) -> Path:
    """The set, to be read only."""
    for package in ("pyroomacoustics", "espeakng_loader", "soundfile"):
        pytest.importorskip(package, reason="needs the media extra")
    from cmx_fast.simulate.commands import simulate_rooms

    out = tmp_path_factory.mktemp("rooms") / "set"
    simulate_rooms(out=out, workers=1, **tiny)
    return out


@pytest.fixture
def damageable(simulated, tmp_path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(simulated, tmp_path / "set"))
