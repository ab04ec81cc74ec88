"""Device functions that every kernel of the contrastive softmax family is made of.

One tile of the similarity matrix is an inner product, accumulated in float32, that :func:`similarity` turns into ``u``.
Its exponential is ``2^((u - top) * scale2)`` with ``scale2 = scale * log2(e)`` and a ``top`` at or above every ``u`` of
the row (see Note [Difference first]).

The running softmax statistics of a row over any set of columns are three float32 numbers, and a fourth for label
smoothing:

    maximum    max u                                  -inf for no columns
    total      sum exp(scale * (u - maximum))         in [1, columns] otherwise
    weighted   sum u * exp(scale * (u - maximum))     weighted / total is the softmax-weighted mean of u
    plain      sum u

They merge in any order (Milakov and Gimelshein 2018) and stay finite at any temperature. A masked element carries
``u = -inf``, whose exponential is 0.
"""

import triton
import triton.language as tl

# Note [Difference first]
# ~~~~~~~~~~~~~~~~~~~~~~~
# exp(scale * u - scale * top) is computed as 2^((u - top) * scale2), never as the difference of two scaled logits. Two
# similarities close to each other differ exactly (Sterbenz), so their difference keeps its digits at any scale; two
# logits of 1e6 in float32 are rounded by up to 0.03 each, so their difference is off by up to 0.06. Base 2 because the
# hardware's exponential is (ex2.approx). Where registers forbid the difference first, as in the gradient kernel, both
# logits are rounded by the same operation (rounded_product), so that at least the largest one's difference is 0.

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def base_two(scale):
    """scale * log2(e), or float32's largest number where that overflows."""
    return tl.minimum(scale * LOG2E, 3.4028234e38)


@triton.jit
def rounded_product(x, y):
    """``x * y``, never contracted with a difference that follows: both of its sides must be rounded alike."""
    return tl.fma(x, y, 0.0)


@triton.jit
def exponential_below(u, top, scale2):
    """``2^((u - top) * scale2)``, at most 1: a product summed in another order may lie above the maximum."""
    return tl.exp2(tl.minimum(u - top, 0.0) * scale2)


@triton.jit
def exchanged(back, one, other):
    """The two pointers as they are, or swapped where ``back``: the programs of the second direction."""
    return tl.where(back, other, one), tl.where(back, one, other)


@triton.jit
def load_tile(ptr, first, n_rows, d0, D, ROWS: tl.constexpr, DEPTH: tl.constexpr, UPCAST: tl.constexpr):
    """(ROWS, DEPTH) block of a row-major (n_rows, D) matrix, zero outside it."""
    r = tl.arange(0, ROWS)
    d = d0 + tl.arange(0, DEPTH)
    # Only the block's origin can lie beyond 2^31 elements.
    origin = ptr + tl.cast(first, tl.int64) * D
    inside = (first + r < n_rows)[:, None] & (d < D)[None, :]
    # (ROWS, DEPTH)
    tile = tl.load(origin + r[:, None] * D + d[None, :], mask=inside, other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def load_targets(ptr, index, inside):
    """Targets (int64) as int32, -1 for those that 32 bits don't hold: 2^32 + j would be j."""
    target = tl.load(ptr + index, mask=inside, other=-1)
    return tl.where((target >= 0) & (target < 2147483648), target, -1).to(tl.int32)


@triton.jit
def load_vector(ptr, first, n, other, BLOCK: tl.constexpr):
    """(BLOCK,) entries ``first...`` of a vector of length n, ``other`` outside it."""
    index = first + tl.arange(0, BLOCK)
    return tl.load(ptr + index, mask=index < n, other=other)


@triton.jit
def chunked_products(
    a_ptr,
    row0,
    n_a,
    c_ptr,
    col0,
    n_c,
    D,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """(ROWS, COLS) float32 inner products of rows wider than a tile, read DEPTH features at a time."""
    product = tl.zeros((ROWS, COLS), tl.float32)
    for d0 in range(0, D, DEPTH):
        # (ROWS, DEPTH), (COLS, DEPTH)
        a = load_tile(a_ptr, row0, n_a, d0, D, ROWS, DEPTH, UPCAST)
        c = load_tile(c_ptr, col0, n_c, d0, D, COLS, DEPTH, UPCAST)
        product = tl.dot(a, tl.trans(c), product, input_precision=PRECISION)
    return product


@triton.jit
def similarity(
    product,
    a_inv,
    c_inv,
    a_sq,
    c_sq,
    SIMILARITY: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    SCALE_COLS: tl.constexpr,
):
    """Similarity from inner products: applies the inverse norms here, in float32, rather than to rounded vectors.

    a_sq and c_sq are the squared norms of the vectors after normalisation; only the two distances need them.
    """
    if SCALE_ROWS:
        product = rounded_product(product, a_inv[:, None])
    if SCALE_COLS:
        product = rounded_product(product, c_inv[None, :])
    if SIMILARITY == "dot":
        u = product
    else:
        squared = a_sq[:, None] + c_sq[None, :] - 2 * product
        # Rounding can make the square of a small distance negative; "not < 0" lets a NaN through.
        squared = tl.where(squared < 0, 0.0, squared)
        u = -squared if SIMILARITY == "sql2" else -tl.sqrt(squared)
    return u


@triton.jit
def finite_shift(maximum):
    """The maximum to subtract: 0 for an empty set, where -inf - (-inf) would be NaN."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def merge_statistics(maximum, total, weighted, other_maximum, other_total, other_weighted, scale2):
    """Statistics of the union of two disjoint sets of similarities."""
    largest = tl.maximum(maximum, other_maximum)
    shift = finite_shift(largest)
    factor = tl.exp2((maximum - shift) * scale2)
    other_factor = tl.exp2((other_maximum - shift) * scale2)
    return (
        largest,
        total * factor + other_total * other_factor,
        weighted * factor + other_weighted * other_factor,
    )


@triton.jit
def empty_statistics(BLOCK: tl.constexpr):
    """Statistics of BLOCK empty sets: maximum, total, weighted, plain."""
    zeros = tl.zeros((BLOCK,), tl.float32)
    return tl.full((BLOCK,), float("-inf"), tl.float32), zeros, zeros, zeros


@triton.jit
def add_partials(
    maximum,
    total,
    weighted,
    plain,
    part_ptr,
    slots,
    n,
    index,
    inside,
    scale2,
    SMOOTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Merge the partial statistics (slots, 3 or 4, n) of the columns ``index`` into (BLOCK,) statistics."""
    N_STATS: tl.constexpr = 4 if SMOOTH else 3
    SLOTS: tl.constexpr = 16
    n = tl.cast(n, tl.int64)
    for slot0 in range(0, slots, SLOTS):
        slot = slot0 + tl.arange(0, SLOTS)
        mask = (slot < slots)[:, None] & inside[None, :]
        address = part_ptr + slot.to(tl.int64)[:, None] * (N_STATS * n) + index[None, :]
        # (SLOTS, BLOCK): a slot of each row's partial statistics per line; an absent slot is an empty set.
        slot_maximum = tl.load(address, mask=mask, other=float("-inf"))
        slot_total = tl.load(address + n, mask=mask, other=0.0)
        slot_weighted = tl.load(address + 2 * n, mask=mask, other=0.0)
        largest = tl.max(slot_maximum, 0)
        factor = tl.exp2((slot_maximum - finite_shift(largest)[None, :]) * scale2)
        maximum, total, weighted = merge_statistics(
            maximum,
            total,
            weighted,
            largest,
            tl.sum(slot_total * factor, 0),
            tl.sum(slot_weighted * factor, 0),
            scale2,
        )
        if SMOOTH:
            plain += tl.sum(tl.load(address + 3 * n, mask=mask, other=0.0), 0)
    return maximum, total, weighted, plain


@triton.jit
def weighted_mean(total, weighted):
    """Softmax-weighted mean of the similarities; 0 for an empty set."""
    # Where every term vanished, weighted is 0, or NaN if a similarity was -inf: keep that visible.
    return tl.where(total == 0, weighted, weighted / total)


@triton.jit
def log_sum_above(u, maximum, total, scale):
    """Log-sum-exp of the logits less the logit of ``u``; -inf for an empty set."""
    return scale * (maximum - u) + tl.log2(total) * LN2


@triton.jit
def softplus(x):
    """log(1 + e^x), to full relative precision also where it is tiny.

    max(x, 0) + log1p(e^-|x|): the exponential never overflows, and what is added to max(x, 0) is at most log 2.
    """
    y = tl.exp(-tl.abs(x))
    # log1p(y) = 2 atanh(r) with r = y / (2 + y) <= 1/3; the hardware's logarithm would lose all digits near 1.
    r = y / (2 + y)
    r2 = r * r
    series = 1 / 15 + r2 * (1 / 17)
    series = 1 / 13 + r2 * series
    series = 1 / 11 + r2 * series
    series = 1 / 9 + r2 * series
    series = 1 / 7 + r2 * series
    series = 1 / 5 + r2 * series
    series = 1 / 3 + r2 * series
    return tl.maximum(x, 0.0) + 2 * r * (1 + r2 * series)
