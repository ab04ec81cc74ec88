"""Similarity of each query with its own key, directly from the two rows in float32.

A program's BLOCK pairs are read DEPTH features at a time, (BLOCK, DEPTH) of either side, and each sum stays within one
pair. See Note [Positives stay outside].
"""

import triton
import triton.language as tl

from cmx_fast.kernels.common.norms import inverse_norm

# Note [Positives stay outside]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# A query's positive is never a candidate of the scanned softmax. With z its logit and L the log-sum-exp of the others,
#
#     loss = -log(e^z / (e^z + e^L)) = softplus(L - z)          d loss / dz = -sigmoid(L - z)
#
# Both keep their relative precision as training drives L - z to -infinity, where log(sum) - z and softmax - 1 would be
# differences of nearly equal numbers. For the same reason u is made here, from x - y (distances) or by a float32 sum
# (products), not taken from the matrix product: that may be TF32's, and a small distance has no digits in
# |x|^2 + |y|^2 - 2 x.y.


@triton.jit
def positive_similarity(
    query_ptr,
    key_ptr,
    query_rows,
    key_rows,
    inside,
    D,
    SIMILARITY: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """(BLOCK,) similarities of the rows with int64 indices query_rows and key_rows; 0 where not ``inside``."""
    dot = tl.zeros((BLOCK,), tl.float32)
    query_squares = tl.zeros((BLOCK,), tl.float32)
    key_squares = tl.zeros((BLOCK,), tl.float32)
    if SIMILARITY == "dot" or NORMALIZE:
        for d0 in range(0, D, DEPTH):
            d = d0 + tl.arange(0, DEPTH)
            mask = inside[:, None] & (d < D)[None, :]
            # (BLOCK, DEPTH)
            x = tl.load(query_ptr + query_rows[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
            y = tl.load(key_ptr + key_rows[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
            dot += tl.sum(x * y, 1)
            if NORMALIZE:
                query_squares += tl.sum(x * x, 1)
                key_squares += tl.sum(y * y, 1)
    query_scale = inverse_norm(query_squares) if NORMALIZE else None
    key_scale = inverse_norm(key_squares) if NORMALIZE else None
    if SIMILARITY == "dot":
        u = dot * query_scale * key_scale if NORMALIZE else dot
    else:
        squared = tl.zeros((BLOCK,), tl.float32)
        for d0 in range(0, D, DEPTH):
            d = d0 + tl.arange(0, DEPTH)
            mask = inside[:, None] & (d < D)[None, :]
            # (BLOCK, DEPTH)
            x = tl.load(query_ptr + query_rows[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
            y = tl.load(key_ptr + key_rows[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
            if NORMALIZE:
                x *= query_scale[:, None]
                y *= key_scale[:, None]
            squared += tl.sum((x - y) * (x - y), 1)
        u = -squared if SIMILARITY == "sql2" else -tl.sqrt(squared)
    return u
