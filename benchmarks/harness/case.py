"""A case: one computation at one size, with its inputs, its yardstick and its goals."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from ..cases import (
    attention,
    band_spectrogram,
    contrastive,
    dense_contrastive,
    gates,
    kmeans,
    prepare_frames,
    pyramid_correlation,
    sigmoid_contrastive,
    sparse_code,
)
from . import problems, timing
from .problems import Problem
from .provider import OURS, Provider

# By a case's task, the computation.
PROVIDERS: dict[str, dict[str, Provider]] = (
    contrastive.PROVIDERS
    | sigmoid_contrastive.PROVIDERS
    | dense_contrastive.PROVIDERS
    | kmeans.PROVIDERS
    | sparse_code.PROVIDERS
    | pyramid_correlation.PROVIDERS
    | attention.PROVIDERS
    | gates.PROVIDERS
    | band_spectrogram.PROVIDERS
    | prepare_frames.PROVIDERS
)
Measure = Literal["time", "memory", "error"]


@dataclass(frozen=True)
class Goal:
    """A figure to reach: ``least`` must hold, ``reach`` is the aim.

    kind: "speedup" (times faster than ``against``; more is better), "units" (time in U), "ms", "peak_mb",
    "memory_share" (of the peak of ``against``), "working_share" (the same without the gradients, which both return), or
    "error" (times the error of ``against``); less is better in all others.
    """

    kind: Literal["speedup", "units", "ms", "peak_mb", "memory_share", "working_share", "error"]
    least: float
    reach: float
    against: str = ""
    provider: str = OURS

    def met(self, measured: float) -> bool:
        return measured >= self.least if self.kind == "speedup" else measured <= self.least

    def describe(self) -> str:
        bound = f"{self.least:g} (reach {self.reach:g})"
        return {
            "speedup": f"at least {bound} times faster than {self.against}",
            "units": f"at most {bound} U",
            "ms": f"at most {bound} ms",
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
    size: tuple[int, ...] = ()  # (T, H, W) or (H, W) of n maps with d channels, or clips; (samples,) of waves
    value: int = 0  # width of attention's values, n positions each; or the encoding layer's codewords
    batch: int = 1  # of those
    tokens: tuple[int, ...] = ()  # of each of n items, one number per side
    dtype: torch.dtype = torch.float32
    loss_value: float | None = None  # the pairs are as alike as this loss needs
    temperature: float = problems.TEMPERATURE
    measures: tuple[Measure, ...] = ("time", "memory", "error")
    providers: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = field(default=())

    @property
    def title(self) -> str:
        """The case in words."""
        if self.size:
            shape = ", ".join(map(str, (self.n, self.d, *self.size)))
            by_task = ("gates", "prepare_frames", "band_spectrogram")
            subject = self.task if self.operator in by_task else self.operator
            shape = f"({shape}), K={self.clusters}" if self.clusters else f"({shape})"
            return f"{subject} {shape}, {str(self.dtype).removeprefix('torch.')}"
        if self.tokens:
            places, steps = self.tokens
            return f"{self.task} B={self.n}, {places} x {steps}, D={self.d}, {str(self.dtype).removeprefix('torch.')}"
        if self.value:
            shape = f"{self.batch} x {self.n}, D={self.d}"
            last = f"K={self.value}" if self.task == "encoding" else f"E={self.value}"
            return f"{self.operator} {shape}, {last}, {str(self.dtype).removeprefix('torch.')}"
        rows = f"M={self.n}" if self.task == "supcon" else f"N={self.n}"
        bank = f", bank {self.bank} x {self.d}" if self.bank else f", D={self.d}"
        bank += f", K={self.clusters}" if self.clusters else ""
        at = f", at loss {self.loss_value:g}" if self.loss_value else ""
        at += f", temperature {self.temperature:g}" if self.temperature != problems.TEMPERATURE else ""
        return f"{self.operator} {rows}{bank}, {str(self.dtype).removeprefix('torch.')}{at}"

    @property
    def unit_name(self) -> str:
        """The computation that 1 U is the time of."""
        if self.operator == "prepare_frames":
            return "a copy of the result"
        return "a copy of the features" if self.size else "a product"

    def unit(self, device: str = "cpu") -> timing.Step:
        """The computation of 1 U, float32 on a CPU: a copy of maps or views, or an (n, d) x (d, m) product."""
        dtype = self.dtype if device == "cuda" else torch.float32
        if self.tokens:
            places, steps = self.tokens
            return timing.product_unit(self.n * places, self.n * steps, self.d, device, dtype)
        if self.value:
            width = self.d if self.task == "encoding" else self.d + self.value
            columns = self.value if self.task == "encoding" else self.n
            return timing.product_unit(self.batch * self.n, columns, width, device, dtype)
        if self.operator == "prepare_frames":
            view = prepare_frames.view_of(self.size)
            elements = pyramid_correlation.elements(self.n, self.d, (self.size[0], view, view))
            return timing.copy_unit(elements, device, dtype)
        if self.size:
            return timing.copy_unit(pyramid_correlation.elements(self.n, self.d, self.size), device, dtype)
        return timing.product_unit(self.n, self.bank or self.clusters or self.n, self.d, device, dtype)

    def contenders(self) -> dict[str, Provider]:
        return {name: PROVIDERS[self.task][name] for name in self.providers}

    @property
    def rows(self) -> int:
        """The number of vectors of d features."""
        return self.n * math.prod(self.size)

    def resized(self, n: int) -> Case:
        """The case with at most n rows, without its goals, which hold for its own size."""
        if self.tokens:
            return replace(self, n=min(self.n, max(2, n // sum(self.tokens))), goals=())
        if self.size:
            return replace(self, n=min(self.n, max(1, n // math.prod(self.size))), goals=())
        n = min(n, self.n)
        clusters = min(self.clusters, n // 4)
        return replace(self, n=n, bank=self.bank * n // self.n, clusters=clusters, goals=())

    def problem(self, provider: Provider, device: str = "cpu") -> Problem:
        """The inputs as this provider takes them."""
        if self.tokens:
            inputs = dense_contrastive.problem(self.n, self.d, *self.tokens)
        elif self.value:
            inputs = attention.problem(self.task, self.n, self.d, self.value, self.batch)
        elif self.task in gates.PROVIDERS:
            inputs = gates.problem(self.task, self.n, self.d, self.size)
        elif self.task in band_spectrogram.PROVIDERS:
            inputs = band_spectrogram.problem(self.task, self.n, *self.size)
        elif self.task in prepare_frames.PROVIDERS:
            inputs = prepare_frames.problem(self.task, self.n, self.size)
        elif self.size and self.clusters:
            inputs = kmeans.problem(self.task, self.rows, self.d, self.clusters)
        elif self.size:
            inputs = pyramid_correlation.problem(self.task, self.n, self.d, self.size)
        elif self.bank:
            inputs = problems.bank_problem(self.n, self.d, self.bank)
        elif self.task == "codes":
            inputs = sparse_code.problem(self.n, self.d, self.clusters)
        elif self.clusters:
            inputs = kmeans.problem(self.task, self.n, self.d, self.clusters)
        else:
            inputs = {
                "clip": lambda: problems.clip_problem(self.n, self.d, self.loss_value, self.temperature),
                "supcon": lambda: problems.supcon_problem(self.n, self.d, self.loss_value),
                "sigmoids": lambda: sigmoid_contrastive.problem(self.n, self.d),
                "two views": lambda: problems.views_problem(self.n, self.d),
            }[self.task]()
        return inputs.to(self.dtype, device).to(provider.dtype or self.dtype)
