"""The survey's attention modules that are layers, by name."""

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


class MapSize(NamedTuple):
    """The classes to tell, and the side of the map that a module sees."""

    classes: int
    side: int


#: The makers of the modules that stand between the encoder's map (B, width, h, w) and the last layer. The others are
#: networks of their own (:mod:`cmx_fast.systems.recognition.classifiers` and ``detectors``).
LAYERS: dict[str, Callable[[RecognitionRecipe, MapSize], nn.Module]] = {
    "none": lambda recipe, size: nn.Identity(),
    "se": lambda recipe, size: SqueezeExcite(recipe.width, recipe.reduction),
    "cbam": lambda recipe, size: CBAM(recipe.width, recipe.reduction),
    "non-local": lambda recipe, size: NonLocal(recipe.width, subsample=size.side > 1),
    "multi-head": lambda recipe, size: MultiHeadSelfAttention(recipe.width, recipe.heads, size.side),
    "residual": lambda recipe, size: ResidualAttention(recipe.width, depth=2),
    "danet": lambda recipe, size: DualAttention(recipe.width, size.classes, recipe.width),
    "ocnet": lambda recipe, size: ObjectContext(recipe.width, recipe.width),
    "ocnet-pyramid": lambda recipe, size: ObjectContext(recipe.width, recipe.width, "pyramid"),
    "ocnet-asp": lambda recipe, size: ObjectContext(recipe.width, recipe.width, "asp"),
    "encnet": lambda recipe, size: ContextEncoding(recipe.width, size.classes, recipe.codewords),
    "sanet": lambda recipe, size: SqueezeAttention(recipe.width),
}
