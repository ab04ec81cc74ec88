"""Gradient caching gives the gradients of the whole batch, whatever the encoders draw or keep."""

from __future__ import annotations

import collections
import copy
import types

import numpy
import pytest
import torch
import torch.distributed as dist
from distributed_cases import cached_in_parallel
from forked_programs import run_program
from process_groups import run_ranks
from torch import nn

from cmx_fast.losses import InfoNCELoss, SupConLoss
from cmx_fast.train.cached_step import CachedContrastiveStep


def encoder(*, dropout=0.0, norm=None):
    layers = [nn.Linear(10, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 8)]
    return nn.Sequential(*layers[:1], *([norm] if norm else []), *layers[1:])


def gradients(*modules):
    return [p.grad.clone() for module in modules for p in module.parameters()]


def assert_same(found, truth, rtol=1e-5):
    for f, right in zip(found, truth, strict=True):
        assert (f - right).norm() <= rtol * right.norm()


@pytest.mark.parametrize("chunk", [1, 7, 16, 40, 100])
def test_gradients_are_the_whole_batchs(chunk):
    image, sound = encoder(), encoder()
    loss, x, y = InfoNCELoss(normalize=True), torch.randn(40, 10), torch.randn(40, 10)
    whole = loss(image(x), sound(y))
    whole.backward()
    truth = gradients(image, sound)
    image.zero_grad(), sound.zero_grad()
    found = CachedContrastiveStep([image, sound], loss, chunk)(x, y)
    torch.testing.assert_close(found, whole.detach())
    assert not found.requires_grad
    assert_same(gradients(image, sound), truth)


def test_gradients_are_added():
    model, loss, x = encoder(), SupConLoss(), torch.randn(24, 10)
    labels = torch.arange(24) % 5
    step = CachedContrastiveStep(model, lambda f, labels: loss(nn.functional.normalize(f, dim=1), labels), 9)
    step(x, labels=labels)
    once = gradients(model)
    step(x, labels=labels)
    assert_same(gradients(model), [2 * g for g in once])


def test_dropout_and_buffers_are_those_of_one_pass():
    def build():
        torch.manual_seed(3)
        norm = nn.BatchNorm1d(32)
        first = nn.utils.parametrizations.spectral_norm(nn.Linear(10, 32))
        return nn.Sequential(first, norm, nn.ReLU(), nn.Dropout(0.4), nn.Linear(32, 8))

    loss, x = InfoNCELoss(normalize=True), torch.randn(30, 10)
    plain, cached = build(), build()
    torch.manual_seed(7)
    features = torch.cat([plain(part) for part in x.split(8)])
    loss(features, features.roll(1, 0)).backward()
    drawn = torch.rand(3)
    torch.manual_seed(7)
    CachedContrastiveStep(cached, lambda f: loss(f, f.roll(1, 0)), 8)(x)
    assert torch.rand(3).equal(drawn)
    assert_same(gradients(cached), gradients(plain))
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(cached.named_buffers())[name], buffer)


def test_one_encoder_for_two_inputs_and_inputs_of_several_tensors():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = encoder()

        def forward(self, a, b):
            return self.inner(a * b)

    model, loss = Pair(), InfoNCELoss()
    batches = [{"a": torch.randn(20, 10), "b": torch.randn(20, 10)} for _ in range(2)]
    loss(*(model(**batch) for batch in batches)).backward()
    truth = gradients(model)
    model.zero_grad()
    CachedContrastiveStep([model, model], loss, 6)(*batches)
    assert_same(gradients(model), truth)


class Keyed(collections.UserDict):
    """As transformers' BatchEncoding: no dict, its keys are attributes, and AttributeErrors have no text."""

    def __getattr__(self, name):
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError from None


class Recorder(nn.Module):
    """An encoder of one tensor that notes how it was called."""

    def __init__(self):
        super().__init__()
        self.inner, self.calls = encoder(), []

    def forward(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        (x,) = [
            value for value in [*args, *kwargs.values()] if isinstance(value, torch.Tensor) and value.dim()
        ]
        return self.inner(x)


X = torch.arange(70.0).reshape(7, 10) / 70
WHOLE = {"text": "a photo of", "limit": 7, "share": 0.5, "no": None, "scale": torch.tensor(3.0), "kind": b"ab",
         "dtype": torch.float16, "size": numpy.float32(2), "zero": numpy.array(4)}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "positions", "keywords"),
    [
        (X, [X], {}),
        ([X], [X], {}),
        ((X, None, "mode"), [X, None, "mode"], {}),
        ({"x": X, **WHOLE}, [], {"x": X, **WHOLE}),
        (types.MappingProxyType({"x": X, "on": True}), [], {"x": X, "on": True}),
        (Keyed(x=X, text="ab"), [], {"x": X, "text": "ab"}),
        (([X], {"text": "ab"}), [X], {"text": "ab"}),
        (([], Keyed(x=X)), [], {"x": X}),
    ],
)
def test_tensors_are_split_and_all_else_is_handed_on_whole(value, positions, keywords):
    model, loss = Recorder(), InfoNCELoss(normalize=True)
    truth = model.inner(X)
    loss(truth, truth.roll(1, 0)).backward()
    expected = gradients(model)
    model.zero_grad()
    CachedContrastiveStep(model, lambda f: loss(f, f.roll(1, 0)), 3)(value)
    assert_same(gradients(model), expected)
    assert len(model.calls) == 6
    for (args, kwargs), start in zip(model.calls, [0, 3, 6] * 2, strict=True):
        for whole, part in [
            *zip(positions, args, strict=True),
            *((keywords[k], kwargs.pop(k)) for k in keywords),
        ]:
            assert part.equal(X[start : start + 3]) if whole is X else part is whole
        assert not kwargs


@pytest.mark.parametrize("kind", [dict, Keyed, collections.OrderedDict, types.MappingProxyType])
def test_an_encoder_that_takes_a_mapping_gets_it_in_a_list(kind):
    class Written(nn.Module):
        """Writes its features into the mapping that it is given, as sentence-transformers do."""

        def __init__(self):
            super().__init__()
            self.inner, self.kinds = encoder(), set()

        def forward(self, batch):
            self.kinds.add(type(batch))
            assert set(batch) == {"inputs", "text"} and batch["text"] == "ab"
            batch["features"] = self.inner(batch["inputs"]["x"][0])
            return batch

    model, batch = Written(), kind({"inputs": {"x": (X,)}, "text": "ab"})
    step = CachedContrastiveStep(model, lambda f: f.square().sum(), 2, get_rep_fn=lambda out: out["features"])
    step([batch])
    assert_same(gradients(model), torch.autograd.grad(model.inner(X).square().sum(), model.parameters()))
    assert set(batch) == {"inputs", "text"}
    assert model.kinds == {dict if kind is types.MappingProxyType else kind}


def test_a_chunk_per_encoder():
    image, sound = Recorder(), Recorder()
    loss, x, y = InfoNCELoss(normalize=True), torch.randn(9, 10), torch.randn(9, 10)
    loss(image(x), sound(y)).backward()
    truth = gradients(image, sound)
    image.zero_grad(), sound.zero_grad()
    image.calls.clear(), sound.calls.clear()
    CachedContrastiveStep([image, sound], loss, [4, 2])(x, y)
    assert_same(gradients(image, sound), truth)
    assert [len(args[0]) for args, _ in image.calls] == [4, 4, 1] * 2
    assert [len(args[0]) for args, _ in sound.calls] == [2, 2, 2, 2, 1] * 2


def test_a_function_picks_the_representation():
    class Output(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = encoder()

        def forward(self, x):
            return types.SimpleNamespace(pooled=self.inner(x), hidden=x)

    model, loss, x = Output(), InfoNCELoss(normalize=True), torch.randn(11, 10)
    features = model(x).pooled
    loss(features, features.roll(1, 0)).backward()
    truth = gradients(model)
    model.zero_grad()
    step = CachedContrastiveStep(model, lambda f: loss(f, f.roll(1, 0)), 4, get_rep_fn=lambda out: out.pooled)
    step(x)
    assert_same(gradients(model), truth)


def test_a_learned_temperature_gets_its_gradient_and_frozen_encoders_none():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.log = nn.Parameter(torch.tensor(1.0))

        def forward(self, x, y):
            from cmx_fast.ops import info_nce

            return info_nce(x, y, self.log.exp(), normalize=True)

    loss, image, fixed = Learned(), encoder(dropout=0.3), encoder().requires_grad_(False)
    x, y = torch.randn(12, 10), torch.randn(12, 10)
    CachedContrastiveStep([image, fixed], loss, 5)(x, y)
    assert loss.log.grad.abs() > 0
    assert all(p.grad is None for p in fixed.parameters())
    assert image[0].weight.grad.abs().sum() > 0


def test_autocast_and_scaler():
    model, loss, x = encoder(), InfoNCELoss(normalize=True), torch.randn(20, 10)
    other = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        features = torch.cat([model(part) for part in x.split(6)])
        value = loss(features, features.detach().roll(1, 0))
    value.backward()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    step = CachedContrastiveStep(other, lambda f: loss(f, f.detach().roll(1, 0)), 6, scaler=scaler)
    with torch.autocast("cpu", torch.bfloat16):
        found = step(x)
    torch.testing.assert_close(found, value.detach())
    assert_same([g / 256 for g in gradients(other)], gradients(model), rtol=0.02)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch.distributed without gloo")
def test_data_parallel_gradients_are_the_whole_batchs(tmp_path):
    found = run_ranks(cached_in_parallel, 2, tmp_path)
    for rank in range(2):
        assert_same(found[rank]["gradients"], found[rank]["whole"])
        # One exchange per parameter bucket and encoder, however many chunks there are.
        assert found[rank]["exchanges"] == 2


MEMORY = """
import torch
from cmx_fast.benchmarks.harness.memory import extra_peak
from torch import nn
from cmx_fast.losses import InfoNCELoss
from cmx_fast.ops import set_cache_budget
from cmx_fast.train.cached_step import CachedContrastiveStep
torch.manual_seed(0)
set_cache_budget(0)  # similarities kept for speed would be most of either
layers = [nn.Sequential(nn.ReLU(), nn.Linear(512, 512)) for _ in range(6)]
model = nn.Sequential(nn.Linear(16, 512), *layers, nn.Linear(512, 32))
loss, x = InfoNCELoss(normalize=True), torch.randn({rows}, 16)
step = CachedContrastiveStep(model, lambda f: loss(f, f.roll(1, 0)), 64)
step(x[:128])
def whole():
    f = model(x)
    loss(f, f.roll(1, 0)).backward()
print(extra_peak((lambda: step(x)) if {cached} else whole) / 2**20)
"""


def test_memory_is_a_chunks():
    def peak(cached):
        done = run_program(MEMORY.format(rows=4096, cached=cached))
        return float(done.stdout)

    # Activations of the whole batch are 13 times 8 MB.
    assert peak(True) < 0.5 * peak(False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CachedContrastiveStep(encoder(), InfoNCELoss(), 0), "chunk must be at least 1, got 0"),
        (lambda: step(torch.ones(3, 10)), "2 encoders take as many inputs, got 1"),
        (lambda: step(torch.ones(3, 10), torch.ones(0, 10)), "input 1 must have the same number .* got 0"),
        (lambda: step(torch.ones(3, 10), [torch.ones(3, 10), torch.ones(2, 10)]), "input 1 must have .* got 2, 3"),
        (
            lambda: CachedContrastiveStep([encoder()] * 2, lambda x, y: x.sum(), 2)(*torch.ones(2, 3, 10)),
            "the loss has no gradient by the features of input 1",
        ),
        (lambda: CachedContrastiveStep([encoder()] * 2, InfoNCELoss(), [4, 2, 1]), "one for each of 2 encoders"),
        (lambda: CachedContrastiveStep([encoder()] * 2, InfoNCELoss(), [4, 0]), "chunk must be at least 1, got 0"),
        (lambda: step("text", X), "input 0 must have the same number of samples, .* got no tensor"),
        (lambda: step(None, X), "input 0 must have the same number of samples, .* got no tensor"),
        (lambda: step(X, torch.tensor(3.0)), "input 1 must have the same number of samples, .* got no tensor"),
        (lambda: pooled(lambda f: f.mean(0, keepdim=True)), r"one row per sample, 2 here; got shape \(1, 8\)"),
        (lambda: pooled(lambda f: f.mean()), r"encoder 0 must give one row per sample, 2 here; got shape \(\)"),
    ],
)  # fmt: skip
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def step(*inputs):
    return CachedContrastiveStep([encoder(), encoder()], InfoNCELoss(), 2)(*inputs)


def pooled(function):
    CachedContrastiveStep(encoder(), lambda f: f.sum(), 2, get_rep_fn=function)(X)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CachedContrastiveStep(encoder(), InfoNCELoss(), 2.5), "chunk must be an integer, got 2.5"),
        (lambda: CachedContrastiveStep(encoder(), InfoNCELoss(), "8"), "chunk must be an integer, got '8'"),
        (lambda: CachedContrastiveStep(encoder(), InfoNCELoss(), True), "chunk must be an integer, got True"),
        (lambda: step(X, ["a"] * 7), "input 1 is a list of 7 without a tensor: samples must be tensors"),
        (lambda: step(X, {"input": X, "text": ["a"] * 7}), r"input 1\['text'\] is a list of 7 without a tensor"),
        (lambda: step(X, {"input": X, "size": (224, 224)}), r"input 1\['size'\] is a tuple of 2 without a tensor"),
        (lambda: step(X, [{"x": [X, {"y": numpy.ones(7)}]}]), r"input 1\[0\]\['x'\]\[1\]\['y'\] is a ndarray of 7"),
        (lambda: pooled(lambda f: [f]), "encoder 0 must give its features as a tensor, got list; pass get_rep_fn"),
    ],
)  # fmt: skip
def test_refuses_types(call, message):
    with pytest.raises(TypeError, match=message):
        call()
