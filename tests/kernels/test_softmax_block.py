"""The launchers of one block of a softmax against its reference in float64."""

from __future__ import annotations

import pytest
import torch

from cmx_fast import reference
from cmx_fast.reference.info_nce import similarity_matrix

pytest.importorskip("triton")
from cmx_fast.kernels.softmax_block import softmax_block_bwd, softmax_block_fwd

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")

TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("similarity", ["dot", "l2", "sql2"])
@pytest.mark.parametrize("case", ["plain", "columns", "excluded", "itself", "itself excluded"])
@pytest.mark.parametrize(("n", "m", "d"), [(3, 5, 4), (70, 130, 24)])
def test_statistics_and_gradients(device, n, m, d, case, similarity, dtype):
    x, y = torch.randn(n, d).to(dtype), torch.randn(m, d).to(dtype)
    scale = torch.tensor(0.7)
    other = None if "itself" in case else y
    columns = None
    excluded = torch.randperm(n if other is None else m)[:n] if "excluded" in case else None
    if other is None and excluded is not None:
        # As where a row has one positive: each is the other's.
        excluded = torch.arange(n)
        excluded[: n // 2 * 2] = excluded[: n // 2 * 2].view(-1, 2).flip(1).flatten()
    u = similarity_matrix(x.float(), (x if other is None else y).float(), similarity)
    rows = torch.stack([u.amax(1) + torch.rand(n), torch.rand(n), 0.01 * torch.rand(n)])
    if case == "columns":
        columns = torch.stack([u.amax(0) + torch.rand(m), torch.rand(m), 0.01 * torch.rand(m)])

    def there(tensor):
        return None if tensor is None else tensor.to(device)

    def double(tensor):
        return None if tensor is None else tensor.double()

    options = {"excluded": excluded, "similarity": similarity}
    truth = reference.block_statistics(x.double(), double(other), scale.double(), **options)
    actual = softmax_block_fwd(x.to(device), there(other), scale.to(device), there(excluded), similarity)
    need_y = other is not None
    truths = reference.block_gradients(
        x.double(), double(other), scale.double(), rows.double(), double(columns), need_y=need_y, **options
    )
    gradients = softmax_block_bwd(
        x.to(device), there(other), scale.to(device), there(excluded), similarity, rows.to(device),
        there(columns), True, need_y,
    )  # fmt: skip
    for f, right in zip((actual, *gradients[: 1 + need_y]), (truth, *truths[: 1 + need_y]), strict=True):
        assert f.dtype == torch.float32
        error = (f.cpu().double() - right).norm()
        assert error <= TOLERANCE[dtype] * right.norm().clamp_min(1e-6)


def test_no_columns(device):
    statistics = softmax_block_fwd(
        torch.ones(3, 4, device=device),
        torch.ones(0, 4, device=device),
        torch.tensor(1.0, device=device),
        None,
        "dot",
    )
    assert statistics[:2].eq(float("-inf")).all() and statistics[2:].eq(0).all()


def test_launches(device, count_launches):
    x, y = torch.randn(2, 8, 4, device=device)
    scale, rows = torch.tensor(1.0, device=device), torch.rand(3, 8, device=device)
    with count_launches() as count:
        softmax_block_fwd(x, y, scale, None, "dot")
        softmax_block_bwd(x, y, scale, None, "dot", rows, rows, True, True)
    assert count.launches == 3
