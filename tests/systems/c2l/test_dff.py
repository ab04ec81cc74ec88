from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cmx_fast.systems.c2l.dff import DFF, factorise
from cmx_fast.systems.c2l.recipe import C2LRecipe


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_factors_of_a_product_are_found():
    strengths, factors = torch.zeros(60, 3), torch.zeros(3, 9)
    for k in range(3):
        strengths[20 * k : 20 * k + 20, k] = torch.rand(20) + 0.5
        factors[k, 3 * k : 3 * k + 3] = torch.rand(3) + 0.5
    rows = strengths @ factors
    left, right = factorise(rows, 3, generator())
    assert (left >= 0).all() and (right >= 0).all()
    torch.testing.assert_close(right.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(left @ right, rows, atol=1e-2, rtol=0)
    labels = left.argmax(1).view(3, 20)
    assert (labels == labels[:, :1]).all()
    assert len(labels[:, 0].unique()) == 3


def test_error_never_grows():
    rows = torch.rand(50, 12)
    errors = [
        (rows - torch.mm(*factorise(rows, 4, generator(), iterations, 0.0))).norm().item()
        for iterations in (1, 3, 10, 40)
    ]
    assert errors == sorted(errors, reverse=True)


def test_it_stops_where_the_error_stands_still():
    rows = torch.rand(50, 12)
    early = factorise(rows, 4, generator(), 200, tolerance=1.0)[0]
    assert torch.equal(early, factorise(rows, 4, generator(), 10, tolerance=0.0)[0])


def test_silent_activations_stay_finite():
    rows = torch.rand(20, 6)
    rows[:, 2] = 0
    rows[3] = 0
    left, right = factorise(rows, 2, generator())
    assert left.isfinite().all() and right.isfinite().all()
    assert factorise(torch.zeros(5, 4), 2, generator())[0].isfinite().all()


def test_negative_rows_are_refused():
    with pytest.raises(ValueError, match="after a ReLU"):
        factorise(torch.randn(20, 6), 2, generator())


def test_heat_maps_of_all_pictures_together():
    recipe = C2LRecipe.preset("demo", size=64, test_clusters=2, dff_stage=2)
    model = DFF(recipe).eval()
    images = torch.rand(5, 3, 64, 64)
    heat = model.heat_maps(images.split(2), generator())
    assert heat.shape == (5, 2, 8, 8)
    rows = model.encoder.activations(images)[1].permute(0, 2, 3, 1).reshape(-1, 128)
    expected, factors = factorise(rows.detach(), 2, generator())
    torch.testing.assert_close(heat.permute(0, 2, 3, 1).reshape(-1, 2), expected, rtol=1e-3, atol=1e-3)
    assert F.cosine_similarity(*factors, dim=0) < 0.999
