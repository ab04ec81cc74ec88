"""Properties of the CUDA C++ kernels that only the emulator shows; their results are judged in tests/kernels."""

from __future__ import annotations

import ctypes
import subprocess

import emulated_cuda
import numpy as np
import pytest
import torch
from emulated_cuda import COMPILER, arguments, compile_to
from operator_contract import FLOOR, vector_error

from cmx_fast import reference

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the emulated kernels with")
SANITIZERS = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def layouts(features):
    """The same values as the kernels may find them in memory."""
    batch, channels, times, height, width = features.shape
    wide = features.new_empty(batch, channels, times, height, width + 1)
    even = features.new_empty(batch, channels, times, height, width + 2)
    spread = features.new_empty(batch, 2 * channels, times, height, width)
    shifted = features.new_empty(features.numel() + 1)[1:].view(features.shape)
    return {
        "channels first": features,
        "channels last": features.to(memory_format=torch.channels_last_3d),
        "frames last": features.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3),
        "columns of more": wide[..., :width].copy_(features),
        "even columns of more": even[..., :width].copy_(features),
        "every other channel": spread[:, ::2].copy_(features),
        "unaligned": shifted.copy_(features),
        "one sample often": features[:1].expand_as(features),
    }


def forward_and_backward(features, filters, pull, levels, norm):
    attention, *kept = emulated_cuda.pyramid_correlation_fwd(features, filters, levels, norm)
    gradients = emulated_cuda.pyramid_correlation_bwd(pull, features, filters, attention, *kept, levels, norm)
    return attention, *gradients


def eager(features, filters, pull, levels, norm, dtype):
    leaves = [t.detach().clone().to(dtype).requires_grad_() for t in (features, filters)]
    attention = reference.pyramid_correlation(*leaves, levels=levels, norm=norm)
    return attention.detach(), *torch.autograd.grad(attention, leaves, pull.to(attention.dtype))


def inputs(shape, dtype=torch.float32):
    # Activations of a network: an offset that the channels share.
    features = (torch.randn(shape) + 0.5).to(dtype)
    # Products of about 1: a softmax of far larger ones is that of two positions, and anybody's error by chance.
    return features, torch.randn(shape[:2]) / shape[1] ** 0.5, torch.randn(shape[0], *shape[2:])


@pytest.mark.parametrize(
    ("layout", "dtype", "levels", "neighbours"),
    [
        ("channels first", torch.float32, 1, 4),
        ("channels first", torch.float32, 3, 4),
        ("channels first", torch.bfloat16, 1, 8),
        ("channels first", torch.bfloat16, 2, 8),
        (
            "channels first",
            torch.float16,
            3,
            4,
        ),  # 8 bytes: a patch of 4 x 8 positions takes too many registers
        ("channels last", torch.float32, 2, -4),
        ("channels last", torch.bfloat16, 3, -8),
        ("frames last", torch.bfloat16, 2, 1),
        ("columns of more", torch.bfloat16, 2, 1),
        ("even columns of more", torch.bfloat16, 1, 2),
        ("even columns of more", torch.float16, 3, 2),
        ("even columns of more", torch.float32, 3, 1),
        ("every other channel", torch.bfloat16, 2, 8),
        ("unaligned", torch.bfloat16, 2, 1),
        ("one sample often", torch.bfloat16, 2, 8),
    ],
)
def test_vectors_where_the_layout_allows(layout, dtype, levels, neighbours):
    features, filters, _ = inputs((2, 16, 3, 4, 8), dtype)
    described = arguments(layouts(features)[layout], filters, levels, "cosine")
    assert emulated_cuda.library().layout(ctypes.byref(described)) == neighbours


@pytest.mark.parametrize(
    ("size", "levels", "dtype"),
    [
        *(((8, 40, 1, 6, 8), levels, torch.float32) for levels in (1, 2, 3)),
        *(((16, 17, 1, 5, 7), levels, torch.float32) for levels in (1, 2, 3)),
        ((8, 40, 1, 6, 8), 1, torch.bfloat16),
        ((8, 40, 1, 6, 8), 3, torch.bfloat16),
        ((8, 40, 1, 6, 8), 2, torch.float16),
        ((8, 17, 1, 5, 7), 2, torch.bfloat16),
    ],
)
def test_error_is_at_most_eagers_in_every_layout(size, levels, dtype):
    features, *others = inputs(size, dtype)
    for norm in emulated_cuda.NORMS:
        for name, laid_out in layouts(features).items():
            given_all = laid_out, *others, levels, norm
            truth, ordinary = eager(*given_all, torch.float64), eager(*given_all, dtype)
            for actual, own, exact in zip(forward_and_backward(*given_all), ordinary, truth):
                limit = 1.5 * max(vector_error(own, exact), FLOOR[actual.dtype])
                assert vector_error(actual, exact) <= limit, (name, norm)


@pytest.mark.parametrize("layout", ["channels first", "channels last", "even columns of more"])
@pytest.mark.parametrize("norm", emulated_cuda.NORMS)
def test_the_same_bits_in_another_order_of_the_threads(layout, norm):
    features, *others = inputs((2, 72, 2, 9, 16), torch.bfloat16)
    results = []
    for backward in (0, 1):
        emulated_cuda.library().set_order(backward)
        results.append(forward_and_backward(layouts(features)[layout], *others, 3, norm))
    emulated_cuda.library().set_order(0)
    assert all(one.equal(other) for one, other in zip(*results))


@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_the_same_bits_in_any_batch(layout):
    features, *others = inputs((40, 33, 1, 4, 8))
    features = layouts(features)[layout]
    alone = forward_and_backward(*(t[:1] for t in (features, *others)), 2, "cosine")
    together = forward_and_backward(features, *others, 2, "cosine")
    assert all(one.equal(all_of_them[:1]) for one, all_of_them in zip(alone, together))


@pytest.mark.parametrize("norm", emulated_cuda.NORMS)
def test_two_launches_each_way(norm):
    features, filters, pull = inputs((1, 4, 1, 4, 4))
    emulated_cuda.library().launched()
    attention, *kept = emulated_cuda.pyramid_correlation_fwd(features, filters, 2, norm)
    assert emulated_cuda.library().launched() == 2
    emulated_cuda.pyramid_correlation_bwd(pull, features, filters, attention, *kept, 2, norm)
    assert emulated_cuda.library().launched() == 2


@pytest.mark.parametrize("far", ["channels", "rows"])
def test_elements_farther_apart_than_32_bits_count(tmp_path, far):
    step = 2**31 + 24
    memory = np.memmap(tmp_path / "sparse", dtype=np.int16, mode="w+", shape=(3 * step,))
    strides = (48, step, 48, 8, 1) if far == "channels" else (16, 8, 48, step, 1)
    shape = (2, 3, 1, 2, 8) if far == "channels" else (2, 2, 1, 3, 8)
    features = torch.from_numpy(memory).view(torch.bfloat16).as_strided(shape, strides)
    near, filters, pull = inputs(shape, torch.bfloat16)
    features.copy_(near)
    actual = forward_and_backward(features, filters, pull, 2, "cosine")
    for one, expected in zip(actual, forward_and_backward(near, filters, pull, 2, "cosine")):
        torch.testing.assert_close(one, expected)


def test_stays_within_its_memory(tmp_path):
    program = compile_to(tmp_path / "bounds", "bounds.cpp", *SANITIZERS)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "288 runs\n", done.stderr


def test_the_emulator_finds_mistakes(tmp_path):
    program = compile_to(tmp_path / "mistakes", "mistakes.cpp")
    shown = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert dict(line.split(": ") for line in shown.splitlines()) == {
        "diverging_barrier": "refused",
        "diverging_shuffle": "refused",
        "beyond_shared_memory": "refused",
        "unwritten_shared_memory": "NaN",
        "missing_barrier": "depends on the order",
        "unawaited_copy": "NaN",
        "copy_into_what_is_read": "depends on the order",
        "copy_of_the_group_before": "NaN",
        "abandoned_copy": "refused",
        "unaligned_copy": "refused",
        "unaligned_row": "refused",
        "diverging_product": "refused",
        "sound_copy": "sound",
        "sound": "sound",
    }
