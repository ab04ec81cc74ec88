"""The cases that are held against an H200's limits: ``python -m benchmarks.device --only floors``.

A floor is the time of the fewest operations, or bytes, that the result takes without the matrix of similarities in
memory, at what a large bfloat16 product (790 TFLOP/s) and a large copy (4.3 TB/s) reach on an H200:

- symmetric InfoNCE: four products of the queries with the keys (similarities in forward and again in backward, two
  gradients); SupCon two and a half, its matrix being its own transpose; a bank without gradient two, forward and
  gradient sharing one;
- a k-means step from maps: the larger of one product and one read; its goals are those that its kernel was designed to;
- pyramid correlation: features read twice, their gradient written once.

A goal's ``reach`` is the floor. Its ``least`` is about a third more where kernels of this kind have been published
(symmetric InfoNCE), and has more room where none were. Nothing here was measured. C2L's clustering pass over 6,000
images is 31 batches: its speed is that of one. Small batches of pairs are bound by launches, so their goal is to beat
``torch.compile``, both as CUDA graphs and without.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from cmx_fast.ops.kmeans import CUDA_MOST_CENTROIDS

from ..cases import kmeans
from ..cases.pyramid_correlation import IN_CUDA
from ..harness.case import Case, Goal
from ..harness.provider import OURS

CLIP, COMPILED, MOCO, SUPCONTRAST = (
    "OpenCLIP's formula",
    "torch.compile of it",
    "MoCo's formula",
    "SupContrast's formula",
)
#: Other packages' kernels for the symmetric loss.
FUSED = ("memeff", "inf_cl", "cut-cross-entropy")
GRAPH = ", a graph"
FLASH = "flash-kmeans"
PICIE, PICIE_SEARCHED = "PiCIE's way", "PiCIE's way, PyTorch's search"
ROWS_READY = (f"{FLASH}, rows ready", "faiss-gpu, rows ready", "cuML, rows ready")


def _within(least: float, reach: float) -> Goal:
    return Goal("ms", least, reach)


def _faster(provider: str, against: str, times: float = 1) -> Goal:
    return Goal("speedup", times, 2 * times, against, provider=provider)


def _accuracy(size: str, loss: float | None, temperature: float) -> Case:
    case = Case(
        f"floors/info_nce-{size}", "info_nce", "clip", 2048, 256, dtype=torch.bfloat16, loss_value=loss,
        measures=("error",), providers=(CLIP, COMPILED, *FUSED, OURS), goals=(Goal("error", 1.5, 1, CLIP),),
    )  # fmt: skip
    return replace(case, temperature=temperature)


def _step_of_maps(clusters: int, least: float, reach: float) -> Case:
    ours = kmeans.ON_DEVICE if clusters <= CUDA_MOST_CENTROIDS else (OURS,)
    return Case(
        f"floors/kmeans-{clusters}", "kmeans", "step of maps", 192, 128, clusters=clusters, size=(80, 80),
        dtype=torch.bfloat16, providers=("PyTorch, 4096 rows at a time", FLASH, *ROWS_READY, *ours),
        goals=(_within(least, reach), *(_faster(OURS, name) for name in (FLASH, ROWS_READY[0]))),
    )  # fmt: skip


LIMIT_CASES: tuple[Case, ...] = (
    Case(
        "floors/info_nce-65536x768", "info_nce", "clip", 65536, 768, dtype=torch.bfloat16, measures=("time", "memory"),
        providers=(CLIP, COMPILED, *FUSED, "siglip-kernel (sigmoids)", OURS),
        goals=(_within(45, 33.4), *(_faster(OURS, name) for name in (COMPILED, *FUSED))),
    ),
    Case(
        "floors/info_nce-32768x512", "info_nce", "clip", 32768, 512, dtype=torch.bfloat16, measures=("time", "memory"),
        providers=(CLIP, COMPILED, "open_clip ClipLoss", *FUSED, "siglip-kernel (sigmoids)", OURS),
        goals=(
            _within(7.5, 5.57), _faster(OURS, COMPILED, 3), Goal("peak_mb", 1000, 500),
            *(_faster(OURS, name) for name in FUSED),
        ),
    ),
    Case(
        "floors/supcon-16384x128", "supcon", "supcon", 16384, 128, dtype=torch.bfloat16,
        providers=(SUPCONTRAST, COMPILED, "pytorch-metric-learning", OURS),
        goals=(_within(0.8, 0.22), _faster(OURS, SUPCONTRAST, 8), _faster(OURS, COMPILED)),
    ),
    Case(
        "floors/info_nce-bank", "info_nce", "bank", 4096, 128, bank=65536, dtype=torch.bfloat16,
        providers=(MOCO, COMPILED, "lightly NTXentLoss", "info-nce-pytorch", OURS),
        goals=(_within(0.35, 0.17), _faster(OURS, COMPILED)),
    ),
    *(_step_of_maps(*floor) for floor in ((27, 0.11, 0.073), (256, 0.25, 0.102), (1024, 0.70, 0.408))),
    Case(
        "floors/clustering-pass", "kmeans", "maps", 192 * 80 * 80, 128, clusters=27, dtype=torch.bfloat16,
        measures=("time", "memory"), providers=(PICIE, PICIE_SEARCHED, OURS),
        goals=tuple(_faster(OURS, name, 20) for name in (PICIE, PICIE_SEARCHED)),
    ),
    Case(
        "floors/pyramid_correlation", "pyramid_correlation", "correlation", 128, 512, size=(4, 8, 8),
        dtype=torch.bfloat16, providers=("eager formula", COMPILED, IN_CUDA, OURS),
        goals=(_within(0.031, 0.023), _faster(OURS, COMPILED)),
    ),
    *(_accuracy(f"error-at-{loss:g}", loss, 0.07) for loss in (1, 0.1, 0.001)),
    # With a loss: at none the gradient is nothing but the rounding of float64's softmax.
    _accuracy("temperature-0.005", 0.1, 0.005),
    *(
        Case(
            f"floors/info_nce-small-{n}", "info_nce", "clip", n, 256, dtype=torch.bfloat16, measures=("time",),
            providers=(CLIP, CLIP + GRAPH, COMPILED, COMPILED + GRAPH, OURS, OURS + GRAPH),
            goals=(_faster(OURS, COMPILED), _faster(OURS + GRAPH, COMPILED + GRAPH)),
        )
        for n in (256, 512, 1024, 2048, 4096)
    ),
)  # fmt: skip
