"""What a GPU has to be tried on: graphs, streams, memory. What has a meaning on a CPU runs there, too."""

from __future__ import annotations

import pytest
import torch

NO_GPU = "needs a CUDA device: python -m benchmarks.device runs it on one"


@pytest.fixture(autouse=True)
def the_extension():
    """The operators' schemas lie in the C++ library."""
    if not hasattr(torch.ops.cmx_fast, "info_nce_fwd"):
        pytest.skip("the C++ extension is not built (CMX_NO_EXTENSION)")


@pytest.fixture
def cuda() -> torch.device:
    """The first GPU."""
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    return torch.device("cuda", 0)


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> torch.device:
    """The CPU and the first GPU in turn."""
    return torch.device("cpu") if request.param == "cpu" else request.getfixturevalue("cuda")
