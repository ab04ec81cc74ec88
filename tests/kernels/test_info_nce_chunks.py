"""Gradients of wide features, a chunk of the logits' gradient at a time, against float64 truth."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton")
from info_nce_launchers import check, problem, run

from cmx_fast.kernels.common import library
from cmx_fast.kernels.info_nce import chunks as info_nce_chunks

# Infinities and NaN that the kernels mask afterwards.
pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")

WIDTH = 150  # more than a program's output, here and on a GPU in float32


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """So that every problem goes this way, in three chunks or more."""
    monkeypatch.setattr(library, "FEWEST_MULTIPLICATIONS", 0)
    monkeypatch.setattr(library, "CHUNK_BYTES", 64 * 4 * 160)


@pytest.fixture
def chunks(monkeypatch):
    """Counts the calls, so that a test fails that went another way."""
    original, calls = info_nce_chunks._add, []

    def counting(*arguments):
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(info_nce_chunks, "_add", counting)
    return calls


@pytest.mark.parametrize(
    ("options", "matrices"),
    [
        ({}, 1),
        ({"symmetric": False}, 1),
        ({"normalize": False}, 1),
        ({"normalize": False, "batch": 2}, 2),
        ({"within": True}, 3),
        ({"within": True, "symmetric": False, "normalize": False}, 2),
        ({"banks": (70,)}, 3),
        ({"banks": (70, 1, 129), "within": True, "label_smoothing": 0.1}, 9),
        ({"banks": (70,), "in_batch": False, "symmetric": False}, 1),
        ({"banks": (0,), "in_batch": False, "within": True}, 4),
        ({"label_smoothing": 0.1}, 1),
    ],
    ids=str,
)  # fmt: skip
def test_options(device, chunks, options, matrices):
    options = dict(options)
    query, key, bank = problem(150, 150, WIDTH, batch=options.pop("batch", 1), banks=options.pop("banks", ()))
    scale = 0.5 if options.get("normalize") is False else 14.3
    check(device, query, key, scale, bank, **options)
    assert len(chunks) == matrices


def test_targets(device, chunks):
    query, key, bank = problem(140, 140, WIDTH, batch=2, banks=(9,))
    target = torch.stack([torch.randperm(140), torch.randperm(140)])
    check(device, query, key, 14.3, bank, target)
    query, key, _ = problem(150, 30, WIDTH)
    check(device, query, key, 14.3, (), torch.randint(30, (1, 150)), symmetric=False)
    assert chunks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(device, chunks, dtype):
    query, key, bank = problem(150, 150, WIDTH, banks=(20,), dtype=dtype)
    check(device, query, key, 14.3, bank, tolerance=6e-3 if dtype == torch.bfloat16 else 1e-3)
    assert bool(chunks) == (dtype == torch.bfloat16)


def test_a_tiny_loss_keeps_its_digits(device, chunks):
    query = torch.nn.functional.normalize(torch.randn(1, 150, WIDTH), dim=-1)
    check(device, query, query + 1e-3 * torch.randn_like(query), 30.0, tolerance=2e-5)


@pytest.mark.parametrize("need_query", [False, True])
def test_one_side_alone_is_the_same(device, chunks, need_query):
    query, key, _ = problem(150, 150, WIDTH)
    arguments = torch.ones(1, 150), query, key, torch.tensor(14.3)
    _, dquery, dkey, dscale = run(device, *arguments)
    alone = run(device, *arguments, need_query=need_query, need_key=not need_query)
    torch.testing.assert_close(alone[1], dquery if need_query else torch.empty(0))
    torch.testing.assert_close(alone[2], torch.empty(0) if need_query else dkey)
    torch.testing.assert_close(alone[3], dscale)


@pytest.mark.parametrize("scale", [0.0, math.nan])
def test_a_scale_that_is_not_positive_gives_nan(device, chunks, scale):
    query, key, _ = problem(150, 150, WIDTH)
    assert all(x.isnan().all() for x in run(device, torch.ones(1, 150), query, key, torch.tensor(scale)))


def test_zero_vectors(device, chunks):
    query, key, _ = problem(150, 150, WIDTH)
    query[0, 3], key[0, 5] = 0, 0
    check(device, query, key, 14.3)


def test_no_chunk_is_larger_than_said(device, monkeypatch):
    sizes, empty = [], torch.Tensor.new_empty

    def measuring(self, *size, **options):
        actual = empty(self, *size, **options)
        sizes.append(actual.nbytes)
        return actual

    query, key, _ = problem(300, 300, WIDTH)
    monkeypatch.setattr(library, "CHUNK_BYTES", 64 * 4 * 300)
    monkeypatch.setattr(torch.Tensor, "new_empty", measuring)
    run(device, torch.ones(1, 300), query, key, torch.tensor(14.3))
    assert max(sizes) == 64 * 4 * 300
