"""Installed packages with a loss of their own, each imported where it is used."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXTRA = "pip install 'cmx-fast[bench]'"
Search = Callable[[Tensor, Tensor], Tensor]


class MissingPeerError(ImportError):
    """A package to compare with is not installed."""


def load(module: str) -> ModuleType:
    """Import a peer, or raise an error that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPeerError(f"{module} is not installed ({error}); {EXTRA}") from error


def open_clip_loss(name: str = "ClipLoss") -> nn.Module:
    """OpenCLIP's ``ClipLoss`` or ``SigLipLoss``, from its file alone: the package imports every vision model."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise MissingPeerError(f"open_clip is not installed; {EXTRA}")
    alone = importlib.util.spec_from_file_location("open_clip_loss", Path(spec.origin).with_name("loss.py"))
    if alone is None or alone.loader is None:
        raise MissingPeerError(f"open_clip has no loss.py; {EXTRA}")
    module = importlib.util.module_from_spec(alone)
    alone.loader.exec_module(module)
    return getattr(module, name)()


def metric_learning_supcon(temperature: float) -> nn.Module:
    """pytorch-metric-learning's ``SupConLoss``."""
    return load("pytorch_metric_learning.losses").SupConLoss(temperature=temperature)


def lightly_ntxent(temperature: float, bank: Tensor | None = None) -> nn.Module:
    """lightly's ``NTXentLoss``, its memory bank (K, D) filled with a copy of these rows."""
    size = 0 if bank is None else tuple(bank.shape)
    loss = load("lightly.loss.ntx_ent_loss").NTXentLoss(temperature=temperature, memory_bank_size=size)
    if bank is not None:
        loss.memory_bank.bank = bank.clone()
    return loss


def info_nce_pytorch(temperature: float) -> nn.Module:
    """info-nce-pytorch's ``InfoNCE`` with one set of negatives for all queries."""
    return load("info_nce").InfoNCE(temperature=temperature, negative_mode="unpaired")


def sklearn_lloyd_iteration(x: Tensor, centroids: Tensor) -> Callable[[], Tensor]:
    """One iteration of scikit-learn's ``KMeans``, called as it calls it: own threads, and one for the BLAS."""
    lloyd = load("sklearn.cluster._k_means_lloyd").lloyd_iter_chunked_dense
    limits = load("threadpoolctl").threadpool_limits
    rows, old = x.numpy(), np.ascontiguousarray(centroids.numpy())
    weight, labels = np.ones(len(rows), rows.dtype), np.zeros(len(rows), np.int32)
    counts, shift = np.zeros(len(old), rows.dtype), np.zeros(len(old), rows.dtype)

    def iterate() -> Tensor:
        new = np.zeros_like(old)
        with limits(1, user_api="blas"):
            lloyd(rows, weight, old, new, counts, labels, shift, torch.get_num_threads())
        return torch.from_numpy(new)

    return iterate


def faiss_iteration(x: Tensor, centroids: Tensor) -> Callable[[], Tensor]:
    """One iteration of faiss's clustering: search and update, without its subsampling."""
    faiss = load("faiss")
    rows, start = x.numpy(), np.ascontiguousarray(centroids.numpy())
    k, d = start.shape
    faiss.omp_set_num_threads(torch.get_num_threads())

    def iterate() -> Tensor:
        clustering = faiss.Clustering(d, k)
        clustering.niter, clustering.min_points_per_centroid, clustering.max_points_per_centroid = 1, 1, 10**7
        faiss.copy_array_to_vector(start.ravel(), clustering.centroids)
        clustering.train(rows, faiss.IndexFlatL2(d))
        return torch.from_numpy(faiss.vector_to_array(clustering.centroids).reshape(k, d))

    return iterate


def picie_update(maps: Tensor, centroids: Tensor, seen: Tensor, search: Search | None = None) -> Tensor:
    """PiCIE's mini-batch update: unit features flattened on the host, faiss's search, a loop over the clusters.

    Args:
        search: labels of rows (N, D) by centroids (K, D) in faiss's place, where the maps are.
    """
    rows = F.normalize(maps, dim=1).movedim(1, -1).reshape(-1, maps.shape[1])
    features = rows.float().cpu().contiguous().numpy()
    new, counts = centroids.float().cpu().numpy().copy(), seen.cpu().numpy().copy()
    labels = _faiss_labels(features, new) if search is None else search(rows, centroids).cpu().numpy()
    for k in np.unique(labels):
        of_cluster = features[labels == k]
        counts[k] += len(of_cluster)
        rate = len(of_cluster) / (counts[k] + 1e-6)
        new[k] = (1 - rate) * new[k] + rate * of_cluster.mean(0)
    return torch.from_numpy(new).to(centroids.device)


def _faiss_labels(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    faiss = load("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(centroids)
    return index.search(rows, 1)[1][:, 0]
