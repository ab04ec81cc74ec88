"""The cases, and their selection by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..cases import band_spectrogram, pyramid_correlation
from ..device.limit_cases import CLIP, COMPILED, LIMIT_CASES, MOCO, SUPCONTRAST
from .case import PROVIDERS, Case, Goal
from .provider import OURS

SKLEARN, FAISS, PICIE = "scikit-learn's Lloyd iteration", "faiss", "PiCIE's way"
EINSUM = "einsum, max, mean"
EAGER_ATTENTION, RESIDUALS = "bmm, softmax, bmm", "residuals"
LOOP, CHUNKED = "unrolled loop", "PyTorch, 4096 rows at a time"
LIGHTLY = "lightly's formula"
TORCHVISION = "torchvision v2"
FORMULA = "eager formula"
SMALL = (128, 256, 512, 1024)
ERROR_ROWS = 2048


def _error_cases(operator: str, task: str, formula: str, d: int, dtype: torch.dtype) -> list[Case]:
    suffix = "" if dtype == torch.float32 else f"-{str(dtype).removeprefix('torch.')}"
    return [
        Case(
            f"{operator}/error-at-{value:g}{suffix}", operator, task, ERROR_ROWS, d, dtype=dtype, loss_value=value,
            measures=("error",), providers=(formula, OURS), goals=(Goal("error", 1.5, 1, formula),),
        )
        for value in (1, 0.1, 0.001)
    ]  # fmt: skip


CASES: tuple[Case, ...] = (
    Case(
        "info_nce/symmetric", "info_nce", "clip", 8192, 256,
        providers=(CLIP, COMPILED, "open_clip ClipLoss", OURS),
        goals=(Goal("speedup", 4.5, 6.5, CLIP), Goal("units", 2.4, 1.7)),
    ),
    Case(
        "info_nce/bank", "info_nce", "bank", 1024, 128, bank=65536,
        providers=tuple(PROVIDERS["bank"]),
        goals=(Goal("speedup", 2, 4, MOCO), Goal("speedup", 2, 4, LIGHTLY, provider=f"{OURS} NTXentLoss")),
    ),
    Case(
        "info_nce/two-banks", "info_nce", "two banks", 128, 256, bank=30_000,
        providers=tuple(PROVIDERS["two banks"]), goals=(Goal("speedup", 1.5, 3, MOCO),),
    ),
    Case(
        "info_nce/bfloat16", "info_nce", "clip", 8192, 256, dtype=torch.bfloat16, measures=("time", "error"),
        providers=(CLIP, COMPILED, f"{OURS} float32", OURS), goals=(Goal("speedup", 2, 3, f"{OURS} float32"),),
    ),
    Case(
        "info_nce/memory", "info_nce", "clip", 16384, 256, measures=("memory",),
        providers=(CLIP, OURS), goals=(Goal("peak_mb", 200, 60),),
    ),
    *(
        Case(
            f"info_nce/small-{n}", "info_nce", "clip", n, 128, measures=("time", "error"),
            providers=(CLIP, COMPILED, OURS), goals=(Goal("speedup", 1, 2, CLIP),),
        )
        for n in SMALL
    ),
    *_error_cases("info_nce", "clip", CLIP, 256, torch.float32),
    *_error_cases("info_nce", "clip", CLIP, 256, torch.bfloat16),
    Case(
        "supcon/labels", "supcon", "supcon", 8192, 128,
        providers=tuple(PROVIDERS["supcon"]),
        goals=(Goal("speedup", 12, 20, SUPCONTRAST), Goal("units", 1.8, 1.1)),
    ),
    *(
        Case(
            f"supcon/small-{n}", "supcon", "supcon", n, 128, measures=("time", "error"),
            providers=(SUPCONTRAST, COMPILED, OURS), goals=(Goal("speedup", 1, 2, SUPCONTRAST),),
        )
        for n in SMALL
    ),
    *_error_cases("supcon", "supcon", SUPCONTRAST, 128, torch.float32),
    Case(
        "sigmoid_contrastive/learned", "sigmoid_contrastive", "sigmoids", 8192, 256,
        providers=tuple(PROVIDERS["sigmoids"]),
        goals=(Goal("speedup", 5, 6, CLIP), Goal("units", 4, 3), Goal("peak_mb", 116, 80)),
    ),
    Case(
        "sigmoid_contrastive/memory", "sigmoid_contrastive", "sigmoids", 16384, 256, measures=("memory",),
        providers=(CLIP, OURS), goals=(Goal("peak_mb", 200, 130),),
    ),
    *(
        Case(
            f"kmeans/{n // 1000}k-{clusters}", "kmeans", "step", n, 128, clusters=clusters, measures=("time", "error"),
            providers=tuple(PROVIDERS["step"]),
            goals=(Goal("speedup", 2, 4, SKLEARN), Goal("speedup", 2, 4, FAISS)),
        )
        for n in (200_000, 400_000)
        for clusters in (27, 256, 1024)
    ),
    Case(
        "kmeans/maps", "kmeans", "maps", 200 * 80 * 80, 128, clusters=20, measures=("time", "memory", "error"),
        providers=(PICIE, OURS), goals=(Goal("speedup", 8, 8, PICIE),),
    ),
    Case(
        "cluster_cross_entropy/maps", "cluster_cross_entropy", "pixels", 32 * 80 * 80, 128, clusters=20,
        providers=tuple(PROVIDERS["pixels"]), goals=(Goal("speedup", 1, 2, PICIE),),
    ),
    Case(
        "sparse_code/tokens", "sparse_code", "codes", 100_000, 128, clusters=64,
        providers=tuple(PROVIDERS["codes"]),
        goals=(Goal("speedup", 4, 4, LOOP), Goal("memory_share", 0.25, 0.25, LOOP)),
    ),
    *(
        Case(
            f"pyramid_correlation/{size[1]}x{size[2]}", "pyramid_correlation", "correlation", n, 512, size=size,
            providers=(FORMULA, COMPILED, OURS),
            goals=(Goal("speedup", 6, 12, FORMULA), Goal("units", 6, 3), Goal("working_share", 0.1, 0.1, FORMULA)),
        )
        for n, size in ((16, (4, 8, 8)), (8, (4, 28, 28)))
    ),
    Case(
        "dense_scores/contrast", "dense_scores", "dense contrast", 64, 128, tokens=(196, 250),
        measures=("time", "memory"), providers=tuple(PROVIDERS["dense contrast"]),
        goals=(Goal("speedup", 5, 8, EINSUM), Goal("memory_share", 0.05, 0.05, EINSUM)),
    ),
    Case(
        "dense_scores/error", "dense_scores", "dense contrast", 8, 128, tokens=(196, 250),
        measures=("error",), providers=(EINSUM, OURS), goals=(Goal("error", 1.5, 1, EINSUM),),
    ),
    Case(
        "dense_scores/memory", "dense_scores", "dense contrast", 256, 128, tokens=(196, 250),
        measures=("memory",), providers=(OURS,), goals=(Goal("peak_mb", 300, 200),),
    ),
    Case(
        "attention/positions", "attention", "attention", 4096, 64, value=512, batch=8,
        providers=tuple(PROVIDERS["attention"]),
        goals=(Goal("speedup", 2, 3, EAGER_ATTENTION), Goal("working_share", 0.1, 0.1, EAGER_ATTENTION)),
    ),
    Case(
        "attention/one", "attention", "attention", 4096, 64, value=512,
        providers=(EAGER_ATTENTION, "PyTorch's SDPA, padded", OURS), goals=(Goal("speedup", 2, 3, EAGER_ATTENTION),),
    ),
    Case(
        "attention/equal", "attention", "attention", 4096, 64, value=64, batch=8, measures=("time", "error"),
        providers=(EAGER_ATTENTION, "PyTorch's SDPA", "PyTorch's SDPA, padded", OURS),
    ),
    Case(
        "encoding/layer", "encoding", "encoding", 3600, 512, value=32, batch=4,
        providers=tuple(PROVIDERS["encoding"]), goals=(Goal("speedup", 3, 10, RESIDUALS),),
    ),
    *(
        Case(
            f"gates/{task}-{size}", "gates", task, 32, channels, size=(size, size),
            providers=tuple(PROVIDERS[task]), goals=(Goal("speedup", 1, 2, FORMULA),),
        )
        for task in ("squeeze-excite", "CBAM")
        for channels, size in ((256, 56), (1024, 14))
    ),
    Case(
        "gates/channel-attention", "gates", "channel attention", 8, 512, size=(64, 64),
        providers=tuple(PROVIDERS["channel attention"]),
    ),
    *(
        Case(
            f"band_spectrogram/{task}", "band_spectrogram", task, 32, 1, size=(samples,),
            providers=tuple(PROVIDERS[task]), goals=(Goal("speedup", 3, 6, next(iter(PROVIDERS[task]))),),
        )
        for task, samples in (("log-mel", 6 * 22050), ("filterbank", 24000), ("power spectrogram", 160_000))
    ),
    *(
        Case(
            f"frames/{kind}{suffix}", "prepare_frames", task, n, 3, size=size,
            providers=tuple(PROVIDERS[task]), goals=(Goal("speedup", 3, 6, TORCHVISION),),
        )
        for kind, n, size in (("clips", 8, (32, 160, 213)), ("pictures", 32, (1, 256, 341)))
        for suffix, task in (("", "frames"), ("-recoloured", "frames, recoloured"))
    ),
    Case(
        "pyramid_correlation/consistency", "pyramid_correlation", "consistency", 16, 512, size=(4, 8, 8),
        providers=(FORMULA, COMPILED, OURS), goals=(Goal("speedup", 6, 12, FORMULA),),
    ),
)  # fmt: skip

# The cases of a GPU: the floors first, then batches that fill one, in bfloat16 as they are trained.
DEVICE_CASES: tuple[Case, ...] = (
    *LIMIT_CASES,
    *(
        Case(
            f"info_nce/device-{n}x{d}", "info_nce", "clip", n, d, dtype=torch.bfloat16,
            providers=(CLIP, COMPILED, "open_clip ClipLoss", OURS),
        )
        for n, d in ((4096, 256), (16384, 512))
    ),
    Case(
        "supcon/device-two-views", "supcon", "two views", 4096, 128, dtype=torch.bfloat16,
        providers=tuple(PROVIDERS["two views"]),
    ),
    *(
        Case(
            f"supcon/device-{n}x{d}", "supcon", "supcon", n, d, dtype=torch.bfloat16,
            providers=(SUPCONTRAST, COMPILED, OURS),
        )
        for n, d in ((1024, 128), (4096, 128))
    ),
    Case(
        "sigmoid_contrastive/device-16384x256", "sigmoid_contrastive", "sigmoids", 16384, 256, dtype=torch.bfloat16,
        providers=tuple(PROVIDERS["sigmoids"]),
    ),
    *(
        Case(
            f"kmeans/device-{clusters}", "kmeans", "step", 192 * 80 * 80, 128, clusters=clusters, dtype=torch.bfloat16,
            providers=(CHUNKED, OURS),
        )
        for clusters in (27, 256, 1024)
    ),
    Case(
        "cluster_cross_entropy/device", "cluster_cross_entropy", "pixels", 96 * 80 * 80, 128, clusters=20,
        dtype=torch.bfloat16, providers=(PICIE, OURS),
    ),
    Case(
        "sparse_code/device", "sparse_code", "codes", 96 * 80 * 80, 128, clusters=64, dtype=torch.bfloat16,
        providers=(LOOP, COMPILED, OURS),
    ),
    *(
        Case(
            f"pyramid_correlation/device-{task}", "pyramid_correlation", task, 128, 512, size=(4, 8, 8),
            dtype=torch.bfloat16, providers=(FORMULA, COMPILED, *pyramid_correlation.ON_DEVICE),
        )
        for task in ("correlation", "consistency")
    ),
    *(
        Case(
            f"band_spectrogram/device-{task}", "band_spectrogram", task, 256, 1, size=(samples,),
            providers=(*((band_spectrogram.TORCHAUDIO,) if task == "log-mel" else ()), band_spectrogram.EAGER, OURS),
        )
        for task, samples in (("log-mel", 6 * 22050), ("filterbank", 24000), ("power spectrogram", 160_000))
    ),
    *(
        Case(
            f"gates/device-{task}-{size}", "gates", task, 256, channels, size=(size, size), dtype=torch.bfloat16,
            providers=(FORMULA, COMPILED, OURS),
        )
        for task in ("squeeze-excite", "CBAM")
        for channels, size in ((256, 56), (2048, 7))
    ),
    Case(
        "attention/device", "attention", "attention", 4096, 64, value=512, batch=8, dtype=torch.bfloat16,
        providers=(EAGER_ATTENTION, COMPILED, "PyTorch's SDPA", "PyTorch's SDPA, padded", OURS),
    ),
    # The other peers of k-means run on the CPU, and the encoding layer has no kernel.
    *(
        case
        for case in CASES
        if case.dtype == torch.float32 and "time" in case.measures and case.operator not in ("kmeans", "encoding")
    ),
)  # fmt: skip

OPERATORS: tuple[str, ...] = tuple(dict.fromkeys(case.operator for case in CASES))


def select(prefixes: Sequence[str] = (), cases: Sequence[Case] = CASES) -> list[Case]:
    """The cases of these operators, or whose names begin with one of these prefixes; all cases without any.

    Raises:
        ValueError: no case has the prefix.
    """

    def named(case: Case, prefix: str) -> bool:
        return case.operator == prefix or case.name.startswith(prefix)

    for prefix in prefixes:
        if not any(named(case, prefix) for case in cases):
            raise ValueError(
                f"no benchmark is called {prefix!r}; there are {', '.join(case.name for case in cases)}"
            )
    return [case for case in cases if not prefixes or any(named(case, prefix) for prefix in prefixes)]
