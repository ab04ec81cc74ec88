"""Rows of SciPy's sparse matrices for the estimators."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmx_fast.cluster._samples import BLOCK, Samples
from cmx_fast.ops import kmeans_assign, kmeans_step


class SparseSamples(Samples):
    """Rows (N, D) of a sparse matrix, made dense a block at a time: a block's memory, a dense matrix's work."""

    def _read(self, x: Any) -> None:
        if x.ndim != 2:
            raise ValueError(f"X must have shape (N, D), got {tuple(x.shape)}")
        if np.iscomplexobj(x):
            raise ValueError("X: Complex data not supported")
        if x.dtype.kind not in "fiub":
            raise ValueError(f"X must hold numbers, got {x.dtype}")
        rows = x.tocsr(copy=True)
        rows.sum_duplicates()
        rows.eliminate_zeros()
        self.rows = rows if rows.dtype in (np.float32, np.float64) else rows.astype(np.float64)
        self.is_tensor, self.device = False, torch.device("cpu")
        self.dtype = torch.float32 if self.rows.dtype == np.float32 else torch.float64
        self.n, self.d = x.shape
        self.places = torch.Size([self.n])

    def _not_finite(self) -> list[int]:
        return np.unique(self.rows.nonzero()[0][~np.isfinite(self.rows.data)]).tolist()

    def _largest(self) -> float:
        return float(np.abs(self.rows.data).max(initial=0))

    def _zero_vectors(self) -> list[int]:
        return np.flatnonzero(np.diff(self.rows.indptr) == 0).tolist()

    def whole(self) -> Any:
        """The sparse rows, for a function that starts centroids."""
        return self.rows

    def subset(self, indices: Tensor) -> Samples:
        """The samples at these indices alone, still sparse."""
        part = copy.copy(self)
        part.rows, part.n, part.places = self.rows[indices.numpy()], len(indices), indices.shape
        part.weight = None if self.weight is None else self.weight[indices]
        return part

    def assign(self, centroids: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and distances of the nearest centroids."""
        parts = [
            kmeans_assign(rows, centroids, metric=self.metric, normalize=self.normalize)
            for rows, _ in self._blocks()
        ]
        labels, distances = zip(*parts, strict=True)
        return torch.cat(labels), torch.cat(distances)

    def step(self, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Labels, float64 sums and counts or weights, inertia; all weighted values are in units of ``scale``."""
        labels = torch.empty(self.n, dtype=torch.int64)
        sums = torch.zeros(centroids.shape, dtype=torch.float64)
        counts = torch.zeros(len(centroids), dtype=torch.float64)
        inertia = torch.zeros((), dtype=torch.float64)
        begin = 0
        for rows, weight in self._blocks():
            labels[begin : begin + len(rows)], *totals = kmeans_step(
                rows, centroids, weight=weight, metric=self.metric, normalize=self.normalize
            )
            for total, part in zip((sums, counts, inertia), totals, strict=True):
                total += part
            begin += len(rows)
        return labels, sums, counts, inertia

    def _rows(self, indices: Tensor) -> Tensor:
        return torch.from_numpy(self.rows[indices.numpy()].toarray())

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Dense rows with their weights."""
        size = max(1, BLOCK // self.d)
        for begin in range(0, self.n, size):
            weight = None if self.weight is None else self.weight[begin : begin + size]
            yield torch.from_numpy(self.rows[begin : begin + size].toarray()), weight
