"""What every test gets: the same seeds, and uninitialised memory that shows when it is read."""

from __future__ import annotations

import os
import random

import hypothesis
import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # Read when a kernel is decorated, so it has to be set before anything imports cmx_fast.kernels.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Shared machines are slow at times, and a failure that only one run in ten finds helps nobody.
hypothesis.settings.register_profile("cmx", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("cmx")


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
