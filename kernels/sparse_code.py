"""Unrolled ISTA on the GPU: launchers of the forward and the backward pass.

Algorithm: in Gram form a step is a' = max(0, a + r), r' = r + (a' - a) N with N = -eta D^T D (k x k) and
r = eta (D^T (x - D a) - lambda). Tile and owner: a program owns BLOCK vectors and keeps their codes and r,
(BLOCK, ATOMS), and N, (ATOMS, ATOMS), through all steps. The products with D are the library's, a chunk of vectors at a
time; so are the sums behind the dictionary's gradient, over codes and gradients of all steps that the backward program
leaves in a buffer for the chunk.

Why it is right: r is updated by the *change* of the codes, so a rounding error in a step shrinks with the change as the
codes settle, where recomputing D^T (x - D a) would round at the size of x each time. Backward runs the steps again,
keeps the codes before each, and walks back through max(0, .), whose gradient passes where the code is positive. Sums
over chunks are float64. Memory: the steps of one chunk of 32768 vectors, whatever their number.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.arguments import check_dtype, on_own_device, without_autocast
from cmx_fast.kernels.common.grids import ceil_div, next_power_of_2

__all__ = ["sparse_code_bwd", "sparse_code_fwd"]

BLOCK = 32  # vectors of a program
CHUNK = 1 << 15  # vectors whose steps are in memory at once
MOST_ATOMS = 128


@triton.jit
def sparse_code_forward_kernel(
    r_ptr,  # (n, k) eta (D^T x - lambda)
    transition_ptr,  # (k, k)
    codes_ptr,  # out, (n, k)
    n,
    K,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    ATOMS: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.arange(0, ATOMS)
    mask = (i < n)[:, None] & (a < K)[None, :]
    square = (a < K)[:, None] & (a < K)[None, :]
    # (ATOMS, ATOMS), then (BLOCK, ATOMS)
    transition = tl.load(transition_ptr + a[:, None] * K + a[None, :], mask=square, other=0.0)
    r = tl.load(r_ptr + i[:, None] * K + a[None, :], mask=mask, other=0.0)
    codes = tl.where(r < 0, 0.0, r)
    change = codes
    for _ in range(1, STEPS):
        r = tl.dot(change, transition, r, input_precision="ieee")
        total = codes + r
        following = tl.where(total < 0, 0.0, total)
        change = following - codes
        codes = following
    # (BLOCK, ATOMS)
    tl.store(codes_ptr + i[:, None] * K + a[None, :], codes.to(codes_ptr.dtype.element_ty), mask=mask)


@triton.jit
def sparse_code_backward_kernel(
    grad_ptr,  # (n, k)
    r_ptr,
    transition_ptr,
    before_ptr,  # out, (STEPS - 1, n, k) codes before each step but the first
    through_ptr,  # out, (STEPS - 1, n, k) gradients by the sums codes + r of these steps
    by_r_ptr,  # out, (n, k) gradient by the first r
    n,
    K,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    ATOMS: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.arange(0, ATOMS)
    mask = (i < n)[:, None] & (a < K)[None, :]
    square = (a < K)[:, None] & (a < K)[None, :]
    # (ATOMS, ATOMS), then (BLOCK, ATOMS)
    transition = tl.load(transition_ptr + a[:, None] * K + a[None, :], mask=square, other=0.0)
    place = i[:, None] * K + a[None, :]
    layer = tl.cast(n, tl.int64) * K
    r = tl.load(r_ptr + place, mask=mask, other=0.0)
    codes = tl.where(r < 0, 0.0, r)
    change = codes
    for t in range(1, STEPS):
        tl.store(before_ptr + (t - 1) * layer + place, codes, mask=mask)
        r = tl.dot(change, transition, r, input_precision="ieee")
        total = codes + r
        following = tl.where(total < 0, 0.0, total)
        change = following - codes
        codes = following
    # (BLOCK, ATOMS)
    gradient = tl.load(grad_ptr + place, mask=mask, other=0.0).to(tl.float32)
    by_r = tl.zeros((BLOCK, ATOMS), tl.float32)
    for back in range(1, STEPS):
        t = STEPS - back
        gradient = tl.where(codes > 0, gradient, 0.0)
        by_r += gradient
        tl.store(through_ptr + (t - 1) * layer + place, gradient, mask=mask)
        codes = tl.load(before_ptr + (t - 1) * layer + place, mask=mask, other=0.0)
        gradient = tl.dot(gradient, transition, gradient, input_precision="ieee")
    gradient = tl.where(codes > 0, gradient, 0.0)
    # (BLOCK, ATOMS)
    tl.store(by_r_ptr + place, by_r + gradient, mask=mask)


def _options(k: int, steps: int) -> dict:
    if k > MOST_ATOMS:
        raise ValueError(f"the Triton kernels take at most {MOST_ATOMS} atoms, got {k}; use impl='reference'")
    atoms = max(16, next_power_of_2(k))
    return {"STEPS": steps, "BLOCK": BLOCK, "ATOMS": atoms, "num_warps": 8, "num_stages": 1}


def _chunks(x: Tensor):
    """Pairs of a chunk's first index and its vectors (n, C) in float32, at most CHUNK at a time."""
    rows = x.reshape(-1, x.shape[2])
    for begin in range(0, len(rows), CHUNK):
        yield begin, rows[begin : begin + CHUNK].float()


@on_own_device
@without_autocast
def sparse_code_fwd(x: Tensor, dictionary: Tensor, step_size: Tensor, lam: float, steps: int) -> Tensor:
    """The operator ``cmx_fast::sparse_code_fwd`` for CUDA.

    Args:
        x: (B, P, C) float32, bfloat16 or float16; dictionary: (C, k) float32; step_size: 0-d float32.

    Returns:
        codes (B, P, k) in the dtype of x.
    """
    check_dtype(x)
    k = dictionary.shape[1]
    options = _options(k, steps)
    codes = x.new_empty(*x.shape[:2], k)
    transition = -step_size * (dictionary.T @ dictionary)
    for begin, rows in _chunks(x):
        r = step_size * (rows @ dictionary - lam)
        out = codes.view(-1, k)[begin : begin + len(rows)]
        sparse_code_forward_kernel[(ceil_div(len(rows), BLOCK),)](r, transition, out, len(rows), k, **options)
    return codes


@on_own_device
@without_autocast
def sparse_code_bwd(
    grad_codes: Tensor, x: Tensor, dictionary: Tensor, step_size: Tensor, lam: float, steps: int
) -> tuple[Tensor, Tensor]:
    """The operator ``cmx_fast::sparse_code_bwd`` for CUDA: dx, laid out like x, and the dictionary's gradient.

    Memory: 2 (T - 1) x 32768 x k float32 for the steps of a chunk.
    """
    k = dictionary.shape[1]
    options = _options(k, steps)
    transition = -step_size * (dictionary.T @ dictionary)
    dx = x.new_empty(x.shape)
    upstream = grad_codes.reshape(-1, k)
    by_scaled = torch.zeros_like(dictionary, dtype=torch.float64)
    by_transition = dictionary.new_zeros(k, k, dtype=torch.float64)
    for begin, rows in _chunks(x):
        n = len(rows)
        r = step_size * (rows @ dictionary - lam)
        before, through = (r.new_empty(max(steps - 1, 1), n, k) for _ in "bt")
        by_r = torch.empty_like(r)
        sparse_code_backward_kernel[(ceil_div(n, BLOCK),)](
            upstream[begin : begin + n], r, transition, before, through, by_r, n, k, **options
        )
        if steps > 1:
            by_transition += before.view(-1, k).T @ through.view(-1, k)
        by_scaled += rows.T @ by_r
        dx.view(-1, x.shape[2])[begin : begin + n] = step_size * (by_r @ dictionary.T)
    pulled = by_scaled - dictionary.double() @ (by_transition + by_transition.T)
    out = torch.empty_like(x)
    return out.copy_(dx) if out.stride() != dx.stride() else dx, (step_size * pulled).float()
