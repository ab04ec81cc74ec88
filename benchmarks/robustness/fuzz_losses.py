"""Tries the softmax family at every magnitude: forward and backward of exact problems beside float64.

Rows are small whole numbers times powers of two, and scales are powers of two, so that products and logits are exact in
every dtype however large they are, and ties are ties. float64's result is then right to the last digits, unless a
number is out of the dtype's range: there an infinity or a NaN is right too, and a wrong number is not. Attention alone
is not judged there: a key whose score is below the range has no weight, as in the plain formula.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmx_fast import ops
from cmx_fast.ops.softmax_block import join, softmax_slopes

from .fuzz_operators import Wrong

ROWS = (1, 2, 3, 5, 8, 33, 70, 300)
WIDTHS = (1, 2, 3, 16, 40)
#: Powers of two of the rows: float16's range is small, and float64 has the magnitudes of float32.
EXPONENTS = {torch.float32: 124, torch.float64: 124, torch.bfloat16: 124, torch.float16: 11}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11, torch.bfloat16: 2e-2, torch.float16: 4e-3}
#: Roundings of float32 or float64 that a result may lose to parts of its natural size that cancel.
ROUNDINGS = 64


@dataclass
class Problem:
    """``call(tensors, impl)`` gives the losses; all tensors are differentiable."""

    tensors: list[Tensor]
    call: Callable[..., Tensor]
    largest: float  # the largest number on the way
    natural: list[
        float
    ]  # the natural size of the losses and of every gradient, to which rounding is relative where parts cancel
    words: str
    losses: int | None = None  # the number of results that are losses
    judged_beyond: bool = True  # True: numbers have to be right where others are out of range


def _rows(rng: random.Random, n: int, d: int, dtype: torch.dtype, one: int | None = None) -> Tensor:
    """Whole numbers of one magnitude (2^one), or of one per row; with duplicates and rows of zeros."""
    most = EXPONENTS[dtype]
    x = torch.randint(-3, 4, (n, d)).double()
    if rng.random() < 0.3 and n > 1:
        x[rng.randrange(n)] = x[rng.randrange(n)]
    if rng.random() < 0.2 and n:
        x[rng.randrange(n)] = 0
    near = rng.random() < 0.5
    exponent = rng.randint(-6, 6) if near else rng.randint(-most, most)
    exponents = torch.full((n, 1), float(exponent if one is None else one))
    if rng.random() < 0.3 and one is None:
        reach = 6 if near else most
        exponents = torch.randint(-reach, reach + 1, (n, 1)).double()
    x = (x * torch.exp2(exponents)).to(dtype)
    if rng.random() < 0.1 and x.numel():
        x.view(-1)[rng.randrange(x.numel())] = rng.choice([torch.inf, -torch.inf, torch.nan])
    return x


def _scale(rng: random.Random) -> float:
    return 2.0 ** (rng.randint(-6, 10) if rng.random() < 0.5 else rng.randint(-126, 127))


def _most(*tensors: Tensor) -> float:
    return max((float(t.double().abs().max()) for t in tensors if t.numel()), default=0.0)


def _info_nce(rng: random.Random, dtype: torch.dtype) -> Problem:
    n, d, scale = rng.choice(ROWS), rng.choice(WIDTHS), _scale(rng)
    options: dict[str, Any] = {
        "in_batch": rng.random() < 0.7, "within": rng.random() < 0.3, "symmetric": rng.random() < 0.6,
        "similarity": rng.choice(["dot", "dot", "sql2"]), "label_smoothing": rng.choice([0.0, 0.0, 0.125]),
    }  # fmt: skip
    one = None
    if options["similarity"] == "sql2":
        # Exact only for rows of one magnitude; and the reference's square of a root rounds.
        one, scale = rng.randint(-6, 6), 2.0 ** rng.randint(-12, 6)
    query, key = _rows(rng, n, d, dtype, one), _rows(rng, n, d, dtype, one)
    bank = [_rows(rng, rng.choice(ROWS), d, dtype, one) for _ in range(rng.choice([0, 0, 1, 2]))]
    if rng.random() < 0.3:
        options["target"] = torch.randperm(n)

    def call(q: Tensor, k: Tensor, s: Tensor, impl: str) -> Tensor:
        banks = [rows.to(q.dtype) for rows in bank]
        return ops.info_nce(q, k, s, bank=banks, reduction="none", impl=impl, **options)

    largest = 4 * d * _most(query, key, *bank) ** 2
    candidates = n * 2 + sum(map(len, bank))
    return Problem(
        [query, key, torch.tensor(scale)],
        call,
        candidates * max(largest, scale * largest, scale * _most(query, key, *bank)),
        [1 + scale * largest, *[4 * scale * _most(query, key, *bank)] * 2, largest],
        f"info_nce {n} x {d} scale {scale} banks {[len(rows) for rows in bank]} {options}",
    )


def _supcon(rng: random.Random, dtype: torch.dtype) -> Problem:
    n, d, scale = rng.choice(ROWS), rng.choice(WIDTHS), _scale(rng)
    x = _rows(rng, n, d, dtype)
    labels = torch.randint(0, rng.choice([1, 2, n, 10 * n]), (n,))
    ref, of_ref = None, None
    if rng.random() < 0.4:
        ref = _rows(rng, rng.choice(ROWS), d, dtype)
        of_ref = torch.randint(0, rng.choice([1, 2, n, 10 * n]), (len(ref),))

    def call(features: Tensor, *rest: Tensor, impl: str) -> Tensor:
        *columns, s = rest
        pairs: dict[str, Any] = {"ref_features": columns[0], "ref_labels": of_ref} if columns else {}
        return ops.supcon(features, labels, s, reduction="none", impl=impl, **pairs)

    tensors = [x, torch.tensor(scale)] if ref is None else [x, ref, torch.tensor(scale)]
    most = _most(*tensors[:-1])
    largest = d * most**2
    count = n + (0 if ref is None else len(ref))
    return Problem(
        tensors,
        call,
        count * max(largest, scale * largest, scale * most),
        [1 + scale * largest, *[scale * most] * (len(tensors) - 1), largest],
        f"supcon {n} x {d} scale {scale} labels {labels.tolist()} of {None if of_ref is None else of_ref.tolist()}",
    )


def _attention(rng: random.Random, dtype: torch.dtype) -> Problem:
    n, m, d, e = rng.choice(ROWS), rng.choice((0, *ROWS)), rng.choice(WIDTHS), rng.choice(WIDTHS)
    scale = _scale(rng)
    query, key, value = _rows(rng, n, d, dtype), _rows(rng, m, d, dtype), _rows(rng, m, e, dtype)

    def call(q: Tensor, k: Tensor, v: Tensor, impl: str) -> Tensor:
        return ops.attention(q, k, v, scale=scale, impl=impl)

    largest, slope = d * _most(query, key) ** 2, e * _most(value)
    # The derivatives by the scores, too, before they meet a key.
    sizes = [largest, scale * largest, slope, n * slope * scale * max(1.0, _most(query, key))]
    # The derivative by a score may underflow before it meets a key.
    pull = max(4 * e * _most(value) * scale, 1e-30)
    natural = [_most(value), pull * _most(key), n * pull * _most(query), float(2 * n)]
    words = f"attention {n} x {m} x {d} x {e} scale {scale}"
    return Problem([query, key, value], call, max(sizes), natural, words, judged_beyond=False)


def _cluster(rng: random.Random, dtype: torch.dtype) -> Problem:
    n, k, d = rng.choice(ROWS), rng.choice(ROWS), rng.choice(WIDTHS)
    x, centroids = _rows(rng, n, d, dtype), _rows(rng, k, d, dtype).nan_to_num(1, 1, 1)
    target = torch.randint(k, (n,))
    weight = torch.randint(0, 3, (k,)).float() if rng.random() < 0.3 else None

    def call(rows: Tensor, impl: str) -> Tensor:
        given = None if weight is None else weight.to(rows.dtype)
        return ops.cluster_cross_entropy(
            rows, centroids.to(rows.dtype), target=target, weight=given, impl=impl
        )[0]

    largest = d * _most(x, centroids) ** 2
    natural = [1 + d * _most(x) * _most(centroids), 2 * _most(centroids)]
    return Problem([x], call, largest, natural, f"cluster_cross_entropy {n} x {d} of {k}, weight {weight}")


def _block(rng: random.Random, dtype: torch.dtype) -> Problem:
    """The loss of two joined blocks: a process's work with its own rows and another's."""
    n, m, d, scale = rng.choice(ROWS), rng.choice(ROWS), rng.choice(WIDTHS), _scale(rng)
    similarity, one = rng.choice(["dot", "sql2"]), None
    if similarity == "sql2":
        one, scale = rng.randint(-6, 6), 2.0 ** rng.randint(-12, 6)
    x, y = _rows(rng, n, d, dtype, one), _rows(rng, m, d, dtype, one)
    excluded = torch.randint(-1, m, (n,))

    def call(rows: Tensor, columns: Tensor, impl: str) -> Tensor:
        wide = torch.promote_types(rows.dtype, torch.float32)
        s = torch.tensor(scale, dtype=wide)
        options: dict[str, Any] = {"similarity": similarity, "impl": impl}
        own = ops.block_statistics(rows.detach(), None, s, **options)
        other = ops.block_statistics(rows.detach(), columns.detach(), s, excluded=excluded, **options)
        whole = join(torch.stack([own, other]), s)
        slopes = softmax_slopes(whole, torch.ones(n).double(), torch.zeros(n).double(), s)
        dx = ops.block_gradients(rows.detach(), None, s, slopes, **options)[0]
        more, dy = ops.block_gradients(
            rows.detach(), columns.detach(), s, slopes, excluded=excluded, need_y=True, **options
        )
        # Both passes' results, as losses with no gradient of their own.
        whole = torch.where(whole == -torch.inf, 0.0, whole)
        joined = torch.cat([(s * whole[0] + whole[1]).to(wide), (dx + more).flatten(), dy.flatten()])
        return joined + 0 * (rows.flatten()[0] + columns.flatten()[0])

    most = _most(x, y)
    largest = 4 * d * most**2
    return Problem(
        [x, y],
        call,
        (n + m) * max(largest, scale * largest, scale * most),
        [max(scale * largest, scale * most), 1.0, 1.0],
        f"softmax_block {n} x {m} x {d} {similarity} scale {scale} without {excluded.tolist()}",
        n,
    )


def _run(problem: Problem, impl: str, dtype: torch.dtype) -> list[Tensor]:
    """The losses and all gradients."""
    wide = torch.promote_types(dtype, torch.float32)
    leaves = [t.to(dtype if t.dim() else wide).requires_grad_() for t in problem.tensors]
    losses = problem.call(*leaves, impl=impl)
    weight = 1 + torch.arange(losses.numel()) % 2  # exact in every dtype
    gradients = torch.autograd.grad((losses.reshape(-1) * weight).sum(), leaves, allow_unused=True)
    return [losses.detach(), *(g for g in gradients if g is not None)]


def _judge(problem: Problem, dtype: torch.dtype) -> None:
    results, truth = _run(problem, "cpp", dtype), _run(problem, "reference", torch.float64)
    finite_input = all(bool(t.isfinite().all()) for t in problem.tensors) and problem.largest < torch.inf
    for index, (f, t, natural) in enumerate(zip(results, truth, problem.natural, strict=True)):
        name = (
            f"{'losses' if index == 0 else f'gradient {index}'} of {dtype} {problem.words}: {f} against {t}"
        )
        if f.shape != t.shape:
            raise Wrong(f"shape of {name}")
        if not finite_input:
            if index == 0 and bool((t.isnan() & f.isfinite()).reshape(-1)[: problem.losses].any()):
                raise Wrong(f"a number where there is none in {name}")
            continue
        fits = problem.largest < 0.25 * min(torch.finfo(f.dtype).max, torch.finfo(torch.float32).max)
        if fits and t.isfinite().all() and not f.isfinite().all():
            raise Wrong(f"not finite: {name}")
        size = t[t.isfinite()].abs().max().item() if t.isfinite().any() else 0.0
        seen = f.isfinite() & t.isfinite() & (fits or problem.judged_beyond)
        error = (f.double() - t)[seen].abs().max().item() if seen.any() else 0.0
        rounding = torch.finfo(torch.promote_types(f.dtype, torch.float32)).eps
        slack = ROUNDINGS * (rounding * natural + torch.finfo(f.dtype).tiny)
        if error > TOLERANCE[dtype] * size + slack:
            raise Wrong(f"off by {error} of {size}: {name}")


def _attempt(make: Callable[[random.Random, torch.dtype], Problem]) -> Callable[[int], None]:
    def attempt(seed: int) -> None:
        rng = random.Random(seed)
        dtype = rng.choice(list(EXPONENTS))
        _judge(make(rng, dtype), dtype)

    return attempt


#: Tries by name, as functions of a seed; they raise Wrong.
EXTREMES: dict[str, Callable[[int], None]] = {
    "extreme info_nce": _attempt(_info_nce),
    "extreme supcon": _attempt(_supcon),
    "extreme attention": _attempt(_attention),
    "extreme cluster loss": _attempt(_cluster),
    "extreme softmax block": _attempt(_block),
}
