"""The estimators' input as tensors: from NumPy or PyTorch, vectors or maps, checked before any work."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmx_fast.cluster._conventions import column_names
from cmx_fast.ops import kmeans_assign, kmeans_step

BLOCK = 2**24  # numbers that are copied at a time: 64 MB of float32
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def to_tensor(name: str, value: Any) -> Tensor:
    """A tensor of a floating dtype, on the same memory where possible; integers become float64, as in NumPy.

    Raises:
        TypeError, ValueError: the input is sparse or complex, or holds no numbers.
    """
    if hasattr(value, "toarray") or (isinstance(value, Tensor) and value.layout != torch.strided):
        raise TypeError(f"{name} is sparse, which is not supported; use its .toarray() or .to_dense()")
    if isinstance(value, Tensor):
        tensor = value.detach()
    else:
        try:
            array = np.asarray(value)
            if np.iscomplexobj(array):
                raise ValueError(f"{name}: Complex data not supported")
            if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
                array = array.astype(np.float64)
        except ValueError as error:
            raise ValueError(f"{name} must hold numbers: {error}") from error
        # Tensors have neither negative strides nor foreign byte orders.
        native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        tensor = _shared(native)
    if tensor.is_complex():
        raise ValueError(f"{name}: Complex data not supported")
    return tensor if tensor.dtype in FLOATING else tensor.double()


def _shared(array: np.ndarray) -> Tensor:
    """A tensor on the array's memory, which nothing here writes to: PyTorch warns of arrays that are read-only."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


class Samples:
    """Vectors (N, D) or maps (B, D, H, W) with their weights, as the k-means operators take them.

    ``weight`` holds the weights divided by ``scale``, the power of two that brings the largest into 1 to 2: exact, and
    no sum of theirs leaves float32. Times ``scale`` counts and inertia are in the caller's units again.

    Raises:
        ValueError: another shape, no samples or features, a value that is not finite, values whose sums would not be, a
            zero vector with "cosine", or weights that don't fit; the message says which and how many.
    """

    def __init__(self, x: Any, weight: Any, *, metric: str, normalize: bool):
        self.metric, self.normalize, self.names = metric, normalize, column_names(x)
        self._read(x)
        if self.d == 0:
            shape = (*self.places[:1], 0, *self.places[1:])
            raise ValueError(f"X holds 0 feature(s) (shape={shape}) while a minimum of 1 is required.")
        if self.n == 0:
            raise ValueError("X holds 0 sample(s) while a minimum of 1 is required")
        self._check_values()
        self.weight: Tensor | None = None
        self.scale = 1.0
        if weight is not None:
            self.weight, self.scale = self._weights(weight)

    def _read(self, x: Any) -> None:
        self.x, self.is_tensor = to_tensor("X", x), isinstance(x, Tensor)
        if self.x.dim() not in (2, 4):
            raise ValueError(
                f"X must have shape (N, D) or (B, D, H, W), got {tuple(self.x.shape)}. Expected 2D array. "
                "Reshape your data; a single sample with X.reshape(1, -1)"
            )
        self.device, self.dtype = self.x.device, self.x.dtype
        self.n, self.d = self.x.numel() // max(self.x.shape[1], 1), self.x.shape[1]
        self.places = self.x.shape[:1] + self.x.shape[2:]

    @property
    def wide(self) -> torch.dtype:
        """The dtype of centroids and distances."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def give(self, value: Tensor) -> Any:
        """The tensor as it is if the samples came as one, else as a NumPy array."""
        return value if self.is_tensor else value.cpu().numpy()

    def whole(self) -> Any:
        """The samples in the kind that they came in, for a function that starts centroids."""
        return self.give(self.x)

    def take(self, indices: Tensor) -> Tensor:
        """The samples (m, D) at these indices, normalised as the metric asks."""
        rows = self._rows(indices).to(self.wide)
        unit = self.metric == "cosine" or self.normalize
        return torch.nn.functional.normalize(rows, dim=1) if unit else rows

    def subset(self, indices: Tensor) -> Samples:
        """The samples at these indices alone."""
        part = copy.copy(self)
        part.x, part.n, part.places = self._rows(indices), len(indices), indices.shape
        part.weight = None if self.weight is None else self.weight.flatten()[indices.to(self.device)]
        return part

    def weighted(self, weight: Tensor | None, scale: float = 1.0) -> Samples:
        """The same samples with other weights, or with None each counting once."""
        other = copy.copy(self)
        other.weight, other.scale = weight, scale
        return other

    def assign(self, centroids: Tensor) -> tuple[Tensor, Tensor]:
        """Flat labels and distances of the nearest centroids."""
        labels, distance = kmeans_assign(self.x, centroids, metric=self.metric, normalize=self.normalize)
        return labels.flatten(), distance.flatten()

    def step(self, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Flat labels, sums, float64 counts or weights, inertia; all weighted values are in units of ``scale``."""
        labels, sums, counts, inertia = kmeans_step(
            self.x, centroids, weight=self.weight, metric=self.metric, normalize=self.normalize
        )
        return labels.flatten(), sums, counts.double(), inertia

    def shaped(self, labels: Tensor) -> Tensor:
        """Flat labels in the shape of the samples."""
        return labels.reshape(self.places)

    def flat_weight(self) -> Tensor:
        """Float64 weights (N,) in units of ``scale``; ones where there are none."""
        if self.weight is None:
            return torch.ones(self.n, dtype=torch.float64, device=self.device)
        return self.weight.flatten().double()

    @property
    def present(self) -> int:
        """The number of samples with a weight above 0."""
        return self.n if self.weight is None else int((self.weight > 0).sum())

    def labels_and_inertia(self, centroids: Tensor) -> tuple[Tensor, float]:
        """Flat labels of the nearest centroids, and the weighted sum of the distances to them, in the caller's units.

        The sum is float64: :meth:`assign` gives float32 distances of float32 samples, and the square of 1e20 overflows.
        """
        labels, _, _, inertia = self.step(centroids)
        return labels, inertia.item() * self.scale

    def _rows(self, indices: Tensor) -> Tensor:
        indices = indices.to(self.device)
        if self.x.dim() == 2:
            return self.x[indices]
        area = self.x[0, 0].numel()
        return self.x.flatten(2)[indices // area, :, indices % area]

    def _not_finite(self) -> list[int]:
        if self.x.isfinite().all():
            return []
        return (~self.x.isfinite()).any(1).flatten().nonzero().flatten().tolist()

    def _largest(self) -> float:
        """The largest magnitude of a value."""
        return float(self.x.abs().max())

    def _zero_vectors(self) -> list[int]:
        return (self.x == 0).all(1).flatten().nonzero().flatten().tolist()

    def _check_values(self) -> None:
        bad = self._not_finite()
        if bad:
            raise ValueError(
                f"X contains NaN or infinity in {len(bad)} of {self.n} samples; the first are {bad[:10]}. Drop them or "
                "fill them in"
            )
        most = torch.finfo(self.wide).max / self.n
        if self.metric != "cosine" and not self.normalize and self._largest() > most:
            raise ValueError(
                f"X has values up to {self._largest():.3g}, and sums of {self.n} such samples overflow "
                f"{self.wide}, in which centroids are made; divide X by a constant"
                + (" or use float64" if self.wide == torch.float32 else "")
            )
        if self.metric == "cosine":
            zero = self._zero_vectors()
            if zero:
                raise ValueError(
                    f"X has {len(zero)} zero vectors among {self.n} samples, which have no cosine; the first are "
                    f"{zero[:10]}. Drop them or use metric='l2'"
                )

    def _weights(self, weight: Any) -> tuple[Tensor, float]:
        weights = to_tensor("sample_weight", weight).to(self.device, torch.float64)
        if weights.numel() == 1:
            weights = weights.reshape(()).expand(self.places).contiguous()
        if weights.shape != self.places:
            raise ValueError(f"sample_weight.shape == {tuple(weights.shape)}, expected {tuple(self.places)}!")
        if not weights.any():
            raise ValueError(f"sample_weight is zero for all {weights.numel()} samples")
        wrong = ~((weights >= 0) & weights.isfinite())
        if wrong.any():
            first = int(wrong.flatten().nonzero()[0])
            raise ValueError(
                f"sample_weight must be finite and not negative, but {int(wrong.sum())} of {wrong.numel()} are not; "
                f"the first is sample {first} with {weights.flatten()[first].item()}"
            )
        scale = math.ldexp(1.0, math.frexp(weights.max().item())[1] - 1)
        return (weights / scale).to(self.wide), scale
