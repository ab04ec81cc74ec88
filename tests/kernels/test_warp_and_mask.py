"""The launcher of SpecAugment's pass against its reference in float64."""

from __future__ import annotations

import pytest
import torch

from cmx_fast import reference

pytest.importorskip("triton")
from cmx_fast.kernels.warp_and_mask import warp_and_mask_fwd

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("b", "f", "t"), [(1, 1, 1), (2, 33, 99), (3, 16, 64)])
def test_warp_and_mask(device, b, f, t, dtype):
    # NaN around what is given: nothing may be read beyond a row.
    memory = torch.full((b + 2, f, t), float("nan"), dtype=dtype)
    memory[1:-1] = torch.randn(b, f, t)
    position = torch.rand(b, t) * (t + 3) - 2
    position[:, ::3] = position[:, ::3].round()
    hidden = torch.rand(b, f) < 0.3, torch.rand(b, t) < 0.3
    truth = reference.warp_and_mask(memory[1:-1].double(), position.double(), *hidden)
    actual = warp_and_mask_fwd(
        memory.to(device)[1:-1], position.to(device), *(part.to(device) for part in hidden)
    )
    assert actual.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(actual.cpu().double(), truth, rtol=tolerance, atol=tolerance)
