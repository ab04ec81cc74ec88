"""Rows that take no part, empty groups and groups of one, at any scale: finite, and what float64 gives."""

from __future__ import annotations

import pytest
import torch
from operator_contract import run, vector_error

from cmx_fast.ops import attention, cluster_cross_entropy, info_nce, supcon

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.cmx_fast, "supcon_fwd"), reason="the C++ extension is not built (CMX_NO_EXTENSION)"
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SCALES = (2.0**-100, 1.0, 14.25, 300.0, 1e4, 2.0**60)
#: A gradient of 1e4 times the rows is out of float16's range.
CASES = [(dtype, scale) for dtype in DTYPES for scale in SCALES if dtype != torch.float16 or scale <= 300]
#: Of whole numbers, so that every product is exact in every dtype and near ties are ties.
PRECISION = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 1e-11}


def whole_rows(n, d=16, dtype=torch.float32):
    return torch.randint(-3, 4, (n, d)).to(dtype)


def assert_like_float64(loss, inputs, dtype):
    """``loss(*inputs, impl)`` and its gradients against the reference in float64."""
    actual = run(lambda *x: loss(*x, "cpp"), *inputs)
    truth = run(lambda *x: loss(*x, "reference"), *(x.double() for x in inputs))
    for f, t in zip(actual, truth, strict=True):
        assert f.isfinite().all()
        assert vector_error(f, t) <= PRECISION[dtype]


@pytest.mark.parametrize(("dtype", "scale"), CASES)
@pytest.mark.parametrize(
    "labels", [[99, 0, 1, 1, 2, 2, 3, 3], [0, 0, 0, 1, 2, 3, 4, 5], list(range(8)), [0] * 8]
)
def test_supcon_anchors_without_a_positive(labels, scale, dtype):
    labels = torch.tensor(labels)
    assert_like_float64(
        lambda x, impl: supcon(x, labels, scale, reduction="none", impl=impl),
        [whole_rows(8, dtype=dtype)],
        dtype,
    )


@pytest.mark.parametrize(("dtype", "scale"), CASES)
def test_supcon_references_that_nobody_has_for_positives(scale, dtype):
    labels, of_ref = torch.tensor([0, 1, 2, 2, 99]), torch.tensor([0, 0, 1, 55, 56, 57])
    assert_like_float64(
        lambda x, ref, impl: supcon(
            x, labels, scale, ref_features=ref, ref_labels=of_ref, reduction="none", impl=impl
        ),
        [whole_rows(5, dtype=dtype), whole_rows(6, dtype=dtype)],
        dtype,
    )


@pytest.mark.parametrize("impl", ["cpp", "reference"])
def test_supcon_against_no_reference_at_all(impl):
    empty = {"ref_features": torch.ones(0, 8), "ref_labels": torch.ones(0, dtype=torch.int64)}
    assert supcon(torch.randn(5, 8), torch.arange(5), reduction="none", impl=impl, **empty).eq(0).all()


@pytest.mark.parametrize("impl", ["cpp", "reference"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_supcon_shows_what_is_not_finite_where_nobody_has_a_positive(value, impl):
    x = torch.randn(5, 8)
    x[2, 3] = value
    assert supcon(x, torch.arange(5), impl=impl).isnan()


@pytest.mark.parametrize(("dtype", "scale"), CASES)
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"within": True},
        {"in_batch": False},
        {"in_batch": False, "within": True},
        {"in_batch": False, "symmetric": False},
        {"symmetric": False, "label_smoothing": 0.1},
        {"bank": True, "in_batch": False, "symmetric": False},
        {"bank": True, "label_smoothing": 0.1},
        {"bank": "empty"},
    ],
)
def test_info_nce_of_few_candidates(options, n, scale, dtype):
    options = dict(options)
    rows = {True: 3, "empty": 0, None: None}[options.pop("bank", None)]
    if rows is not None:
        options["bank"] = whole_rows(rows, dtype=dtype)

    def loss(q, k, impl):
        given = dict(options)
        if "bank" in given:
            given["bank"] = given["bank"].to(q.dtype)
        return info_nce(q, k, scale, reduction="none", impl=impl, **given)

    assert_like_float64(loss, [whole_rows(n, dtype=dtype), whole_rows(n, dtype=dtype)], dtype)


@pytest.mark.parametrize("scale", SCALES)
def test_info_nce_keys_that_are_nobodys_positive(scale):
    target = torch.tensor([4, 4, 0])
    assert_like_float64(
        lambda q, k, impl: info_nce(q, k, scale, target=target, symmetric=False, reduction="none", impl=impl),
        [whole_rows(3), whole_rows(7)],
        torch.float32,
    )


@pytest.mark.parametrize("scale", SCALES)
def test_upstream_gradients_of_zero(scale):
    x, y, labels = whole_rows(9).requires_grad_(), whole_rows(9).requires_grad_(), torch.arange(9) // 3
    weight = torch.tensor([1.0, 0, 0, 1, 0, 1, 0, 0, 1])
    (info_nce(x, y, scale, reduction="none", impl="cpp") * weight).sum().backward()
    (supcon(x, labels, scale, reduction="none", impl="cpp") * weight).sum().backward()
    assert x.grad.isfinite().all() and y.grad.isfinite().all()


@pytest.mark.parametrize(("n", "m"), [(3, 0), (0, 4), (1, 1), (5, 1)])
@pytest.mark.parametrize(("dtype", "scale"), CASES)
def test_attention_without_keys_and_with_one(scale, n, m, dtype):
    assert_like_float64(
        lambda q, k, v, impl: attention(q, k, v, scale=scale, impl=impl).to(
            torch.promote_types(dtype, torch.float32)
        ),
        [whole_rows(rows, dtype=dtype) for rows in (n, m, m)],
        dtype,
    )


@pytest.mark.parametrize("size", [1.0, 30.0, 1e3, 1e6, 2.0**60])
@pytest.mark.parametrize("k", [1, 2, 7])
def test_cluster_cross_entropy_of_weights_of_zero(k, size):
    centroids, target = size * whole_rows(k), torch.randint(k, (9,))
    weight = torch.arange(k).float() if k > 1 else torch.ones(1)
    target[0] = k - 1  # of all weights 0 the mean is 0 / 0, in the reference too
    assert_like_float64(
        lambda x, impl: cluster_cross_entropy(
            x, centroids.to(x.dtype), target=target, weight=weight.to(x.dtype), impl=impl
        )[0],
        [whole_rows(9)],
        torch.float32,
    )
