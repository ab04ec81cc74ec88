"""Patched packages make this package's losses and estimators wherever they make their own, until it is undone."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from cmx_fast import cluster, losses, patch
from cmx_fast._extras import MissingExtraError
from cmx_fast.losses import metric_learning

CLASSES = {
    "open_clip": ("open_clip.ClipLoss", losses.ClipLoss),
    "lightly": ("lightly.loss.NTXentLoss", losses.NTXentLoss),
    "pytorch_metric_learning": ("pytorch_metric_learning.losses.SupConLoss", metric_learning.SupConLoss),
    "info_nce": ("info_nce.InfoNCE", losses.InfoNCE),
    "sklearn": ("sklearn.cluster.KMeans", cluster.KMeans),
}


def installed(package: str) -> ModuleType:
    return pytest.importorskip(
        package, reason=f"{package} is not installed; pip install 'cmx-fast[examples]'"
    )


def look_up(path: str) -> type:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("package", CLASSES)
def test_classes_are_replaced_said_and_put_back(package, caplog):
    installed(package)
    caplog.set_level("INFO", "cmx_fast")
    path, ours = CLASSES[package]
    original = look_up(path)
    handle = getattr(patch, package)()
    try:
        assert look_up(path) is ours
        assert path in handle.replaced
        for name in handle.replaced:
            assert look_up(name).__module__.startswith("cmx_fast.")
            assert f"{name} is cmx_fast's" in caplog.text
        replaced = handle.replaced
        with pytest.raises(RuntimeError, match="is cmx_fast's already; undo the first patch"):
            getattr(patch, package)()
    finally:
        handle.undo()
    for name in replaced:
        assert not look_up(name).__module__.startswith("cmx_fast.")
    assert look_up(path) is original
    handle.undo()
    assert look_up(path) is original
    with getattr(patch, package)():
        assert look_up(path) is ours
    assert look_up(path) is original


def test_sentence_transformers_classes_are_replaced():
    installed("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses as theirs

    from cmx_fast.losses.sentence_transformers import FusedMultipleNegativesRankingLoss as Ours

    original = theirs.MultipleNegativesRankingLoss
    with patch.sentence_transformers():
        assert theirs.MultipleNegativesRankingLoss is Ours
        assert isinstance(theirs.CachedMultipleNegativesRankingLoss(nn.Sequential(nn.Identity())).loss, Ours)
    assert theirs.MultipleNegativesRankingLoss is original


def test_open_clip_s_factory_makes_the_fused_losses():
    factory = installed("open_clip.factory")
    arguments = SimpleNamespace(
        distill=False, model="ViT-B-32", siglip=False, local_loss=True, gather_with_grad=True, rank=0, world_size=1,
        horovod=False, loss_dist_impl=None,
    )  # fmt: skip
    with patch.open_clip():
        loss = factory.create_loss(arguments)
        sigmoid = factory.create_loss(SimpleNamespace(**{**vars(arguments), "siglip": True}))
    assert type(sigmoid) is losses.SigLipLoss and sigmoid.dist_impl == "bidir"
    assert type(loss) is losses.ClipLoss and loss.local_loss and loss.gather_with_grad
    assert type(factory.create_loss(arguments)) is not losses.ClipLoss


def test_sklearn_s_functions_make_our_k_means():
    sklearn_cluster = installed("sklearn.cluster")
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    start = x[:4]
    expected = sklearn_cluster.k_means(x, 4, init=start, n_init=1)
    with patch.sklearn():
        estimator = sklearn_cluster.KMeans(4, init=start, n_init=1).fit(x)
        centers, labels, inertia = sklearn_cluster.k_means(x, 4, init=start, n_init=1)
    assert isinstance(estimator, cluster.KMeans)
    np.testing.assert_allclose(centers, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(labels, expected[1])
    assert inertia == pytest.approx(expected[2], rel=1e-5)


def fake(monkeypatch, arguments: str | None = None, name: str = "InfoNCE") -> ModuleType:
    """A stand-in for info-nce-pytorch whose class takes these arguments."""
    module = ModuleType("info_nce")
    if arguments is not None:
        exec(f"class {name}:\n    def __init__(self, {arguments}): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "info_nce", module)
    return module


def test_modules_that_are_imported_later_are_put_back(monkeypatch):
    package = fake(monkeypatch, "temperature=0.1")
    original = package.InfoNCE
    later = ModuleType("info_nce.later")
    with patch.info_nce() as handle:
        assert handle.replaced == ["info_nce.InfoNCE"]
        later.Loss = package.InfoNCE
        monkeypatch.setitem(sys.modules, "info_nce.later", later)
        assert later.Loss(0.3).temperature == 0.3
    assert later.Loss is original


@pytest.mark.parametrize(
    ("arguments", "name", "message"),
    [
        (None, "", "has no info_nce.InfoNCE; it can't be patched"),
        ("temperature", "InfoNce", "has no info_nce.InfoNCE; it can't be patched"),
        (
            "temperature, margin=0.1",
            "InfoNCE",
            r"info_nce.InfoNCE of info.nce.pytorch.* has arguments that cmx_fast.losses.InfoNCE lacks: "
            r"__init__\(margin=\)",
        ),
    ],
)
def test_packages_of_another_shape_are_refused(monkeypatch, arguments, name, message):
    installed("info_nce")
    fake(monkeypatch, arguments, name)
    with pytest.raises(RuntimeError, match=message):
        patch.info_nce()


def test_what_is_no_class_is_refused(monkeypatch):
    fake(monkeypatch).InfoNCE = torch.nn.functional.cross_entropy
    with pytest.raises(RuntimeError, match="info_nce.InfoNCE of .* is no class, but function"):
        patch.info_nce()


@pytest.mark.parametrize("package", [*CLASSES, "sentence_transformers"])
def test_a_missing_package_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=f"there is no {package} to patch; pip install 'cmx-fast"):
        getattr(patch, package)()
