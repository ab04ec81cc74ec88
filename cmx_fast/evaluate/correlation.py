"""Canonical correlation analysis: the linear mapping of two kinds of features into one space, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Ridges that are tried, shares of the mean variance, which is 1; and the most dimensions.
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
DIMENSIONS = 64


@dataclass(frozen=True)
class Mapping:
    """An affine mapping into the common space: rows (N, D) to (N, K)."""

    mean: Tensor
    scale: Tensor
    matrix: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        return (((rows.double() - self.mean) / self.scale) @ self.matrix).float()


def correlate(x: Tensor, y: Tensor, *, ridge: float, dimensions: int = DIMENSIONS) -> tuple[Mapping, Mapping]:
    """The mappings of x (N, D) and y (N, E) whose images correlate most (Hotelling 1936), weighted by the square root.

    Columns are standardised; ``ridge`` is added to their variances. K is at most ``dimensions``, D, E and N. Cost: O(N
    (D + E)^2 + D^3 + E^3), and with fewer rows than columns O(N^2 (D + E)), in double precision.

    Raises:
        ValueError: x and y have other numbers of rows, or fewer than two.
    """
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"x and y must have the same rows, two or more; got {len(x)} and {len(y)}")
    sides = []
    for rows in (x, y):
        deviation, mean = torch.std_mean(rows.double(), 0)
        scale = torch.where(deviation > 0, deviation, 1.0)
        standard = (rows.double() - mean) / scale
        variances, directions = _principal(standard)
        whitening = directions * (variances + ridge).rsqrt()
        sides.append((mean, scale, standard @ whitening, whitening))
    (*_, rows_x, white_x), (*_, rows_y, white_y) = sides
    left, correlations, right = torch.linalg.svd(rows_x.T @ rows_y / (len(x) - 1), full_matrices=False)
    weights = correlations[:dimensions].sqrt()
    matrices = (
        white_x @ (left[:, :dimensions] * weights),
        white_y @ (right.T[:, :dimensions] * weights),
    )
    return tuple(
        Mapping(mean, scale, matrix) for (mean, scale, *_), matrix in zip(sides, matrices, strict=True)
    )  # type: ignore[return-value]


def _principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Variances and directions, in columns, of centred rows (N, D): all D, or the N that the rows lie in."""
    if len(rows) < rows.shape[1]:
        _, singular, directions = torch.linalg.svd(rows, full_matrices=False)
        return singular.square() / (len(rows) - 1), directions.T
    variances, directions = torch.linalg.eigh(rows.T @ rows / (len(rows) - 1))
    return variances.clamp_min(0), directions


def best_ridge(quality: Callable[[float], float]) -> float:
    """The ridge of :data:`RIDGES` of the highest quality; of equal ones the largest."""
    return max(reversed(RIDGES), key=quality)
