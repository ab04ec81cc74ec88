"""``temperature`` in place of ``logit_scale``, and labels of any integer type, in operators and losses."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast import distributed, losses, ops
from cmx_fast.losses import metric_learning

LABELS = torch.arange(12) % 4


def rows(n: int = 12, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, 8, dtype=dtype, generator=generator), dim=1)


OTHER = rows(seed=1)
FUNCTIONS = {
    "info_nce": lambda x, **options: ops.info_nce(x, OTHER.to(x.dtype), **options),
    "supcon": lambda x, **options: ops.supcon(x, LABELS, **options),
    "info_nce of a group": lambda x, **options: distributed.info_nce(x, OTHER.to(x.dtype), **options),
    "supcon of a group": lambda x, **options: distributed.supcon(x, LABELS, **options),
    "sigmoid_contrastive": lambda x, **options: ops.sigmoid_contrastive(x, OTHER.to(x.dtype), **options),
    "sigmoid_contrastive of a group": lambda x, **options: distributed.sigmoid_contrastive(
        x, OTHER.to(x.dtype), **options
    ),
    "ClipLoss": lambda x, **options: losses.ClipLoss()(x, OTHER.to(x.dtype), **options),
    "SigLipLoss": lambda x, **options: losses.SigLipLoss()(x, OTHER.to(x.dtype), **options),
}
MODULES = {
    "InfoNCELoss": (losses.InfoNCELoss, lambda loss, x: loss(x, OTHER)),
    "InfoNCE": (losses.InfoNCE, lambda loss, x: loss(x, OTHER)),
    "SupConLoss": (losses.SupConLoss, lambda loss, x: loss(x, LABELS)),
    "NTXentLoss": (losses.NTXentLoss, lambda loss, x: loss(x, OTHER)),
    "metric_learning.SupConLoss": (metric_learning.SupConLoss, lambda loss, x: loss(x, LABELS)),
}
each_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
each_module = pytest.mark.parametrize(("module", "call"), MODULES.values(), ids=MODULES)


@each_function
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_temperature_is_one_over_the_scale(function, impl):
    if function in (FUNCTIONS["ClipLoss"], FUNCTIONS["SigLipLoss"]):
        impl = "auto"
    options = {} if impl == "auto" else {"impl": impl}
    results = []
    for name, value in (("logit_scale", 8.0), ("temperature", 0.125)):
        x, number = rows().requires_grad_(), torch.tensor(value, dtype=torch.float64, requires_grad=True)
        loss = function(x, **{name: number}, **options)
        assert loss.equal(function(x, **{name: value}, **options))
        results.append((loss.detach(), *torch.autograd.grad(loss, (x, number))))
    (scaled, by_x, by_scale), (divided, by_x_too, by_temperature) = results
    assert scaled.equal(divided)
    assert by_x.equal(by_x_too)
    torch.testing.assert_close(by_temperature, -by_scale * 8.0**2)


@each_function
def test_half_precision_keeps_the_temperature_s_digits(function):
    x = rows(dtype=torch.float32)
    value = torch.tensor(0.07, dtype=torch.bfloat16)
    torch.testing.assert_close(function(x, temperature=value), function(x, temperature=value.double().item()))


@each_function
@pytest.mark.parametrize("scale", [14.0, 1 / 0.07, torch.tensor(14.0)], ids=str)
def test_both_are_refused(function, scale):
    with pytest.raises(ValueError, match="logit_scale and temperature"):
        function(rows(), logit_scale=scale, temperature=0.07)


@each_function
@pytest.mark.parametrize(
    ("temperature", "error", "message"),
    [
        (0.0, ValueError, "temperature must be positive and finite, got 0.0"),
        (float("nan"), ValueError, "temperature must be positive"),
        (torch.tensor(-1.0), ValueError, "temperature must be positive and finite, got -1.0"),
        (torch.ones(2), ValueError, r"temperature must be a real 0-d tensor, .* \(2,\)"),
        (True, TypeError, "temperature must be a number or a 0-d tensor, got bool"),
        ("0.1", TypeError, "temperature must be a number or a 0-d tensor, got str"),
    ],
)
def test_wrong_temperatures_are_named(function, temperature, error, message):
    with pytest.raises(error, match=message):
        function(rows(), temperature=temperature)


@pytest.mark.parametrize("name", ["info_nce", "supcon", "sigmoid_contrastive", "ClipLoss", "SigLipLoss"])
def test_a_learned_temperature_is_traced_whole(name):
    traced = torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (traced, FUNCTIONS[name]):
        x, temperature = rows().requires_grad_(), torch.tensor(0.1, requires_grad=True)
        loss = function(x, temperature=temperature)
        gradients.append((loss.detach(), *torch.autograd.grad(loss, (x, temperature))))
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other)
    torch.testing.assert_close(traced(rows(), temperature=0.1), FUNCTIONS[name](rows(), temperature=0.1))


@each_module
def test_modules_take_either(module, call):
    x = rows()
    torch.testing.assert_close(call(module(logit_scale=8.0), x), call(module(temperature=0.125), x))
    default = inspect.signature(module).parameters["temperature"].default
    assert call(module(), x).equal(call(module(float(str(default))), x))
    for given in (0.2, float(str(default))):
        with pytest.raises(ValueError, match=f"temperature and logit_scale .* got {given} and 8.0"):
            module(temperature=given, logit_scale=8.0)
    with pytest.raises(ValueError, match="logit_scale must be positive and finite, got 0"):
        module(logit_scale=0)


@pytest.mark.parametrize("loss", [losses.ClipLoss, losses.SigLipLoss])
def test_open_clips_losses_need_one(loss):
    with pytest.raises(
        ValueError, match="one of logit_scale and temperature must be given, got None and None"
    ):
        loss()(rows(), OTHER)


LABELLED = {
    "supcon": lambda x, labels: ops.supcon(x, labels),
    "supcon with columns": lambda x, labels: ops.supcon(x, labels, ref_features=OTHER, ref_labels=labels),
    "supcon of a group": lambda x, labels: distributed.supcon(x, labels),
    "reference": lambda x, labels: ops.supcon(x, labels, impl="reference"),
    "SupConLoss": losses.SupConLoss(),
    "metric_learning.SupConLoss": metric_learning.SupConLoss(),
    "metric_learning.SupConLoss with columns": lambda x, labels: metric_learning.SupConLoss()(
        x, labels, ref_emb=OTHER, ref_labels=labels.clone()
    ),
    "compiled": torch.compile(partial(ops.supcon), fullgraph=True, backend="aot_eager"),
}


@pytest.mark.parametrize("loss", LABELLED.values(), ids=LABELLED)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8], ids=str)
def test_labels_of_any_width(loss, dtype):
    assert loss(rows(), LABELS.to(dtype)).equal(loss(rows(), LABELS))


@pytest.mark.parametrize(
    "labels", [LABELS.double(), LABELS > 1, LABELS.tolist()], ids=["float", "bool", "list"]
)
def test_other_labels_are_refused(labels):
    with pytest.raises(TypeError, match="labels must be a tensor of integers, got .*; use labels.long"):
        ops.supcon(rows(), labels)
