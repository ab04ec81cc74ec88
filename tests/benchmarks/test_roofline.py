"""The cost model against products counted in the kernels, and against itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from cmx_fast.benchmarks.device import machine_rates, roofline

pytest.importorskip("triton")
import triton.runtime.interpreter

pytestmark = [
    pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="products are counted under Triton's interpreter"),
]


@pytest.fixture
def products(monkeypatch):
    """Floating-point operations of the tiles' products; sizes below fill their tiles."""
    builder = triton.runtime.interpreter.InterpreterBuilder
    dot, counted = builder.create_dot, []

    def counting(self, a, b, *rest):
        counted.append(2.0 * a.data.shape[-2] * a.data.shape[-1] * b.data.shape[-1])
        return dot(self, a, b, *rest)

    monkeypatch.setattr(builder, "create_dot", counting)
    return counted


def rows(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize("d", [64, 128])
def test_info_nce(products, d):
    from cmx_fast.kernels.info_nce.launchers import info_nce_bwd, info_nce_fwd

    x, y, scale = rows(1, 192, d), rows(1, 192, d), torch.ones(())
    for symmetric in (True, False):
        products.clear()
        options = True, False, "dot", symmetric, True, 0.0
        _, *saved = info_nce_fwd(x, y, scale, [], None, *options, False)
        info_nce_bwd(torch.ones(1, 192), x, y, scale, [], None, *options, *saved, True, True)
        assert sum(products) == roofline.info_nce(192, 192, d, 4, symmetric=symmetric).products


def test_wide_info_nce(products, monkeypatch):
    from cmx_fast.kernels.common import library
    from cmx_fast.kernels.info_nce import chunks as info_nce_chunks
    from cmx_fast.kernels.info_nce.launchers import info_nce_bwd, info_nce_fwd

    accumulate = info_nce_chunks.accumulate

    def counting(total, h, matrix):
        products.append(2.0 * h.numel() * matrix.shape[1])
        accumulate(total, h, matrix)

    monkeypatch.setattr(info_nce_chunks, "accumulate", counting)
    monkeypatch.setattr(library, "FEWEST_MULTIPLICATIONS", 0)
    x, y, scale = rows(1, 128, 256), rows(1, 128, 256), torch.ones(())
    options = True, False, "dot", True, False, 0.0
    _, *saved = info_nce_fwd(x, y, scale, [], None, *options, False)
    info_nce_bwd(torch.ones(1, 128), x, y, scale, [], None, *options, *saved, True, True)
    assert sum(products) == roofline.info_nce(128, 128, 256, 4).products


@pytest.mark.parametrize("keep", [True, False])
def test_bank(products, keep):
    from cmx_fast.kernels.info_nce.launchers import info_nce_bwd, info_nce_fwd

    d = 64 if keep else 512
    x, y, scale, bank = rows(1, 64, d), rows(1, 64, d), torch.ones(()), [rows(256, d)]
    options = False, False, "dot", False, True, 0.0
    _, *saved = info_nce_fwd(x, y, scale, bank, None, *options, keep)
    info_nce_bwd(torch.ones(1, 64), x, y, scale, bank, None, *options, *saved, True, False)
    # A wide gradient is made in parts of 128 features, each with its own similarities.
    again = 0 if keep else 3 * 2.0 * 64 * 256 * d
    assert sum(products) == roofline.bank(64, 256, d, 4).products + again


def test_supcon(products):
    from cmx_fast.kernels.supcon.launchers import supcon_bwd, supcon_fwd

    x, labels, scale = rows(192, 64), torch.arange(192) % 7, torch.ones(())
    _, *saved = supcon_fwd(x, labels, scale, None, None, True, False)
    supcon_bwd(torch.ones(192), x, labels, scale, None, None, True, *saved, True, False)
    assert sum(products) == roofline.supcon(192, 64, 4).products


def test_sigmoid_contrastive(products):
    from cmx_fast.kernels.sigmoid_contrastive.launchers import (
        sigmoid_contrastive_bwd,
        sigmoid_contrastive_fwd,
    )

    x, y = rows(1, 128, 64), rows(1, 192, 64)
    inputs = x, y, torch.ones(()), torch.zeros(()), None, None, True, True
    loss, *saved = sigmoid_contrastive_fwd(*inputs, True, True)
    sigmoid_contrastive_bwd(torch.ones_like(loss), *inputs, *saved, True, True)
    assert sum(products) == roofline.sigmoid_contrastive(128, 192, 64, 4).products


def test_cluster_cross_entropy(products):
    from cmx_fast.kernels.cluster_cross_entropy import cluster_cross_entropy_bwd, cluster_cross_entropy_fwd

    x, centroids = rows(1, 512, 64), rows(32, 64)
    losses, lse, labels = cluster_cross_entropy_fwd(x, centroids, None, True)
    cluster_cross_entropy_bwd(losses, x, centroids, labels, lse, True)
    assert sum(products) == roofline.cluster_cross_entropy(512, 64, 32, 4).products


@pytest.mark.parametrize(("d", "e"), [(32, 32), (64, 64)])
def test_attention(products, d, e):
    from cmx_fast.kernels.attention import attention_bwd, attention_fwd

    query, key, value = (torch.randn(1, 128, width) for width in (d, d, e))
    out, lse = attention_fwd(query, key, value, 1.0)
    attention_bwd(out, query, key, value, lse, 1.0, True, True, True)
    assert sum(products) == roofline.attention(1, 128, 128, d, e, 4).products


def test_dense_scores(products):
    from cmx_fast.kernels.dense_scores.launchers import dense_scores_bwd, dense_scores_fwd

    query, key = torch.randn(2, 64, 32), torch.randn(2, 128, 32)
    options = None, None, "mean", 1, False
    scores, *kept = dense_scores_fwd(query, key, *options, True)
    dense_scores_bwd(scores, query, key, *options[:2], *kept, *options[2:], True, True)
    assert sum(products) == roofline.dense_scores(2, 64, 128, 32, 4).products


@pytest.mark.parametrize("steps", [3, 10])
def test_sparse_code(products, steps):
    from cmx_fast.kernels.sparse_code import sparse_code_bwd, sparse_code_fwd

    x, dictionary, size = rows(1, 128, 16), rows(16, 32), torch.full((), 0.01)
    codes = sparse_code_fwd(x, dictionary, size, 0.1, steps)
    sparse_code_bwd(codes, x, dictionary, size, 0.1, steps)
    assert sum(products) == roofline.sparse_code(128, 16, 32, steps).products


def test_kmeans_of_many_clusters(products):
    from cmx_fast.kernels.kmeans.launchers import kmeans_step

    kmeans_step(rows(1, 512, 64), rows(1024, 64), torch.ones(1, 512), "l2", True)
    assert sum(products) == roofline.kmeans_step(512, 64, 1024, 4).products


def test_twice_the_rows_are_four_times_the_products_and_a_faster_chip_is_faster():
    small, large = roofline.info_nce(4096, 4096, 256, 2), roofline.info_nce(8192, 8192, 256, 2)
    assert large.products == 4 * small.products
    times = [large.seconds(chip) for chip in roofline.CHIPS]
    assert times == sorted(times, reverse=True)
    assert roofline.info_nce(64, 64, 64, 2).bound(roofline.CHIPS[0]) == "launches"


def test_every_case_of_the_suite_has_a_limit_or_none_of_our_kernels(capsys):
    without = {case.task for case in roofline.DEVICE_CASES if roofline.cost(case) is None}
    assert without == {"CBAM", "channel attention", "two banks"}
    roofline.main()
    assert len(capsys.readouterr().out.splitlines()) > 20


#: Rows of the page's table, in its order.
ON_THE_PAGE = (
    "floors/info_nce-small-1024", "floors/info_nce-32768x512", "floors/info_nce-bank", "floors/supcon-16384x128",
    "floors/kmeans-27", "floors/kmeans-1024", "floors/pyramid_correlation", "attention/device",
    "gates/device-squeeze-excite-56", "band_spectrogram/device-log-mel",
)  # fmt: skip


def test_the_page_says_what_the_model_does():
    page = (Path(__file__).parents[2] / "docs/performance.md").read_text()
    rows = page.split("| bound by |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    assert len(rows) == len(ON_THE_PAGE)
    for row, name in zip(rows, ON_THE_PAGE):
        *times, bound = (cell.strip() for cell in row.strip("| ").split("|")[1:])
        case = next(case for case in roofline.DEVICE_CASES if case.name == name)
        cost = roofline.cost(case)
        least = [1e3 * cost.seconds(chip, case.dtype) for chip in roofline.CHIPS]
        assert [float(time) for time in times] == pytest.approx(least, rel=0.05), row
        h200 = next(chip for chip in roofline.CHIPS if chip.name == "H200")
        assert bound == cost.bound(h200, case.dtype), row


def test_the_line_beside_a_measurement():
    case = next(case for case in roofline.DEVICE_CASES if case.name == "floors/info_nce-32768x512")
    line = roofline.beside(case, "NVIDIA H200")
    assert line.startswith("limit of H200: 7.01 ms (products; 5.5e+12 operations")
    assert roofline.beside(case, "another chip") == "no limit is known"


def test_this_machine_s_own_rates_are_a_chip(monkeypatch):
    monkeypatch.setattr(machine_rates, "SIDE", {"cpu": 128})
    monkeypatch.setattr(machine_rates, "COPIED", {"cpu": 2**16})
    monkeypatch.setattr(machine_rates, "CPU_CACHE", 2**18)
    here = machine_rates.measured("cpu")
    assert min(here.bfloat16, here.float32, here.memory) > 1e6
    assert machine_rates.describe(here).count("TFLOP/s") == 1
    case = next(case for case in roofline.DEVICE_CASES if case.name == "floors/info_nce-32768x512")
    fast = dataclasses.replace(here, bfloat16=1e15, memory=1e13)
    least = 1e3 * roofline.cost(case).seconds(fast)
    line = f"at the rates of this run: {least:.3g} ms"
    assert (
        roofline.beside(case, "another chip", fast, 20.0) == f"{line}, {least / 20:.0%} of the time measured"
    )
    assert roofline.beside(case, "NVIDIA H200", fast).endswith(f"; {line}")


def test_inputs_of_the_ceilings_rotate_past_the_cache(monkeypatch):
    monkeypatch.setattr(machine_rates, "CPU_CACHE", 1000)
    made = []
    rotating = machine_rates._rotating(lambda: made.append(torch.zeros(100)) or (made[-1],), "cpu")
    drawn = [next(rotating)[0] for _ in range(2 * len(made))]
    assert 400 * len(made) >= machine_rates.TIMES_CACHE * 1000
    assert all(one is other for one, other in zip(drawn, made * 2))
