"""Attention on the GPU for heads of any sizes: launchers of the forward and the backward pass.

Algorithm: FlashAttention's, with heads of queries (D) and of values (E) walked in chunks, so neither has a largest
size; the scores are computed anew for every chunk of the output. Forward, an online softmax. Backward, the weights are
made again from the saved row statistics, and the gradients follow Note [Slopes less their mean].

Tile and owner: a program of the forward pass owns ROWS queries and OUT features of their output, walks all keys COLS at
a time and accumulates (ROWS, OUT) in float32. Backward, a program owns ROWS keys and a chunk of dvalue or of dkey, or
ROWS queries and a chunk of dquery, and walks all rows of the other side; every element is one program's, nothing is
added atomically. Score tiles are (ROWS, COLS) and no score outlives its tile. Three launches.

Why it is right: scores accumulate in float32, the running maximum is subtracted before the scale multiplies
(Note [Difference first], kernels/common/logits.py), and columns beyond the last have weight 0. Weights are rounded to
the inputs' dtype for the product with the values, a relative error of each. Memory: two floats per query, and one more
backward.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.arguments import check_dtype, contiguous, on_own_device
from cmx_fast.kernels.common.grids import ceil_div, next_power_of_2
from cmx_fast.kernels.common.logits import LOG2E, chunked_products, load_tile, load_vector
from cmx_fast.kernels.common.tiles import INTERPRETED, architecture, dot_precision, upcast

__all__ = ["attention_bwd", "attention_fwd"]


# Note [Slopes less their mean]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# With weights p_ij, the slopes x_ij = <dout_i, v_j> and their mean m_i = sum_j p_ij x_ij, the gradient by a score is
# p_ij (x_ij - m_i). m_i equals <dout_i, out_i>, but is summed here from the very slopes that it is subtracted from:
# where one weight is 1 the two cancel, while <dout_i, out_i> would leave the rounding of the output times the slope.


class AttentionTile(NamedTuple):
    """A program's tile: ``rows`` x ``cols`` scores from ``depth`` features at a time, ``out`` features of a result."""

    rows: int
    cols: int
    depth: int
    out: int
    warps: int
    stages: int


# By architecture and whether an element takes two bytes; "sm80" also serves what has no entry of its own.
FORWARD_TILES = {
    ("sm80", True): AttentionTile(64, 64, 64, 128, 8, 2),
    ("sm80", False): AttentionTile(32, 32, 32, 128, 4, 2),
    ("sm90", True): AttentionTile(128, 64, 64, 256, 8, 2),
    ("sm100", True): AttentionTile(128, 64, 64, 256, 8, 2),
}
BACKWARD_TILES = {
    ("sm80", True): AttentionTile(64, 32, 64, 128, 8, 2),
    ("sm80", False): AttentionTile(32, 32, 16, 64, 8, 2),
    ("sm90", True): AttentionTile(64, 64, 64, 128, 8, 2),
    ("sm100", True): AttentionTile(128, 32, 64, 128, 8, 2),
    ("sm100", False): AttentionTile(16, 32, 16, 64, 4, 2),
    # sm_80's deeper chunks spill here: the assembler counts differently on this chip.
    ("sm120", True): AttentionTile(64, 32, 32, 128, 8, 2),
}


@triton.jit
def add_product(acc, p, x):
    """``acc + p @ x`` with the float32 p rounded to the dtype of x."""
    return tl.dot(p.to(x.dtype), x, acc, input_precision="ieee")


@triton.jit
def attention_forward_kernel(
    q_ptr,  # (B, N, D)
    k_ptr,  # (B, M, D)
    v_ptr,  # (B, M, E)
    out_ptr,  # out, (B, N, E)
    stats_ptr,  # out, (B, 2, N): each row's largest product, and the sum of exponentials below it
    N,
    M,
    D,
    E,
    n_chunks,
    scale,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    OUT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    pid = tl.program_id(0)
    n_blocks = tl.cdiv(N, ROWS)
    row0 = pid % n_blocks * ROWS
    pid = pid // n_blocks
    out0 = pid % n_chunks * OUT
    batch = (pid // n_chunks).to(tl.int64)
    q_ptr += batch * N * D
    k_ptr += batch * M * D
    v_ptr += batch * M * E
    scale2 = scale * LOG2E
    cols = tl.arange(0, COLS)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, OUT), tl.float32)
    for col0 in range(0, M, COLS):
        u = chunked_products(q_ptr, row0, N, k_ptr, col0, M, D, ROWS, COLS, DEPTH, PRECISION, UPCAST)
        u = tl.where((col0 + cols < M)[None, :], u, float("-inf"))
        above = tl.maximum(largest, tl.max(u, 1))
        # A row of NaN may have no maximum; its exponentials stay NaN.
        shift = tl.where(above == float("-inf"), 0.0, above)
        # The difference first: large scores keep their digits.
        p = tl.exp2((u - shift[:, None]) * scale2)
        shrink = tl.exp2((largest - shift) * scale2)
        total = total * shrink + tl.sum(p, 1)
        # (COLS, OUT)
        v = load_tile(v_ptr, col0, M, out0, E, COLS, OUT, UPCAST)
        acc = add_product(acc * shrink[:, None], p, v)
        largest = above
    rows = row0 + tl.arange(0, ROWS)
    features = out0 + tl.arange(0, OUT)
    # (ROWS, OUT)
    address = out_ptr + (batch * N + rows.to(tl.int64))[:, None] * E + features[None, :]
    tl.store(address, acc / total[:, None], mask=(rows < N)[:, None] & (features < E)[None, :])
    # (ROWS,): the same in every chunk of features; the first one stores them.
    stats_ptr += 2 * batch * N + rows
    tl.store(stats_ptr, tl.where(largest == float("-inf"), 0.0, largest), mask=(rows < N) & (out0 == 0))
    tl.store(stats_ptr + N, total, mask=(rows < N) & (out0 == 0))


@triton.jit
def attention_mean_slope_kernel(
    q_ptr,  # (B, N, D)
    k_ptr,  # (B, M, D)
    grad_ptr,  # (B, N, E)
    v_ptr,  # (B, M, E)
    stats_ptr,  # (B, 2, N)
    mean_ptr,  # out, (B, N): of the slopes <grad, v> under the softmax
    N,
    M,
    D,
    E,
    scale,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    pid = tl.program_id(0)
    n_blocks = tl.cdiv(N, ROWS)
    row0 = pid % n_blocks * ROWS
    batch = (pid // n_blocks).to(tl.int64)
    q_ptr += batch * N * D
    k_ptr += batch * M * D
    grad_ptr += batch * N * E
    v_ptr += batch * M * E
    stats_ptr += 2 * batch * N
    # (ROWS,) each
    row_highest = load_vector(stats_ptr, row0, N, 0.0, ROWS)
    row_share = 1 / load_vector(stats_ptr + N, row0, N, 1.0, ROWS)
    total = tl.zeros((ROWS,), tl.float32)
    for col0 in range(0, M, COLS):
        u = chunked_products(q_ptr, row0, N, k_ptr, col0, M, D, ROWS, COLS, DEPTH, PRECISION, UPCAST)
        slope = chunked_products(grad_ptr, row0, N, v_ptr, col0, M, E, ROWS, COLS, DEPTH, PRECISION, UPCAST)
        inside = (col0 + tl.arange(0, COLS) < M)[None, :]
        weights = tl.exp2((u - row_highest[:, None]) * (scale * LOG2E)) * row_share[:, None]
        total += tl.sum(tl.where(inside, weights * slope, 0.0), 1)
    rows = row0 + tl.arange(0, ROWS)
    # (ROWS,)
    tl.store(mean_ptr + batch * N + rows, total, mask=rows < N)


@triton.jit
def store_gradient(
    pid,
    a_ptr,  # (B, n_a, D): the rows that the result belongs to, queries or keys
    b_ptr,  # (B, n_b, D): the others
    a_wide_ptr,  # (B, n_a, E): the queries' upstream gradient, or the keys' values
    b_wide_ptr,  # (B, n_b, E)
    stats_ptr,  # (B, 2, N): of the queries
    mean_ptr,  # (B, N): mean slopes of the queries
    x_ptr,  # (B, n_b, F): the result is a weighted sum of these: rows of b, or of the upstream gradient
    out_ptr,  # out, (B, n_a, F)
    n_a,
    n_b,
    D,
    E,
    F,
    scale,
    QUERIES: tl.constexpr,  # the result's rows are queries
    WEIGHTS: tl.constexpr,  # weighted by the softmax itself (dvalue), else by its derivative
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    OUT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Make a block of rows and a chunk of features of one gradient: the work of program ``pid`` of its programs.

    Its three kinds differ in whose softmax is normalised along which axis (QUERIES: along the tile's columns, with the
    rows' statistics; else along its rows, with the columns') and in WEIGHTS.
    """
    n_blocks = tl.cdiv(n_a, ROWS)
    n_chunks = tl.cdiv(F, OUT)
    row0 = pid % n_blocks * ROWS
    pid = pid // n_blocks
    out0 = pid % n_chunks * OUT
    batch = (pid // n_chunks).to(tl.int64)
    a_ptr += batch * n_a * D
    b_ptr += batch * n_b * D
    a_wide_ptr += batch * n_a * E
    b_wide_ptr += batch * n_b * E
    x_ptr += batch * n_b * F
    n_queries = n_a if QUERIES else n_b
    stats_ptr += 2 * batch * n_queries
    mean_ptr += batch * n_queries
    scale2 = scale * LOG2E
    rows = row0 + tl.arange(0, ROWS)
    if QUERIES:
        # (ROWS,) each
        row_highest = load_vector(stats_ptr, row0, n_a, 0.0, ROWS)
        row_share = 1 / load_vector(stats_ptr + n_a, row0, n_a, 1.0, ROWS)
        row_mean = load_vector(mean_ptr, row0, n_a, 0.0, ROWS)
    acc = tl.zeros((ROWS, OUT), tl.float32)
    for col0 in range(0, n_b, COLS):
        u = chunked_products(a_ptr, row0, n_a, b_ptr, col0, n_b, D, ROWS, COLS, DEPTH, PRECISION, UPCAST)
        cols = col0 + tl.arange(0, COLS)
        if QUERIES:
            p = tl.exp2((u - row_highest[:, None]) * scale2) * row_share[:, None]
        else:
            # (COLS,) each
            share = 1 / load_vector(stats_ptr + n_b, col0, n_b, 1.0, COLS)
            highest = load_vector(stats_ptr, col0, n_b, 0.0, COLS)
            p = tl.exp2((u - highest[None, :]) * scale2) * share[None, :]
        if not WEIGHTS:
            slope = chunked_products(
                a_wide_ptr, row0, n_a, b_wide_ptr, col0, n_b, E, ROWS, COLS, DEPTH, PRECISION, UPCAST
            )
            if QUERIES:
                slope -= row_mean[:, None]
            else:
                slope -= load_vector(mean_ptr, col0, n_b, 0.0, COLS)[None, :]
            p *= slope * scale
        # Columns beyond the end have a weight, but nothing to add.
        p = tl.where((cols < n_b)[None, :], p, 0.0)
        # (COLS, OUT)
        acc = add_product(acc, p, load_tile(x_ptr, col0, n_b, out0, F, COLS, OUT, UPCAST))
    features = out0 + tl.arange(0, OUT)
    # (ROWS, OUT)
    address = out_ptr + (batch * n_a + rows.to(tl.int64))[:, None] * F + features[None, :]
    tl.store(address, acc, mask=(rows < n_a)[:, None] & (features < F)[None, :])


@triton.jit
def attention_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    stats_ptr,
    mean_ptr,
    dq_ptr,  # each may be None
    dk_ptr,
    dv_ptr,
    n_batch,
    N,
    M,
    D,
    E,
    scale,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    OUT: tl.constexpr,  # features of dquery and dkey
    OUT_WIDE: tl.constexpr,  # of dvalue
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """All gradients in one launch: the longest programs first."""
    pid = tl.program_id(0)
    chunks = n_batch * tl.cdiv(D, OUT)
    programs = 0
    if dq_ptr is not None:
        programs += chunks * tl.cdiv(N, ROWS)
        if pid < programs:
            store_gradient(
                pid, q_ptr, k_ptr, grad_ptr, v_ptr, stats_ptr, mean_ptr, k_ptr, dq_ptr, N, M, D, E, D, scale,
                True, False, ROWS, COLS, DEPTH, OUT, PRECISION, UPCAST,
            )  # fmt: skip
    pid -= programs
    programs = 0
    if dk_ptr is not None:
        programs += chunks * tl.cdiv(M, ROWS)
        if (pid >= 0) & (pid < programs):
            store_gradient(
                pid, k_ptr, q_ptr, v_ptr, grad_ptr, stats_ptr, mean_ptr, q_ptr, dk_ptr, M, N, D, E, D, scale,
                False, False, ROWS, COLS, DEPTH, OUT, PRECISION, UPCAST,
            )  # fmt: skip
    pid -= programs
    if dv_ptr is not None:  # noqa: SIM102 - the first condition is one of compilation
        if pid >= 0:
            store_gradient(
                pid, k_ptr, q_ptr, v_ptr, grad_ptr, stats_ptr, mean_ptr, grad_ptr, dv_ptr, M, N, D, E, E, scale,
                False, True, ROWS, COLS, DEPTH, OUT_WIDE, PRECISION, UPCAST,
            )  # fmt: skip


def _tile(
    table: dict[tuple[str, bool], AttentionTile], x: Tensor, features: int, width: int
) -> AttentionTile:
    """The table's tile for this device and dtype, no deeper than the ``features`` and no wider than the ``width``."""
    if INTERPRETED:
        tile = AttentionTile(64, 64, 64, 64, 4, 1)
    else:
        halves, arch = x.dtype != torch.float32, architecture(x.device)
        tile = table.get((arch, halves), table["sm80", halves])
    depth, out = (max(16, next_power_of_2(size)) for size in (features, width))
    return tile._replace(depth=min(tile.depth, depth), out=min(tile.out, out))


def _options(tile: AttentionTile, x: Tensor) -> dict[str, object]:
    return {
        "ROWS": tile.rows,
        "COLS": tile.cols,
        "DEPTH": tile.depth,
        "OUT": tile.out,
        "PRECISION": dot_precision(x),
        "UPCAST": upcast(x),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


@on_own_device
def attention_fwd(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The operator ``cmx_fast::attention_fwd`` for CUDA.

    Args:
        query: (B, N, D), key: (B, M, D), value: (B, M, E), of one dtype: float32, bfloat16 or float16.

    Returns:
        outputs (B, N, E) in the inputs' dtype, 0 without keys, and row statistics (B, 2, N) float32.

    Cost: N x M x (D + E) multiplications, N x M x D of them once per chunk of E.
    """
    check_dtype(query)
    query, key, value = contiguous(query, key, value)
    (b, n, d), m, e = query.shape, key.shape[1], value.shape[2]
    out = query.new_empty(b, n, e)
    stats = query.new_empty(b, 2, n, dtype=torch.float32)
    if m == 0:
        return out.zero_(), stats.zero_()
    if b * n == 0:
        return out, stats
    tile = _tile(FORWARD_TILES, query, d, e)
    chunks = max(1, ceil_div(e, tile.out))
    attention_forward_kernel[(b * chunks * ceil_div(n, tile.rows),)](
        query, key, value, out, stats, n, m, d, e, chunks, scale, **_options(tile, query)
    )  # fmt: skip
    return out, stats


@on_own_device
def attention_bwd(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_stats: Tensor,
    scale: float,
    need_query: bool,
    need_key: bool,
    need_value: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ``cmx_fast::attention_bwd`` for CUDA: dquery, dkey, dvalue like the inputs, (0,) if not needed."""
    grad_out, query, key, value = contiguous(grad_out, query, key, value)
    (b, n, d), m, e = query.shape, key.shape[1], value.shape[2]
    needed = need_query, need_key, need_value
    results = [
        x.new_zeros(x.shape if wanted else (0,))
        for x, wanted in zip((query, key, value), needed, strict=True)
    ]
    if b * n * m == 0:
        return results[0], results[1], results[2]
    means = query.new_empty(b, n, dtype=torch.float32)
    if need_query or need_key:
        # With the gradient kernel's own depth of chunks, so that the slopes are the same: Note [Slopes less their
        # mean].
        tile = _tile(BACKWARD_TILES, query, max(d, e), 1)
        options = {name: value for name, value in _options(tile, query).items() if name != "OUT"}
        attention_mean_slope_kernel[(b * ceil_div(n, tile.rows),)](
            query, key, grad_out, value, row_stats, means, n, m, d, e, scale, **options
        )
    dquery, dkey, dvalue = (x if x.numel() else None for x in results)
    tile = _tile(BACKWARD_TILES, query, max(d, e), d)
    wide = _tile(BACKWARD_TILES, query, max(d, e), e).out
    key_blocks = ceil_div(m, tile.rows)
    programs = 0 if dquery is None else ceil_div(d, tile.out) * ceil_div(n, tile.rows)
    programs += 0 if dkey is None else ceil_div(d, tile.out) * key_blocks
    programs += 0 if dvalue is None else ceil_div(e, wide) * key_blocks
    if programs:
        attention_gradient_kernel[(b * programs,)](
            query, key, value, grad_out, row_stats, means, dquery, dkey, dvalue, b, n, m, d, e, scale,
            OUT_WIDE=wide, **_options(tile, query),
        )  # fmt: skip
    return results[0], results[1], results[2]
