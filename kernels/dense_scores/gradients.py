"""The backward kernels of the dense scores: a maximum hands its gradient to the one place that it was found at.

Algorithm: a key token's gradient is a sum of the query rows at its places, which are gathered. A place's gradient is a
sum of the key rows that chose it, and those differ in number; there the choice is multiplied as a matrix of ones and
zeros, exact in any dtype, and scaled by the pair's slope afterwards. For the maximum over both sides each pair has one
place and one token, and both gradients are of one form.

Tile and owner: a program owns ROWS tokens of an item and OUT features, accumulates (ROWS, OUT) in float32 and walks all
items of the other side in their order; every element is written once, by one program, and nothing is added atomically.

Why it is right: the features of a head are moved by that head's maxima alone, so a choice counts only for its features.
Masked tokens have no slope, and are not loaded where they would be multiplied by 0: NaN in them stays out.
"""

import triton
import triton.language as tl

from cmx_fast.kernels.dense_scores.maxima import load_real, load_tokens


@triton.jit
def dense_scores_query_gradient_kernel(
    grad_ptr,  # (B, M) float32
    k_ptr,  # (M, T, D) with any strides
    k_mask_ptr,  # (M, T), or None
    place_ptr,  # (B, M, T) integers
    dq_ptr,  # out, (B, P, D) with any strides
    M,
    P,
    T,
    k_item,
    k_token,
    k_feature,
    dq_item,
    dq_token,
    dq_feature,
    n_heads,
    HEAD,
    MEAN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    OUT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    pid = tl.program_id(0)
    n_blocks = tl.cdiv(P, ROWS)
    row0 = pid % n_blocks * ROWS
    pid = pid // n_blocks
    n_chunks = tl.cdiv(HEAD, OUT)
    # A chunk of features belongs to one head.
    h = pid % (n_chunks * n_heads) // n_chunks
    out0 = h * HEAD + pid % n_chunks * OUT
    end = h * HEAD + HEAD
    b = (pid // (n_chunks * n_heads)).to(tl.int64)
    rows = row0 + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    acc = tl.zeros((ROWS, OUT), tl.float32)
    for m in range(0, M):
        pair = b * M + m
        item_ptr = k_ptr + tl.cast(m, tl.int64) * k_item
        item = tl.zeros((ROWS, OUT), tl.float32)
        count = tl.zeros((COLS,), tl.int32)
        for t0 in range(0, T, COLS):
            real = load_real(k_mask_ptr, m, t0, T, COLS)
            # (COLS,)
            place = tl.load(place_ptr + pair * T + t0 + cols, mask=real, other=0).to(tl.int32)
            chosen = (rows * n_heads + h)[:, None] == tl.where(real, place, -1)[None, :]
            # (COLS, OUT)
            k = load_tokens(item_ptr, k_token, k_feature, t0, T, out0, end, COLS, OUT, UPCAST)
            if k_mask_ptr is not None:
                k = tl.where(real[:, None], k, 0.0).to(k.dtype)
            item = tl.dot(chosen.to(k.dtype), k, item, input_precision="ieee")
            count += real.to(tl.int32)
        slope = tl.load(grad_ptr + pair)
        if MEAN:
            slope = slope / tl.maximum(tl.sum(count, 0), 1)
        acc += slope * item
    features = out0 + tl.arange(0, OUT)
    # (ROWS, OUT)
    address = dq_ptr + b * dq_item + rows.to(tl.int64)[:, None] * dq_token
    address += features.to(tl.int64)[None, :] * dq_feature
    tl.store(address, acc, mask=(rows < P)[:, None] & (features < end)[None, :])


@triton.jit
def dense_scores_key_gradient_kernel(
    grad_ptr,  # (B, M) float32
    q_ptr,  # (B, P, D) with any strides
    k_mask_ptr,  # (M, T), or None
    place_ptr,  # (B, M, T) integers
    dk_ptr,  # out, (M, T, D) with any strides
    B,
    M,
    T,
    D,
    q_item,
    q_token,
    q_feature,
    dk_item,
    dk_token,
    dk_feature,
    n_heads,
    HEAD,
    MEAN: tl.constexpr,
    ADD: tl.constexpr,  # to what is in dk already: the sums over query items before these
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
):
    pid = tl.program_id(0)
    n_blocks = tl.cdiv(T, ROWS)
    row0 = pid % n_blocks * ROWS
    pid = pid // n_blocks
    n_chunks = tl.cdiv(D, OUT)
    out0 = pid % n_chunks * OUT
    m = (pid // n_chunks).to(tl.int64)
    rows = row0 + tl.arange(0, ROWS)
    features = out0 + tl.arange(0, OUT)
    real = load_real(k_mask_ptr, m, row0, T, ROWS)
    count = tl.zeros((ROWS,), tl.int32)
    if MEAN:
        for t0 in range(0, T, ROWS):
            count += load_real(k_mask_ptr, m, t0, T, ROWS).to(tl.int32)
    share = 1.0
    if MEAN:
        share = 1.0 / tl.maximum(tl.sum(count, 0), 1)
    acc = tl.zeros((ROWS, OUT), tl.float32)
    for b in range(0, B):
        pair = tl.cast(b, tl.int64) * M + m
        # (ROWS,)
        place = tl.load(place_ptr + pair * T + rows, mask=real, other=0).to(tl.int32)
        slope = tl.load(grad_ptr + pair)
        # Without a slope the place may be one of an item that has none.
        wanted = (real & (slope + tl.zeros((ROWS,), tl.float32) != 0))[:, None] & (features < D)[None, :]
        wanted &= (place % n_heads)[:, None] == (features // HEAD)[None, :]
        address = q_ptr + tl.cast(b, tl.int64) * q_item + (place // n_heads).to(tl.int64)[:, None] * q_token
        # (ROWS, OUT)
        q = tl.load(address + features.to(tl.int64)[None, :] * q_feature, mask=wanted, other=0.0)
        acc += slope * q.to(tl.float32)
    acc *= share
    # (ROWS, OUT)
    address = dk_ptr + m * dk_item + rows.to(tl.int64)[:, None] * dk_token
    address += features.to(tl.int64)[None, :] * dk_feature
    inside = (rows < T)[:, None] & (features < D)[None, :]
    if ADD:
        acc += tl.load(address, mask=inside, other=0.0)
    tl.store(address, acc, mask=inside)


@triton.jit
def dense_scores_pair_gradient_kernel(
    grad_ptr,  # (B, M) float32
    own_ptr,  # (B, M) integers: which of the owner's tokens each pair's maximum is at
    other_ptr,  # (B, M) integers: which of the other side's
    x_ptr,  # (J, tokens, D) with any strides: the other side
    dx_ptr,  # out, (I, N, D) with any strides: the owner's gradient
    J,
    N,
    D,
    own_step,  # from an owner's pair to the next owner's in the three above, M or 1
    other_step,  # from a pair to the same owner's next, 1 or M
    x_item,
    x_token,
    x_feature,
    dx_item,
    dx_token,
    dx_feature,
    n_heads,
    HEAD,
    OWN_PLACES: tl.constexpr,  # own_ptr numbers places and heads, other_ptr tokens; else the other way
    ADD: tl.constexpr,  # to what is in dx already
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
):
    pid = tl.program_id(0)
    n_blocks = tl.cdiv(N, ROWS)
    row0 = pid % n_blocks * ROWS
    pid = pid // n_blocks
    n_chunks = tl.cdiv(D, OUT)
    out0 = pid % n_chunks * OUT
    i = (pid // n_chunks).to(tl.int64)
    rows = row0 + tl.arange(0, ROWS)
    features = out0 + tl.arange(0, OUT)
    acc = tl.zeros((ROWS, OUT), tl.float32)
    for j in range(0, J):
        pair = i * own_step + tl.cast(j, tl.int64) * other_step
        own = tl.load(own_ptr + pair).to(tl.int32)
        other = tl.load(other_ptr + pair).to(tl.int32)
        if OWN_PLACES:
            head = own % n_heads
            own = own // n_heads
        else:
            head = other % n_heads
            other = other // n_heads
        slope = tl.load(grad_ptr + pair)
        # Without a slope the place may be one of an item that has none.
        wanted = (features < D) & (features // HEAD == head) & (slope + tl.zeros((OUT,), tl.float32) != 0)
        address = x_ptr + tl.cast(j, tl.int64) * x_item + other.to(tl.int64) * x_token
        # (OUT,)
        x = tl.load(address + features.to(tl.int64) * x_feature, mask=wanted, other=0.0).to(tl.float32)
        acc += tl.where((rows == own)[:, None], (slope * x)[None, :], 0.0)
    # (ROWS, OUT)
    address = dx_ptr + i * dx_item + rows.to(tl.int64)[:, None] * dx_token
    address += features.to(tl.int64)[None, :] * dx_feature
    inside = (rows < N)[:, None] & (features < D)[None, :]
    if ADD:
        acc += tl.load(address, mask=inside, other=0.0)
    tl.store(address, acc, mask=inside)
