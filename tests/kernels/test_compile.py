"""Every kernel, dtype and tile compiled ahead of time for four chips: no spills, within shared and tensor memory."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from cmx_fast.kernels.common.tiles import GRADIENT_TILES, SCAN_TILES

# sm_80's tiles also serve sm_86 and sm_89 with 99 KB; its own limit is 163 KB.
SHARED_BYTES = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
TENSOR_MEMORY_COLUMNS = 512
SUPCON = ("supcon", "unit supcon", "references")
SIGMOID = ("sigmoid", "unit sigmoid", "sigmoid ids", "small sigmoid")


def _cases():
    """Chip, dtype, width and call: each tile with every option at once, and those whose product or code differs."""
    for chip in SHARED_BYTES:
        for width in (64, 128, 256, 512):
            yield chip, "bfloat16", width, "everything"
            yield chip, "bfloat16", width, "supcon"
            yield chip, "bfloat16", width, "sigmoid ids"
            if chip != 80:  # there float16 has bfloat16's tiles
                yield chip, "float16", width, "distances"  # a product in TF32, and all else of a tile
        yield chip, "bfloat16", 128, "unit supcon"
        yield chip, "bfloat16", 256, "unit sigmoid"
        yield chip, "float16", 128, "sigmoid ids"
        yield chip, "float32", 512, "sigmoid ids"
        for dtype in ("bfloat16", "float32"):
            yield chip, dtype, 512, "small sigmoid"  # fused, as long products are not
        yield chip, "float32", 256, "unit sigmoid"
        yield chip, "float32", 256, "unit"
        yield chip, "float32", 512, "distances"
        yield chip, "float32", 512, "supcon"
        yield chip, "bfloat16", 128, "references"
        yield chip, "bfloat16", 128, "unit"
        for width in (128, 256, 512):
            yield chip, "bfloat16", width, "small"
        yield chip, "float16", 256, "small"
        for width in (128, 256):
            yield chip, "bfloat16", width, "banks"
        yield chip, "float16", 128, "banks"
        yield chip, "float32", 256, "banks"
        yield chip, "bfloat16", 512, "wide"
        yield chip, "float32", 512, "wide"
    # Two tiles of float32 serve every chip.
    for chip in (90, 120):
        for call in ("everything", "unit supcon", "references"):
            yield chip, "float32", 512, call
    yield 90, "bfloat16", 128, "clip"
    yield 90, "float16", 128, "supcon"
    yield 90, "float32", 32, "supcon"
    yield 90, "float16", 256, "sigmoid"
    yield 90, "float32", 32, "unit sigmoid"
    yield 90, "bfloat16", 64, "target"


@pytest.mark.parametrize(("chip", "dtype", "width", "call"), list(_cases()))
def test_fits_the_chip(compiled, chip, dtype, width, call):
    kernels = compiled[chip, dtype, width, call].result(timeout=600)
    names = {kernel.kernel for kernel in kernels}
    by_chunks = call == "wide" or (call, dtype) == ("unit", "float32")
    operator, scan = ("supcon", "supcon") if call in SUPCON else ("info_nce", "contrastive")
    gradient = "info_nce_logit_gradient_kernel" if by_chunks else f"{scan}_gradient_kernel"
    matrices = {"info_nce_bank_kernel"} if call == "banks" else {f"{scan}_scan_kernel", gradient}
    if call in SIGMOID:
        operator, matrices = "sigmoid_contrastive", {"sigmoid_contrastive_pairs_kernel"}
    assert matrices | {f"{operator}_loss_kernel", f"{operator}_finish_kernel"} <= names
    with_weights = ("clip", "wide", "everything", "distances", "target")
    assert ("info_nce_weights_kernel" in names) == (call in with_weights)
    for kernel in kernels:
        assert kernel.spilled == 0, kernel
        assert not kernel.narrow_offsets, kernel
        assert kernel.shared <= SHARED_BYTES[chip], kernel
        assert kernel.tensor_memory <= TENSOR_MEMORY_COLUMNS, kernel
        assert kernel.dots == (kernel.kernel in matrices), kernel
        if kernel.dots and dtype != "float32":
            assert kernel.matrix_instructions, kernel


def test_cases_reach_every_tile():
    """The widths above select each entry of the tables."""
    for table in (SCAN_TILES, GRADIENT_TILES):
        for (_, dtype), entries in table.items():
            widths = [largest for largest, _ in entries]
            assert widths[-1] == 2048
            assert set(widths[:-1]) <= ({64, 128, 256} if dtype != torch.float32 else set())
