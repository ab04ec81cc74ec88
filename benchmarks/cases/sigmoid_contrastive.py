"""SigLIP's loss: the eager formula, OpenCLIP's class, and ours."""

from __future__ import annotations

import torch

from cmx_fast.ops import sigmoid_contrastive

from ..harness.problems import Problem, clip_problem
from ..harness.provider import OURS, Loss, Provider, compiled, formula
from ..peers import formulas, packages

SCALE, BIAS = 10.0, -10.0  # the paper's initial values


def problem(n: int, d: int) -> Problem:
    """Pairs (n, d), a learned scale and a learned bias."""
    pairs = clip_problem(n, d, temperature=1 / SCALE)
    bias = torch.tensor(BIAS, dtype=torch.float64)
    return Problem({**pairs.tensors, "logit_bias": bias}, (*pairs.leaves, "logit_bias"), pairs.temperature)


def _arguments(p: Problem) -> tuple:
    return p["query"], p["key"], p["logit_scale"], p["logit_bias"]


def _open_clip(p: Problem) -> Loss:
    loss = packages.open_clip_loss("SigLipLoss")
    return lambda: loss(*_arguments(p))


def _ours(p: Problem) -> Loss:
    return lambda: sigmoid_contrastive(*_arguments(p))


PROVIDERS: dict[str, dict[str, Provider]] = {
    "sigmoids": {
        "OpenCLIP's formula": formula(lambda p: formulas.siglip(*_arguments(p))),
        "torch.compile of it": compiled(formulas.siglip, _arguments),
        "open_clip SigLipLoss": Provider(
            _open_clip, lambda p: formulas.siglip(*_arguments(p)), package="open_clip_torch"
        ),
        OURS: Provider(_ours, lambda p: formulas.siglip(*_arguments(p))),
    }
}
