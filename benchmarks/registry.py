"""The cases and what is asked of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from . import (
    attending,
    clustering,
    contrastive,
    correlation,
    framing,
    gating,
    hearing,
    problems,
    sparse,
    timing,
)  # fmt: skip
from .problems import Problem
from .provider import OURS, Provider

# By what is computed, a case's task.
PROVIDERS: dict[str, dict[str, Provider]] = (
    contrastive.PROVIDERS
    | clustering.PROVIDERS
    | sparse.PROVIDERS
    | correlation.PROVIDERS
    | attending.PROVIDERS
    | gating.PROVIDERS
    | hearing.PROVIDERS
    | framing.PROVIDERS
)
Measure = Literal["time", "memory", "error"]


@dataclass(frozen=True)
class Goal:
    """A figure to reach: ``least`` must hold, ``reach`` is the aim.

    kind: "speedup" (times faster than ``against``; more is better), "units" (time in U), "peak_mb", "memory_share" (of
    the peak of ``against``), "working_share" (the same without the gradients, which both return), or "error" (times
    the error of ``against``); less is better in all others.
    """

    kind: Literal["speedup", "units", "peak_mb", "memory_share", "working_share", "error"]
    least: float
    reach: float
    against: str = ""
    of: str = OURS

    def met(self, measured: float) -> bool:
        return measured >= self.least if self.kind == "speedup" else measured <= self.least

    def describe(self) -> str:
        bound = f"{self.least:g} (reach {self.reach:g})"
        return {
            "speedup": f"at least {bound} times faster than {self.against}",
            "units": f"at most {bound} U",
            "peak_mb": f"at most {bound} MB at the peak",
            "memory_share": f"at most {bound} of the peak memory of {self.against}",
            "working_share": f"at most {bound} of the peak memory of {self.against}, gradients apart",
            "error": f"at most {bound} times the error of {self.against}",
        }[self.kind]


@dataclass(frozen=True)
class Case:
    """One computation at one size; forward and, for losses, backward."""

    name: str
    operator: str
    task: str  # a key of PROVIDERS
    n: int
    d: int
    bank: int = 0
    clusters: int = 0  # or the atoms of a dictionary
    size: tuple[int, ...] = ()  # of maps with d channels, or of clips, n of them: (T, H, W), or (H, W)
    value: int = 0  # width of attention's values, n positions each; or the encoding layer's codewords
    batch: int = 1  # of those
    dtype: torch.dtype = torch.float32
    loss_value: float | None = None  # the pairs are as alike as this loss takes
    measures: tuple[Measure, ...] = ("time", "memory", "error")
    providers: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = field(default=())

    @property
    def title(self) -> str:
        """The case in words."""
        if self.size:
            shape = ", ".join(map(str, (self.n, self.d, *self.size)))
            by_task = ("gates", "prepare_frames", "band_spectrogram")
            what = self.task if self.operator in by_task else self.operator
            return f"{what} ({shape}), {str(self.dtype).removeprefix('torch.')}"
        if self.value:
            shape = f"{self.batch} x {self.n}, D={self.d}"
            last = f"K={self.value}" if self.task == "encoding" else f"E={self.value}"
            return f"{self.operator} {shape}, {last}, {str(self.dtype).removeprefix('torch.')}"
        rows = f"M={self.n}" if self.task == "supcon" else f"N={self.n}"
        bank = f", bank {self.bank} x {self.d}" if self.bank else f", D={self.d}"
        bank += f", K={self.clusters}" if self.clusters else ""
        at = f", at loss {self.loss_value:g}" if self.loss_value else ""
        return f"{self.operator} {rows}{bank}, {str(self.dtype).removeprefix('torch.')}{at}"

    @property
    def unit_name(self) -> str:
        """What 1 U is."""
        if self.operator == "prepare_frames":
            return "a copy of the result"
        return "a copy of the features" if self.size else "a product"

    def unit(self, device: str = "cpu") -> timing.Step:
        """1 U: one copy of the maps, of frames' views, or one (n, d) x (d, m) product, in float32 on a CPU."""
        dtype = self.dtype if device == "cuda" else torch.float32
        if self.value:
            width = self.d if self.task == "encoding" else self.d + self.value
            columns = self.value if self.task == "encoding" else self.n
            return timing.product_unit(self.batch * self.n, columns, width, device, dtype)
        if self.operator == "prepare_frames":
            view = framing.view_of(self.size)
            elements = correlation.elements(self.n, self.d, (self.size[0], view, view))
            return timing.copy_unit(elements, device, dtype)
        if self.size:
            return timing.copy_unit(correlation.elements(self.n, self.d, self.size), device, dtype)
        return timing.product_unit(self.n, self.bank or self.clusters or self.n, self.d, device, dtype)

    def contenders(self) -> dict[str, Provider]:
        return {name: PROVIDERS[self.task][name] for name in self.providers}

    @property
    def rows(self) -> int:
        """Vectors of d features."""
        return self.n * math.prod(self.size)

    def resized(self, n: int) -> Case:
        """At most n rows: a smaller sibling, without goals: they hold for the sizes that they name."""
        if self.size:
            return replace(self, n=min(self.n, max(1, n // math.prod(self.size))), goals=())
        n = min(n, self.n)
        clusters = min(self.clusters, n // 4)
        return replace(self, n=n, bank=self.bank * n // self.n, clusters=clusters, goals=())

    def problem(self, provider: Provider, device: str = "cpu") -> Problem:
        """The inputs as this provider takes them."""
        if self.value:
            made = attending.problem(self.task, self.n, self.d, self.value, self.batch)
        elif self.task in gating.PROVIDERS:
            made = gating.problem(self.task, self.n, self.d, self.size)
        elif self.task in hearing.PROVIDERS:
            made = hearing.problem(self.task, self.n, *self.size)
        elif self.task in framing.PROVIDERS:
            made = framing.problem(self.task, self.n, self.size)
        elif self.size:
            made = correlation.problem(self.task, self.n, self.d, self.size)
        elif self.bank:
            made = problems.bank_problem(self.n, self.d, self.bank)
        elif self.task == "codes":
            made = sparse.problem(self.n, self.d, self.clusters)
        elif self.clusters:
            made = clustering.problem(self.task, self.n, self.d, self.clusters)
        else:
            make = {"clip": problems.clip_problem, "supcon": problems.supcon_problem}[self.task]
            made = make(self.n, self.d, self.loss_value)
        return made.to(self.dtype, device).to(provider.dtype or self.dtype)


SKLEARN, FAISS, PICIE = "scikit-learn's Lloyd iteration", "faiss", "PiCIE's way"
EAGER_ATTENTION, RESIDUALS = "bmm, softmax, bmm", "residuals"
LOOP, CHUNKED = "unrolled loop", "PyTorch, 4096 rows at a time"
CLIP, MOCO, LIGHTLY, SUPCONTRAST = (
    "OpenCLIP's formula",
    "MoCo's formula",
    "lightly's formula",
    "SupContrast's formula",
)
TORCHVISION = "torchvision v2"
COMPILED, FORMULA = "torch.compile of it", "eager formula"
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
        goals=(Goal("speedup", 2, 4, MOCO), Goal("speedup", 2, 4, LIGHTLY, of=f"{OURS} NTXentLoss")),
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
        providers=tuple(PROVIDERS["maps"]), goals=(Goal("speedup", 8, 8, PICIE),),
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
            providers=tuple(PROVIDERS["correlation"]),
            goals=(Goal("speedup", 6, 12, FORMULA), Goal("units", 6, 3), Goal("working_share", 0.1, 0.1, FORMULA)),
        )
        for n, size in ((16, (4, 8, 8)), (8, (4, 28, 28)))
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
            f"frames/{what}{suffix}", "prepare_frames", task, n, 3, size=size,
            providers=tuple(PROVIDERS[task]), goals=(Goal("speedup", 3, 6, TORCHVISION),),
        )
        for what, n, size in (("clips", 8, (32, 160, 213)), ("pictures", 32, (1, 256, 341)))
        for suffix, task in (("", "frames"), ("-recoloured", "frames, recoloured"))
    ),
    Case(
        "pyramid_correlation/consistency", "pyramid_correlation", "consistency", 16, 512, size=(4, 8, 8),
        providers=tuple(PROVIDERS["consistency"]), goals=(Goal("speedup", 6, 12, FORMULA),),
    ),
)  # fmt: skip

# What a GPU is measured on: batches that fill one, in bfloat16 as they are trained, the largest last.
DEVICE_CASES: tuple[Case, ...] = (
    *(
        Case(
            f"info_nce/device-{n}x{d}", "info_nce", "clip", n, d, dtype=torch.bfloat16,
            providers=(CLIP, COMPILED, "open_clip ClipLoss", OURS),
        )
        for n, d in ((1024, 256), (4096, 256), (16384, 512), (32768, 512))
    ),
    Case(
        "info_nce/device-bank", "info_nce", "bank", 4096, 128, bank=65536, dtype=torch.bfloat16,
        providers=(MOCO, COMPILED, OURS),
    ),
    *(
        Case(
            f"supcon/device-{n}x{d}", "supcon", "supcon", n, d, dtype=torch.bfloat16,
            providers=(SUPCONTRAST, COMPILED, OURS),
        )
        for n, d in ((1024, 128), (4096, 128), (16384, 128))
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
            dtype=torch.bfloat16, providers=(FORMULA, COMPILED, OURS),
        )
        for task in ("correlation", "consistency")
    ),
    *(
        Case(
            f"band_spectrogram/device-{task}", "band_spectrogram", task, 256, 1, size=(samples,),
            providers=(*((hearing.TORCHAUDIO,) if task == "log-mel" else ()), hearing.EAGER, OURS),
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
    """The cases of these operators, or whose names begin with one of these; all without any.

    Raises:
        ValueError: a prefix that no case has.
    """

    def named(case: Case, prefix: str) -> bool:
        return case.operator == prefix or case.name.startswith(prefix)

    for prefix in prefixes:
        if not any(named(case, prefix) for case in cases):
            raise ValueError(
                f"no benchmark is called {prefix!r}; there are {', '.join(case.name for case in cases)}"
            )
    return [case for case in cases if not prefixes or any(named(case, prefix) for prefix in prefixes)]
