"""The examples train; their first step's loss and gradients are those that the original packages' own losses give."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import gathered_losses
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from process_groups import run_ranks
from torch import Tensor, nn

from cmx_fast.benchmarks.peers import formulas, packages
from cmx_fast.nn.attention import (
    CBAM,
    MultiHeadSelfAttention,
    NonLocal,
    PositionAttention,
    SqueezeExcite,
)

FOLDER = Path(__file__).resolve().parents[2] / "examples"
if not FOLDER.is_dir():
    pytest.skip("needs a source tree", allow_module_level=True)
BRINGS = "pip install 'cmx-fast[examples]' brings it"

gloo = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch.distributed without gloo"
)


def example(name: str, *needs: str) -> ModuleType:
    """The example as a module; skips where a package that it shows is missing."""
    for package in needs:
        pytest.importorskip(package, reason=f"{package} is not installed; {BRINGS}")
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Processes that the example starts find its functions by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class SupContrast(nn.Module):
    """SupContrast's loss of labelled views by its formula; the authors' file is in no package."""

    def __init__(self, temperature: float = 0.07, base_temperature: float = 0.07):
        super().__init__()
        self.temperature, self.base_temperature = temperature, base_temperature

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        views = torch.cat(features.unbind(1))
        loss = formulas.supcon(views, labels.repeat(features.shape[1]), self.temperature)
        return loss * (self.temperature / self.base_temperature)


def original(path: str) -> type:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def gradients(model: nn.Module) -> list[Tensor]:
    return getattr(model, "gradients", None) or [p.grad for p in model.parameters() if p.grad is not None]


def assert_same(found: list, expected: list) -> None:
    """Values and gradients within 1e-5."""
    assert len(found) == len(expected) > 0
    for mine, other in zip(found, expected, strict=True):
        mine, other = (torch.as_tensor(x, dtype=torch.float64) for x in (mine, other))
        assert (mine - other).norm() <= 1e-5 * max(other.norm(), 1e-4), (mine, other)


CASES = {
    "open_clip_training_step": (["open_clip"], "open_clip.ClipLoss", {}),
    "open_clip_training_step, sigmoid": (["open_clip"], "open_clip.loss.SigLipLoss", {"sigmoid": True}),
    "supcontrast_pretraining": ([], SupContrast, {}),
    "metric_learning_memory": (["pytorch_metric_learning"], "pytorch_metric_learning.losses.SupConLoss", {}),
    "lightly_moco": (["lightly"], "lightly.loss.NTXentLoss", {}),
    "lightly_moco, neighbours": (["lightly"], "lightly.loss.NTXentLoss", {"neighbours": True}),
    "info_nce_negatives": (["info_nce"], "info_nce.InfoNCE", {}),
    "info_nce_negatives, paired": (["info_nce"], "info_nce.InfoNCE", {"negative_mode": "paired"}),
    "sentence_transformers_pairs": (
        ["sentence_transformers"],
        "sentence_transformers.sentence_transformer.losses.MultipleNegativesRankingLoss",
        {},
    ),
    "lightning_two_towers": (["pytorch_lightning"], "open_clip", {}),
    "hugging_face_trainer": (["transformers", "accelerate"], "open_clip", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_step_is_the_original_s(case):
    needs, theirs, options = CASES[case]
    main = example(case.partition(",")[0], *needs).main
    if theirs == "open_clip":
        try:
            theirs = type(packages.open_clip_loss())
        except packages.MissingPeerError as error:
            pytest.skip(str(error))
    theirs = original(theirs) if isinstance(theirs, str) else theirs
    results = []
    for loss in ((), (theirs,)):
        (value,), model = main(*loss, steps=1, **options)
        results.append([value, *gradients(model)])
    assert_same(*results)


#: Losses over banks or mined pairs do not fall from the first step on: their negatives change.
RISING = ("metric_learning_memory", "lightly_moco")


@pytest.mark.parametrize("case", [case for case in CASES if case not in RISING])
def test_it_trains(case):
    needs, _, options = CASES[case]
    values, _ = example(case.partition(",")[0], *needs).main(**options)
    assert len(values) == 20
    assert np.isfinite(values).all() and np.mean(values[-5:]) < 0.9 * values[0]


@pytest.mark.parametrize("case", RISING)
def test_it_trains_as_the_original_does(case):
    needs, theirs, options = CASES[case]
    main = example(case, *needs).main
    ours, expected = main(**options)[0], main(original(theirs), **options)[0]
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)


@gloo
def test_simclr_trains_over_two_processes(monkeypatch):
    simclr = example("lightly_simclr", "lightly")
    monkeypatch.syspath_prepend(str(FOLDER))
    values, _ = simclr.main()
    assert len(values) == 20 and values[-1] < 0.9 * values[0]


@gloo
def test_simclr_s_loss_over_two_processes_is_the_original_s(tmp_path):
    pytest.importorskip("lightly", reason=f"lightly is not installed; {BRINGS}")
    for found in run_ranks(gathered_losses.lightly, 2, tmp_path):
        assert len(found) == 6
        for ours, theirs in found.values():
            assert_same(ours, theirs)


@pytest.mark.parametrize(
    "attention",
    [CBAM, SqueezeExcite, NonLocal, PositionAttention, MultiHeadSelfAttention],
    ids=lambda c: c.__name__,
)
def test_timm_trains_with_attention(attention):
    values, model = example("timm_attention", "timm").main(attention, steps=4)
    assert sum(isinstance(module, attention) for module in model.modules()) == 8
    assert values[-1] < values[0]


def test_dense_contrast_finds_the_place_that_sounds():
    main = example("dense_localisation").main

    def eager(picture, sound, key_mask):
        tokens, sound = F.normalize(picture.flatten(2), dim=1).transpose(1, 2), F.normalize(sound, dim=2)
        best = torch.einsum("bpd,mtd->bmpt", tokens, sound).amax(2)
        logits = 10 * (best * key_mask).sum(2) / key_mask.sum(1)
        own = torch.arange(len(logits))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    np.testing.assert_allclose(main(steps=5)[0], main(eager, steps=5)[0], rtol=1e-4)
    values, found = main()
    assert values[-1] < values[0] / 2 and found > 0.9


def test_squeeze_and_excitation_is_timm_s():
    layers = pytest.importorskip("timm.layers", reason=f"timm is not installed; {BRINGS}")
    ours, theirs = SqueezeExcite(32, bias=True), layers.SEModule(32, rd_channels=2)
    for mine, other in zip(ours.fc.parameters(), theirs.parameters(), strict=True):
        other.data = mine.data.view_as(other)
    results = []
    for layer in (ours, theirs):
        x = torch.randn(2, 32, 5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
        value = layer(x).square().sum()
        value.backward()
        results.append([value.detach(), x.grad, *(grad.flatten() for grad in gradients(layer))])
    assert_same(*results)


def test_the_pipeline_is_scikit_learn_s():
    module = example("sklearn_pipeline", "sklearn")
    import sklearn.cluster

    ours = module.main()
    theirs = module.main(sklearn.cluster.KMeans, sklearn.cluster.MiniBatchKMeans)
    assert list(ours[0].get_feature_names_out()) == list(theirs[0].get_feature_names_out())
    inertias = [clusters[-1].inertia_ for clusters, *_ in (ours, theirs)]
    assert inertias[0] == pytest.approx(inertias[1], rel=1e-5)
    # The seeds draw other starts: the clusters are the same, in another order.
    assert_same(*(np.sort(distances, axis=1)[:, 0] for _, distances, _ in (ours, theirs)))
    assert ours[2] > 0.95 and theirs[2] > 0.95
