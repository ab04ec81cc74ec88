"""The survey's attention modules by name, each with the tasks that it is made for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from cmx_fast.nn.attention import (
    CBAM,
    ContextEncoding,
    DualAttention,
    MultiHeadSelfAttention,
    NonLocal,
    ObjectContext,
    ResidualAttention,
    SqueezeAttention,
    SqueezeExcite,
)
from cmx_fast.systems.recognition.recipe import RecognitionRecipe

SEGMENT, CLASSIFY, DETECT = "segment", "classify", "detect"
#: Tasks of the modules that are layers.
BOTH = (SEGMENT, CLASSIFY)


class MapSize(NamedTuple):
    """The classes to tell, and the side of the map that a module sees."""

    classes: int
    side: int


Build = Callable[[RecognitionRecipe, MapSize], nn.Module]


class Attention(NamedTuple):
    """A module of the survey.

    Attributes:
        title: its name in tables.
        tasks: that it is made for.
        build: makes it to stand between the encoder's map (B, width, h, w) and the last layer. None: it is no layer
            between the two, but a network of its own (:mod:`cmx_fast.systems.recognition.classifiers` and
            ``detectors``).
    """

    title: str
    tasks: tuple[str, ...]
    build: Build | None = None


ATTENTIONS: dict[str, Attention] = {
    "none": Attention("none", BOTH, lambda recipe, size: nn.Identity()),
    "se": Attention("SE", BOTH, lambda recipe, size: SqueezeExcite(recipe.width, recipe.reduction)),
    "cbam": Attention("CBAM", BOTH, lambda recipe, size: CBAM(recipe.width, recipe.reduction)),
    "non-local": Attention(
        "non-local", BOTH, lambda recipe, size: NonLocal(recipe.width, subsample=size.side > 1)
    ),
    "multi-head": Attention(
        "multi-head",
        BOTH,
        lambda recipe, size: MultiHeadSelfAttention(recipe.width, recipe.heads, size.side),
    ),
    "residual": Attention("residual", BOTH, lambda recipe, size: ResidualAttention(recipe.width, depth=2)),
    "danet": Attention(
        "DANet", (SEGMENT,), lambda recipe, size: DualAttention(recipe.width, size.classes, recipe.width)
    ),
    "ocnet": Attention("OCNet", (SEGMENT,), lambda recipe, size: ObjectContext(recipe.width, recipe.width)),
    "ocnet-pyramid": Attention(
        "OCNet, pyramid",
        (SEGMENT,),
        lambda recipe, size: ObjectContext(recipe.width, recipe.width, "pyramid"),
    ),
    "ocnet-asp": Attention(
        "OCNet, ASP", (SEGMENT,), lambda recipe, size: ObjectContext(recipe.width, recipe.width, "asp")
    ),
    "encnet": Attention(
        "EncNet",
        (SEGMENT,),
        lambda recipe, size: ContextEncoding(recipe.width, size.classes, recipe.codewords),
    ),
    "sanet": Attention("SANet", (SEGMENT,), lambda recipe, size: SqueezeAttention(recipe.width)),
    "stn": Attention("STN", (CLASSIFY,)),
    "stn-thin-plate": Attention("STN, thin plate", (CLASSIFY,)),
    "two-level": Attention("two-level", (CLASSIFY,)),
    "recurrent": Attention("recurrent", (CLASSIFY,)),
    "fcan": Attention("FCAN", (CLASSIFY,)),
    "ra-cnn": Attention("RA-CNN", (CLASSIFY,)),
    "ssd": Attention("SSD", (DETECT,)),
    "rpn": Attention("RPN", (DETECT,)),
}


def of_task(task: str) -> list[str]:
    """The names of the modules that are made for a task."""
    return [name for name, attention in ATTENTIONS.items() if task in attention.tasks]


def choose_attentions(names: list[str], task: str) -> list[str]:
    """The modules that ``names`` holds, in their own order; "all" stands for all of the task.

    Raises:
        ValueError: no name, one that is no module, or a module that is made for another task; says for which.
    """
    choices = of_task(task)
    unknown = [name for name in names if name not in [*ATTENTIONS, "all"]]
    if unknown or not names:
        raise ValueError(
            f"attention must be one or more of {', '.join(choices)}, all; got {', '.join(unknown) or 'none at all'}"
        )
    for name in names:
        if name != "all" and name not in choices:
            others = " and ".join(f"cmx train {other}" for other in ATTENTIONS[name].tasks)
            raise ValueError(
                f"attention {name} is made for {others}; cmx train {task} takes {', '.join(choices)}, all"
            )
    return [name for name in choices if name in names or "all" in names]
