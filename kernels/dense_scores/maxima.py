"""The forward kernel of the dense scores: of every key token the best of the query's places, pooled over the tokens.

Algorithm: a tile of similarities (ROWS places, COLS tokens) is compared, element by element, with the largest that the
same lane has seen, and what is larger takes its place together with the number of the place and the head. Only when
the places are through are the lanes of a token compared with each other, once per COLS tokens.

Tile and owner: a program owns one pair of items and walks its tokens COLS at a time, below that the places ROWS at a
time, below that the heads; so it writes the pair's score, and nothing is added by two programs. Products accumulate in
float32, DEPTH features at a time. No similarity outlives its tile.

Why it is right: a lane meets its places in their order and, of each, the heads in theirs, and takes one only if it is
larger; of equal lanes the smallest number wins, so the first maximum gets the gradient. A NaN is larger than all, which
the hardware's maximum would drop. Masked places are below all; masked tokens are left out of the pool.
"""

import triton
import triton.language as tl


@triton.jit
def load_tokens(
    ptr,
    stride_token,
    stride_feature,
    first,
    n_tokens,
    d0,
    d_end,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """(ROWS, DEPTH) features [d0, d_end) of an item's tokens ``first...``, as they lie; zero outside."""
    r = first + tl.arange(0, ROWS)
    d = d0 + tl.arange(0, DEPTH)
    address = ptr + r.to(tl.int64)[:, None] * stride_token + d.to(tl.int64)[None, :] * stride_feature
    # (ROWS, DEPTH)
    tile = tl.load(address, mask=(r < n_tokens)[:, None] & (d < d_end)[None, :], other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def load_real(mask_ptr, item, first, n_tokens, BLOCK: tl.constexpr):
    """(BLOCK,) flags of an item's real tokens; of all of them where there is no mask."""
    index = first + tl.arange(0, BLOCK)
    real = index < n_tokens
    if mask_ptr is not None:
        # (BLOCK,)
        real = tl.load(mask_ptr + tl.cast(item, tl.int64) * n_tokens + index, mask=real, other=0) != 0
    return real


@triton.jit
def exceeds(x, best):
    """True where x takes the place of ``best``: it is larger, or the first NaN."""
    return ((x > best) | (x != x)) & (best == best)


@triton.jit
def dense_scores_forward_kernel(
    q_ptr,  # (B, P, D) with any strides
    k_ptr,  # (M, T, D) with any strides
    q_mask_ptr,  # (B, P), or None
    k_mask_ptr,  # (M, T), or None
    scores_ptr,  # out, (B, M) float32, or None
    place_ptr,  # out, (B, M, T), with MAXIMUM (B, M), integers; or None
    token_ptr,  # out, (B, M) int32, with MAXIMUM
    M,
    P,
    T,
    q_item,  # strides of an item, a token and a feature
    q_token,
    q_feature,
    k_item,
    k_token,
    k_feature,
    n_heads,
    HEAD,  # features of a head
    MEAN: tl.constexpr,
    MAXIMUM: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    b = pair // M
    m = pair % M
    q_ptr += b * q_item
    k_ptr += m * k_item
    rows = tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    total = tl.zeros((COLS,), tl.float32)
    count = tl.zeros((COLS,), tl.int32)
    top_score = tl.full((COLS,), float("-inf"), tl.float32)
    top_token = tl.zeros((COLS,), tl.int32)
    top_place = tl.zeros((COLS,), tl.int32)
    for t0 in range(0, T, COLS):
        best = tl.full((ROWS, COLS), float("-inf"), tl.float32)
        number = tl.zeros((ROWS, COLS), tl.int32)
        for p0 in range(0, P, ROWS):
            # (ROWS,)
            real_place = load_real(q_mask_ptr, b, p0, P, ROWS)
            for h in range(0, n_heads):
                product = tl.zeros((ROWS, COLS), tl.float32)
                for d0 in range(h * HEAD, h * HEAD + HEAD, DEPTH):
                    # (ROWS, DEPTH), (COLS, DEPTH)
                    q = load_tokens(
                        q_ptr, q_token, q_feature, p0, P, d0, h * HEAD + HEAD, ROWS, DEPTH, UPCAST
                    )
                    k = load_tokens(
                        k_ptr, k_token, k_feature, t0, T, d0, h * HEAD + HEAD, COLS, DEPTH, UPCAST
                    )
                    product = tl.dot(q, tl.trans(k), product, input_precision=PRECISION)
                larger = exceeds(product, best) & real_place[:, None]
                best = tl.where(larger, product, best)
                number = tl.where(larger, ((p0 + rows) * n_heads + h)[:, None], number)
        unknown = best != best
        # (COLS,) each
        any_unknown = tl.max(unknown.to(tl.int32), 0) > 0
        largest = tl.max(tl.where(unknown, float("-inf"), best), 0)
        first = tl.where(any_unknown[None, :], unknown, best == largest[None, :])
        place = tl.min(tl.where(first, number, 2147483647), 0)
        value = tl.where(any_unknown, float("nan"), largest)
        real = load_real(k_mask_ptr, m, t0, T, COLS)
        if MAXIMUM:
            better = exceeds(value, top_score) & real
            top_token = tl.where(better, t0 + cols, top_token)
            top_place = tl.where(better, place, top_place)
            top_score = tl.where(better, value, top_score)
        else:
            total += tl.where(real, value, 0.0)
            if place_ptr is not None:
                # (COLS,)
                kept = tl.where(real, place, 0).to(place_ptr.dtype.element_ty)
                tl.store(place_ptr + pair * T + t0 + cols, kept, mask=t0 + cols < T)
        count += real.to(tl.int32)
    real_tokens = tl.sum(count, 0)
    real_places = P
    if q_mask_ptr is not None:
        real_places = 0
        for p0 in range(0, P, ROWS):
            real_places += tl.sum(load_real(q_mask_ptr, b, p0, P, ROWS).to(tl.int32), 0)
    if MAXIMUM:
        unknown_token = top_score != top_score
        any_unknown_token = tl.max(unknown_token.to(tl.int32), 0) > 0
        score = tl.max(tl.where(unknown_token, float("-inf"), top_score), 0)
        winner = tl.where(any_unknown_token, unknown_token, top_score == score)
        token = tl.min(tl.where(winner, top_token, 2147483647), 0)
        score = tl.where(any_unknown_token, float("nan"), score)
        if place_ptr is not None:
            own = winner & (top_token == token)
            chosen = tl.min(tl.where(own, top_place, 2147483647), 0)
            tl.store(place_ptr + pair, chosen.to(place_ptr.dtype.element_ty))
            tl.store(token_ptr + pair, token)
    else:
        score = tl.sum(total, 0)
        if MEAN:
            score = score / real_tokens
    # An item without a real token has neither maximum nor mean.
    score = tl.where((real_tokens > 0) & (real_places > 0), score, float("nan"))
    if scores_ptr is not None:
        tl.store(scores_ptr + pair, score)
