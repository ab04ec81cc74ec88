"""Properties of the CUDA C++ k-means step that only the emulator shows; tests/kernels judges its results, too."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import emulated_kmeans
import numpy as np
import pytest
import torch
from emulated_cuda import COMPILER, ROOT, compile_to
from emulated_kmeans import planned_step

from cmx_fast import reference

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the emulated kernels with")
SANITIZERS = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
L2, UNIT, COSINE = ("l2", False), ("l2", True), ("cosine", False)


@pytest.fixture(autouse=True)
def one_block():
    """A device that runs one block at a time, unless a test says otherwise."""
    emulated_kmeans.library().set_resident(1)
    emulated_kmeans.library().set_order(0)


def maps(b, p, d, dtype=torch.bfloat16, gap=0, begin=0):
    """(B, P, D) with neighbouring positions, NaN before, between channels and after."""
    memory = torch.full((b * d * (p + gap) + begin + 64,), float("nan"), dtype=dtype)
    x = memory[begin:][: b * d * (p + gap)].view(b, d, p + gap)[..., :p]
    x.copy_(torch.randn(b, d, p))
    return x.transpose(1, 2)


def truth(x, centroids, weight, metric, normalize, dtype=torch.float64):
    flat = None if weight is None else weight.reshape(-1).double()
    return reference.kmeans_step(
        x.reshape(-1, x.shape[2]).to(dtype),
        centroids.to(dtype),
        weight=flat,
        metric=metric,
        normalize=normalize,
    )


def judge(x, centroids, weight, way, own=None):
    """Raise AssertionError or RuntimeError where a step is not what it should be, in both orders of the threads."""
    library, actual = own or emulated_kmeans.library(), []
    for backward in (0, 1):
        library.set_order(backward)
        actual.append(planned_step(x, centroids, weight, *way, own)[0])
    library.set_order(0)
    assert all(torch.equal(one, other) for one, other in zip(*actual))
    labels, sums, counts, inertia = actual[0]
    exact = truth(x, centroids, weight, *way)
    assert labels.reshape(-1).equal(exact[0])
    assert (sums.double() - exact[1]).norm() <= 1e-6 * exact[1].norm()
    torch.testing.assert_close(counts, exact[2], rtol=1e-6, atol=1e-6)
    assert inertia.item() == pytest.approx(exact[3].item(), rel=1e-6)


def excess(labels, x, centroids):
    """How much farther than the nearest centroid the chosen one is at most, of the product of the norms."""
    rows, centers = x.reshape(-1, x.shape[2]).double(), centroids.double()
    distances = torch.cdist(rows, centers, compute_mode="donot_use_mm_for_euclid_dist").square()
    own = distances.gather(1, labels.reshape(-1, 1))[:, 0]
    return ((own - distances.amin(1)) / (rows.norm(dim=1) * centers.norm(dim=1).max())).max().item()


def near_ties(dtype):
    """Vectors, and pairs of centroids that differ in the sixth digit."""
    torch.manual_seed(3)
    x, centroids = maps(1, 1024, 64, dtype), torch.randn(20, 64)
    centroids[1::2] = centroids[::2] * (1 + 1e-6 * torch.randn(10, 64))
    return x, centroids


def labels_are_as_near_as_float32s(dtype, own=None):
    x, centroids = near_ties(dtype)
    eager = truth(x, centroids, None, *L2, dtype=torch.float32)[0]
    limit = 1.5 * max(excess(eager, x, centroids), 6e-8)
    assert excess(planned_step(x, centroids, None, *L2, own)[0][0], x, centroids) <= limit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_labels_are_as_near_as_float32s(dtype):
    labels_are_as_near_as_float32s(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("b", "p", "d", "k", "way", "weighted"),
    [
        (2, 49, 128, 27, L2, False),
        (2, 66, 32, 27, L2, True),
        (1, 200, 96, 33, UNIT, False),
        (3, 72, 48, 64, COSINE, True),
        (2, 1, 16, 1, COSINE, False),
    ],
)
def test_right_in_both_orders_of_the_threads(b, p, d, k, way, weighted, dtype):
    emulated_kmeans.library().set_resident(2)
    judge(maps(b, p, d, dtype), torch.randn(k, d), torch.rand(b, p) if weighted else None, way)


@pytest.mark.parametrize(
    ("p", "gap", "begin"),
    [(200, 0, 0), (200, 8, 8), (197, 3, 8), (196, 0, 0), (49, 1, 2), (49, 0, 0), (64, 0, 1)],
)
def test_any_alignment_gives_the_same_bits(p, gap, begin):
    x, centroids, weight = maps(2, p, 32, gap=gap, begin=begin), torch.randn(20, 32), torch.rand(2, p)
    apart = maps(2, p, 32, gap=-p % 8 + 8)
    apart.copy_(x)
    for given in (None, weight):
        one, other = (planned_step(y, centroids, given, *UNIT)[0] for y in (x, apart))
        assert all(torch.equal(a, b) for a, b in zip(one, other))
        assert all(result.isfinite().all() for result in one)


@pytest.mark.parametrize(("resident", "plan"), [(1, (1, 3)), (2, (2, 4)), (40, (40, 40)), (1000, (158, 158))])
def test_any_number_of_blocks(resident, plan):
    emulated_kmeans.library().set_resident(resident)
    x, centroids = maps(2, 5000, 16), torch.randn(3, 16)
    assert planned_step(x, centroids, None, *L2)[1] == plan
    judge(x, centroids, torch.rand(2, 5000), UNIT)


def float32_adds_a_bounded_number_of_vectors(own=None):
    """4096 heavy ones, beside whose sum float32 would lose a tile of light ones."""
    weight = torch.full((1, 8192), 0.1)
    weight[:, :4096] = 2**16
    x = torch.ones(1, 16, 8192, dtype=torch.bfloat16).transpose(1, 2)
    _, sums, counts, _ = planned_step(x, torch.ones(1, 16), weight, *L2, own)[0]
    exact = weight.double().sum().item()
    assert counts.item() == pytest.approx(exact, rel=1e-8)
    assert sums[0].tolist() == pytest.approx([exact] * 16, rel=1e-7)


def test_float32_adds_a_bounded_number_of_vectors():
    float32_adds_a_bounded_number_of_vectors()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_vectors_of_one_sign_do_not_lose_by_rounding_toward_zero(dtype):
    x = maps(1, 4096, 16, dtype)
    x.abs_()
    judge(x, torch.randn(1, 16), torch.rand(1, 4096), UNIT)


def test_equal_centroids_go_to_the_lowest_index():
    centroids = torch.randn(50, 48)
    centroids[5:] = centroids[3]
    x = maps(2, 70, 48)
    x.copy_(centroids[3] + 1e-2 * torch.randn(2, 70, 48))
    assert (planned_step(x, centroids, None, *L2)[0][0] == 3).all()


def test_a_common_offset_leaves_the_labels_right():
    x = maps(1, 80, 16, torch.float16)
    x += 1e2
    judge(x, torch.randn(8, 16) + 1e2, None, L2)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e4, 1e12])
def test_float16_beside_centroids_that_it_could_not_hold(scale):
    x, centroids = maps(1, 100, 32, torch.float16), scale * torch.randn(9, 32)
    eager = truth(x, centroids, None, *L2, dtype=torch.float32)[0]
    actual = planned_step(x, centroids, None, *L2)[0]
    assert excess(actual[0], x, centroids) <= 1.5 * max(excess(eager, x, centroids), 6e-8)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_float16_factors_beyond_its_exponents(scale):
    x = maps(1, 100, 32, torch.float16)
    x *= scale
    judge(x, torch.randn(9, 32), 1e6 * torch.rand(1, 100), COSINE)


def test_nan_and_zero_vectors_show():
    x = maps(1, 100, 16)
    x[0, 7, 2] = float("nan")
    for way, bad in ((L2, [7]), (UNIT, [7]), (COSINE, [7, 9])):
        x[0, 9] = 0
        labels, sums, counts, inertia = planned_step(x, torch.randn(4, 16), None, *way)[0]
        assert inertia.isnan() and labels[0, 7] == 0 and counts.sum() == 100
        assert sums[0].isnan().any()
        for position in bad:
            x[0, position] = 1
        assert not planned_step(x, torch.randn(4, 16), None, *way)[0][3].isnan()
        x[0, 7, 2] = float("nan")


def test_nothing():
    for shape in ((0, 5), (2, 0)):
        x = torch.empty(shape[0], 32, shape[1], dtype=torch.bfloat16).transpose(1, 2)
        labels, sums, counts, inertia = planned_step(x, torch.randn(7, 32), None, *L2)[0]
        assert labels.shape == shape and counts.eq(0).all() and sums.eq(0).all() and inertia == 0


def test_three_launches():
    emulated_kmeans.library().launched()
    planned_step(maps(2, 300, 16), torch.randn(5, 16), torch.rand(2, 300), *COSINE)
    assert emulated_kmeans.library().launched() == 3


@pytest.mark.parametrize("far", ["channels", "samples"])
def test_elements_farther_apart_than_32_bits_count(tmp_path, far):
    step = 2**31 + 24
    memory = np.memmap(tmp_path / "sparse", dtype=np.int16, mode="w+", shape=(16 * step,))
    shape, strides = ((1, 9, 16), (0, 1, step)) if far == "channels" else ((3, 9, 16), (step, 1, 24))
    x = torch.from_numpy(memory).view(torch.bfloat16).as_strided(shape, strides)
    x.copy_(maps(*shape))
    judge(x, torch.randn(5, 16), None, L2)


def test_stays_within_its_memory(tmp_path):
    program = compile_to(tmp_path / "bounds", "kmeans_bounds.cpp", *SANITIZERS)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "48 runs\n", done.stderr


def test_the_matrix_unit_is_the_manuals(tmp_path):
    program = compile_to(tmp_path / "matrix_unit", "matrix_unit.cpp")
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "0 0 0 wrong\n"


#: One mistake each: the file, what stands there, what would stand there.
MISTAKES = {
    "no wait": ("launch", "wait_for_groups<kStages - 2>();", "wait_for_groups<kStages - 1>();"),
    "no barrier behind a tile": ("launch", "__syncthreads();  // the tile", "// the tile"),
    "no barrier behind scores": ("launch", "__syncthreads();\n    if", "if"),
    "no barrier behind labels": (
        "launch",
        "__syncthreads_or(step.measure(place, stage))",
        "step.measure(place, stage)",
    ),
    "a tile in use is overwritten": ("launch", "(stage + kStages - 1) % kStages);", "stage);"),
    "positions beyond the last count": ("step", "inside[1] ? label[1] : kNobody", "label[1]"),
    "the next channel is read": ("vectors", "min(inside - p, VECTOR)", "inside * 0 + VECTOR"),
    "of equals the last lane": ("step", "others_label < label", "others_label > label"),
    "of equals the last register": ("step", "value > best[m][r]", "value >= best[m][r]"),
    "of equals the last warp": ("step", "kTile + p] > best", "kTile + p] >= best"),
    "centroids in 16 digits": ("centroids", "kParts = 3", "kParts = 2"),
    "factors in 16 digits": ("step", "kFactorParts = 3", "kFactorParts = 2"),
    "float32 adds without end": ("step", "kMostTiles = 4096 / kTile", "kMostTiles = 1 << 20"),
    "sums go on": ("step", "sums_[i][run][j] = 0;", ""),
}


def judge_all(own):
    """Go every way through the kernels once: any of the mistakes must fail here."""
    torch.manual_seed(0)
    own.set_resident(1)
    judge(maps(2, 145, 32), torch.randn(27, 32), None, L2, own)
    judge(maps(1, 49, 16, gap=3), torch.randn(40, 16), torch.rand(1, 49), UNIT, own)
    judge(maps(1, 4200, 16), torch.randn(3, 16), None, L2, own)
    float32_adds_a_bounded_number_of_vectors(own)
    x, centroids = maps(1, 64, 16), torch.randn(50, 16)
    centroids[4:] = centroids[3]
    labels = planned_step(x, centroids, None, *L2, own)[0][0]
    assert not labels.gt(3).any() and labels.eq(3).any()
    labels_are_as_near_as_float32s(torch.bfloat16, own)


def found_wrong(own):
    """True if judge_all objects to a library. It runs in a process of its own, since an index may be anything."""

    def judge_it():
        faulthandler.disable()  # a crash is a finding here, and not to be printed
        torch.set_num_threads(1)  # the other threads stay behind
        try:
            judge_all(own)
        except (AssertionError, RuntimeError):
            os._exit(1)

    process = multiprocessing.get_context("fork").Process(target=judge_it)
    process.start()
    process.join()
    return process.exitcode != 0


def compile_with(mistake, folder):
    """The library of kernels with a mistake, for bfloat16, which judge_all takes."""
    part, stands, wrong = MISTAKES[mistake]
    shutil.copytree(ROOT / "csrc/cuda", folder / "cuda")
    source = folder / f"cuda/kmeans_{part}.cuh"
    assert source.read_text().count(stands) == 1
    source.write_text(source.read_text().replace(stands, wrong))
    return compile_to(
        folder / "own.so", "kmeans.cpp", "-O1", "-DONLY_BFLOAT16", "-fPIC", "-shared", first=folder
    )


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory):
    """The libraries, two compilers at a time."""
    folder = tmp_path_factory.mktemp("mistakes")
    with ThreadPoolExecutor(2) as pool:
        yield {
            mistake: pool.submit(compile_with, mistake, folder / str(number))
            for number, mistake in enumerate(MISTAKES)
        }


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows(mistaken, mistake):
    assert found_wrong(emulated_kmeans.load(mistaken[mistake].result()))


def test_there_is_none():
    assert not found_wrong(emulated_kmeans.library())
