"""The launchers of the sparse code against float64 truth."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cmx_fast import reference

pytest.importorskip("triton")
from cmx_fast.kernels import sparse_code

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("b", "p", "features", "atoms", "steps"),
    [(1, 130, 17, 5, 10), (2, 63, 33, 40, 4), (1, 30, 200, 9, 1), (1, 3, 4, 128, 3)],
)
def test_codes_and_gradients(device, monkeypatch, b, p, features, atoms, steps, dtype):
    monkeypatch.setattr(sparse_code, "CHUNK", 100)
    x = torch.randn(b, features, p).to(dtype).transpose(1, 2)
    dictionary, grad = F.normalize(torch.randn(features, atoms), dim=0), torch.randn(b, p, atoms).to(dtype)
    size = 1 / reference.spectral_norm_squared(dictionary)
    on_device = [t.to(device) for t in (x, dictionary, size)]
    codes = sparse_code.sparse_code_fwd(*on_device, 0.1, steps).cpu()
    dx, ddictionary = (t.cpu() for t in sparse_code.sparse_code_bwd(grad.to(device), *on_device, 0.1, steps))
    exact = [x.to(torch.float64, copy=True).requires_grad_(), dictionary.double().requires_grad_()]
    expected = reference.sparse_code(*exact, steps=steps, lam=0.1, step_size=size.double())
    (expected * grad.double()).sum().backward()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    for actual, truth in ((codes, expected.detach()), (dx, exact[0].grad), (ddictionary, exact[1].grad)):
        assert (actual.double() - truth).norm() <= tolerance * truth.norm()
    assert codes.dtype == dx.dtype == dtype and (codes >= 0).all()
    assert dx.stride() == x.stride()


def test_nan_stays_in_its_vector(device):
    x = torch.randn(1, 40, 6)
    x[0, 33, 2] = float("nan")
    codes = sparse_code.sparse_code_fwd(
        x.to(device), torch.randn(6, 3, device=device), torch.tensor(0.1, device=device), 0.1, 3
    )
    assert codes.cpu().isnan().any(2).nonzero()[:, 1].tolist() == [33]


def test_too_many_atoms(device):
    with pytest.raises(ValueError, match="at most 128 atoms, got 129"):
        sparse_code.sparse_code_fwd(
            torch.randn(1, 4, 3, device=device),
            torch.randn(3, 129, device=device),
            torch.tensor(0.1, device=device),
            0.1,
            2,
        )
