"""Canonical correlation analysis against what it must find."""

from __future__ import annotations

import pytest
import torch

from cmx_fast.evaluate.correlation import RIDGES, best_ridge, correlate


def test_it_finds_what_two_kinds_of_features_share():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(400, 3, generator=generator)

    def seen(width):
        mixed = hidden @ torch.randn(3, width, generator=generator)
        return 50 + 4 * mixed + torch.randn(400, width, generator=generator)

    x, y = seen(12), seen(9)
    of_x, of_y = correlate(x[:300], y[:300], ridge=1e-2, dimensions=5)
    a, b = of_x(x[300:]), of_y(y[300:])
    assert a.shape == b.shape == (100, 5)
    correlations = [float(torch.corrcoef(torch.stack([a[:, k], b[:, k]]))[0, 1]) for k in range(5)]
    assert min(correlations[:3]) > 0.95 and max(map(abs, correlations[3:])) < 0.4


def test_its_first_correlations_are_the_largest_there_are():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(4, 5, generator=generator).double() + torch.randn(200, 5, generator=generator)
    of_x, of_y = correlate(x, y, ridge=1e-9)
    best = abs(float(torch.corrcoef(torch.stack([of_x(x)[:, 0], of_y(y)[:, 0]]))[0, 1]))
    for _ in range(50):
        u, w = (
            x @ torch.randn(4, generator=generator).double(),
            y @ torch.randn(5, generator=generator).double(),
        )
        assert abs(float(torch.corrcoef(torch.stack([u, w]))[0, 1])) < best + 1e-6


@pytest.mark.parametrize("count", [20, 90])
def test_the_mappings_are_the_closed_form(count):
    """With fewer rows than columns and with more."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, 40, generator=generator, dtype=torch.float64)
    y = x[:, :30] + torch.randn(count, 30, generator=generator)
    ridge = 0.1
    of_x, of_y = correlate(x, y, ridge=ridge, dimensions=8)
    both = torch.cat([(x - x.mean(0)) / x.std(0), (y - y.mean(0)) / y.std(0)], 1)
    moments = both.T @ both / (count - 1)
    xx, xy, yy = moments[:40, :40], moments[:40, 40:], moments[40:, 40:]
    xx, yy = xx + ridge * torch.eye(40), yy + ridge * torch.eye(30)
    correlations = torch.linalg.eigvals(torch.linalg.solve(xx, xy) @ torch.linalg.solve(yy, xy.T)).real
    correlations = correlations.sort(descending=True).values[:8].sqrt()
    torch.testing.assert_close(of_x.matrix.T @ xx @ of_x.matrix, correlations.diag())
    torch.testing.assert_close(of_y.matrix.T @ yy @ of_y.matrix, correlations.diag())
    torch.testing.assert_close(of_x.matrix.T @ xy @ of_y.matrix, correlations.square().diag())


def test_constant_columns_and_odd_rows():
    x = torch.randn(20, 3)
    x[:, 1] = 7
    of_x, of_y = correlate(x, x[:, :2], ridge=0.1)
    assert of_x(x).isfinite().all() and of_y(x[:, :2]).isfinite().all()
    with pytest.raises(ValueError, match="x and y must have the same rows, two or more; got 20 and 19"):
        correlate(x, x[1:], ridge=0.1)


def test_of_equal_ridges_the_largest():
    assert best_ridge(lambda ridge: 0.5) == max(RIDGES)
    assert best_ridge(lambda ridge: -abs(ridge - 0.01)) == 0.01
