"""The contrastive losses: their problems, the eager formula, the packages that ship it, and ours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.losses import NTXentLoss
from cmx_fast.ops import info_nce, supcon

from ..harness.problems import Problem
from ..harness.provider import OURS, Loss, Provider, captured, compiled, formula
from ..peers import formulas, kernels, packages


def _clip(p: Problem) -> tuple:
    return p["query"], p["key"], p["logit_scale"]


def _moco(p: Problem) -> tuple:
    return p["query"], p["key"], p["bank"].T, p.temperature


def _supcon(p: Problem) -> tuple:
    return p["features"], p["labels"], p.temperature


def _ntxent_with_bank(p: Problem) -> Tensor:
    return formulas.ntxent_with_bank(p["query"], p["key"], p["bank"], p.temperature)


def _clip_formula(p: Problem) -> Tensor:
    return formulas.clip(*_clip(p))


def _metric_learning_formula(p: Problem) -> Tensor:
    loss = formulas.supcon(F.normalize(p["features"], dim=1), p["labels"], p.temperature)
    # Its mean is over the anchors that have a positive.
    return loss * len(p["labels"]) / (p["labels"].bincount()[p["labels"]] > 1).sum()


def _open_clip(p: Problem) -> Loss:
    loss = packages.open_clip_loss()
    return lambda: loss(*_clip(p))


def _metric_learning(p: Problem) -> Loss:
    loss = packages.metric_learning_supcon(p.temperature)
    return lambda: loss(p["features"], p["labels"])


def _lightly(p: Problem) -> Loss:
    loss = packages.lightly_ntxent(p.temperature, p["bank"])
    return lambda: loss(p["query"], p["key"])


def _info_nce_pytorch(p: Problem) -> Loss:
    loss = packages.info_nce_pytorch(p.temperature)
    return lambda: loss(p["query"], p["key"], p["bank"])


def _memeff(p: Problem) -> Loss:
    loss = kernels.memeff_clip(p.temperature)
    return lambda: loss(p["query"], p["key"])


def _siglip_formula(p: Problem) -> Tensor:
    return formulas.siglip(p["query"], p["key"], p["logit_scale"], kernels.SIGLIP_BIAS)


def _ntxent(p: Problem) -> tuple:
    return p["query"], p["key"], p.temperature


def _lightly_views(p: Problem) -> Loss:
    loss = packages.lightly_ntxent(p.temperature)
    return lambda: loss(p["query"], p["key"])


def _our_views(p: Problem) -> Loss:
    loss = NTXentLoss(p.temperature)
    return lambda: loss(p["query"], p["key"])


def _our_ntxent(p: Problem) -> Loss:
    loss = NTXentLoss(p.temperature, memory_bank_size=tuple(p["bank"].shape))
    assert loss.memory_bank is not None
    loss.memory_bank.rows = p["bank"].clone()
    return lambda: loss(p["query"], p["key"])


def _our_info_nce(p: Problem) -> Loss:
    return lambda: info_nce(*_clip(p))


def _our_bank(p: Problem) -> Loss:
    query, key, bank, scale = p["query"], p["key"], p["bank"], 1 / p.temperature
    return lambda: info_nce(query, key, scale, bank=bank, in_batch=False, symmetric=False)


def _banks(p: Problem) -> tuple[Tensor, Tensor]:
    first, second = p["bank"].chunk(2)
    return first, second


def _two_banks(p: Problem) -> tuple:
    return p["query"], p["key"], _banks(p), p.temperature


def _our_two_banks(p: Problem) -> Loss:
    query, key, banks, scale = p["query"], p["key"], _banks(p), 1 / p.temperature
    return lambda: info_nce(query, key, scale, bank=banks, in_batch=False, symmetric=False)


def _our_supcon(p: Problem) -> Loss:
    features, labels, scale = p["features"], p["labels"], 1 / p.temperature
    return lambda: supcon(features, labels, scale)


_CLIP_FORMULA, _COMPILED_CLIP = formula(_clip_formula), compiled(formulas.clip, _clip)
_OURS = Provider(_our_info_nce, _clip_formula)

# By the loss that they compute; in the order of the tables.
PROVIDERS: dict[str, dict[str, Provider]] = {
    "clip": {
        "OpenCLIP's formula": _CLIP_FORMULA,
        "OpenCLIP's formula, a graph": captured(_CLIP_FORMULA),
        "torch.compile of it": _COMPILED_CLIP,
        "torch.compile of it, a graph": captured(_COMPILED_CLIP),
        "open_clip ClipLoss": Provider(_open_clip, _clip_formula, package="open_clip_torch"),
        "memeff": Provider(_memeff, _clip_formula, package="memeff"),
        "inf_cl": Provider(lambda p: kernels.inf_cl_clip(*_clip(p)), _clip_formula, package="inf_cl"),
        "cut-cross-entropy": Provider(
            lambda p: kernels.cce_clip(*_clip(p)), _clip_formula, package="cut-cross-entropy"
        ),
        "siglip-kernel (sigmoids)": Provider(
            lambda p: kernels.siglip(*_clip(p)), _siglip_formula, package="siglip-kernel"
        ),
        f"{OURS} float32": Provider(_our_info_nce, _clip_formula, dtype=torch.float32),
        OURS: _OURS,
        f"{OURS}, a graph": captured(_OURS),
    },
    "two views": {
        "lightly's formula": formula(lambda p: formulas.ntxent(*_ntxent(p))),
        "torch.compile of it": compiled(formulas.ntxent, _ntxent),
        "lightly NTXentLoss": Provider(
            _lightly_views, lambda p: formulas.ntxent(*_ntxent(p)), package="lightly"
        ),
        OURS: Provider(_our_views, lambda p: formulas.ntxent(*_ntxent(p))),
    },
    "bank": {
        "MoCo's formula": formula(lambda p: formulas.moco(*_moco(p))),
        "torch.compile of it": compiled(formulas.moco, _moco),
        "lightly's formula": formula(_ntxent_with_bank),
        "lightly NTXentLoss": Provider(_lightly, _ntxent_with_bank, package="lightly"),
        "info-nce-pytorch": Provider(_info_nce_pytorch, _ntxent_with_bank, package="info-nce-pytorch"),
        OURS: Provider(_our_bank, lambda p: formulas.moco(*_moco(p))),
        f"{OURS} NTXentLoss": Provider(_our_ntxent, _ntxent_with_bank),
    },
    "two banks": {
        "MoCo's formula": formula(lambda p: formulas.two_banks(*_two_banks(p))),
        "torch.compile of it": compiled(formulas.two_banks, _two_banks),
        OURS: Provider(_our_two_banks, lambda p: formulas.two_banks(*_two_banks(p))),
    },
    "supcon": {
        "SupContrast's formula": formula(lambda p: formulas.supcon(*_supcon(p))),
        "torch.compile of it": compiled(formulas.supcon, _supcon),
        "pytorch-metric-learning": Provider(
            _metric_learning, _metric_learning_formula, package="pytorch-metric-learning"
        ),
        OURS: Provider(_our_supcon, lambda p: formulas.supcon(*_supcon(p))),
    },
}
