"""The network of each task and attention module."""

from __future__ import annotations

from cmx_fast.systems.recognition.classifiers import CLASSIFIERS, ScaleClassifier
from cmx_fast.systems.recognition.detectors import DETECTORS
from cmx_fast.systems.recognition.model import Classifier, Plan, Recogniser, Segmenter
from cmx_fast.systems.recognition.options import CLASSIFY, DETECT
from cmx_fast.systems.recognition.recipe import RecognitionRecipe

Network = Recogniser | ScaleClassifier

#: Modules that act on pictures: a fixed encoder's maps can't be kept for them.
ON_PICTURES = ("stn", "stn-thin-plate", "ra-cnn")


def new_model(task: str, plan: Plan) -> Network:
    """A network with fresh weights, but for the encoder's.

    An encoder that stays fixed, and whose maps are given, is no part of the network.
    """
    if plan.attention == "ra-cnn":
        return ScaleClassifier(plan)
    if not needs_pictures(plan.attention, plan.recipe):
        plan = plan._replace(encoder=None)
    if task == DETECT:
        return DETECTORS[plan.attention](plan)
    return CLASSIFIERS.get(plan.attention, Classifier)(plan) if task == CLASSIFY else Segmenter(plan)


def needs_pictures(attention: str, recipe: RecognitionRecipe) -> bool:
    """True for networks that see pictures; the others are given the maps of a fixed encoder."""
    return not recipe.freeze or attention in ON_PICTURES
