"""Baselines that ask how much of the retrieval is naming the space, or hearing how long it rings, on each side alone.

Both have CSIR's encoders, steps and rates, so that the tables compare methods.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.systems.csir.model import ImageEncoder, RT60Scale, SpeechEncoder, TwoTowers, accuracy
from cmx_fast.systems.csir.recipe import CSIRRecipe
from cmx_fast.train.trainable import Batch


class Classifiers(TwoTowers):
    """An image classifier and a speech classifier: the cosine is between the probabilities of the spaces.

    Neither side sees the other. L = CE(space from the image) + CE(space from the speech).
    """

    def __init__(self, recipe: CSIRRecipe, spaces: int, image: ImageEncoder, speech: SpeechEncoder):
        super().__init__(recipe, image, speech)
        self.image_classifier = nn.Linear(self.image_width, spaces)
        self.speech_classifier = nn.Linear(speech.dim, spaces)

    def project_image(self, features: Tensor) -> Tensor:
        return self.image_classifier(self.image_norm(features)).softmax(1)

    def project_speech(self, features: Tensor) -> Tensor:
        return self.speech_classifier(self.speech_norm(features)).softmax(1)

    def forward(self, batch: Batch) -> Batch:
        image, speech = self.features(batch)
        return {
            "image_space": self.image_classifier(self.image_norm(image)),
            "speech_space": self.speech_classifier(self.speech_norm(speech)),
        }

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        """Loss, its two parts and the speech classifier's accuracy; the batch has "space" (B,) int64."""
        image = F.cross_entropy(outputs["image_space"], batch["space"])
        speech = F.cross_entropy(outputs["speech_space"], batch["space"])
        return {
            "loss": image + speech,
            "image_ce": image,
            "speech_ce": speech,
            "accuracy": accuracy(outputs["speech_space"], batch["space"]),
        }


class DecayTime(TwoTowers):
    """RT60 alone: both sides estimate it, and the nearest estimate ranks first.

    The cosine of two numbers has no use, so the standardised logarithm v of RT60, within +-4, becomes the angle
    pi v / 8: the cosine between angles falls as their difference grows. L = the squared errors of both sides.
    """

    def __init__(self, recipe: CSIRRecipe, spaces: int, image: ImageEncoder, speech: SpeechEncoder):
        super().__init__(recipe, image, speech)
        self.scale = RT60Scale()
        self.image_rt60 = nn.Linear(self.image_width, 1)
        self.speech_rt60 = nn.Linear(speech.dim, 1)

    def project_image(self, features: Tensor) -> Tensor:
        return _as_angle(self.image_rt60(self.image_norm(features)))

    def project_speech(self, features: Tensor) -> Tensor:
        return _as_angle(self.speech_rt60(self.speech_norm(features)))

    def forward(self, batch: Batch) -> Batch:
        image, speech = self.features(batch)
        return {
            "image_rt60": self.image_rt60(self.image_norm(image)).squeeze(1),
            "speech_rt60": self.speech_rt60(self.speech_norm(speech)).squeeze(1),
        }

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        """Loss and its two parts; the batch has "rt60" (B,) seconds or NaN."""
        image, speech = (
            self.scale.squared_error(outputs[f"{side}_rt60"], batch["rt60"]) for side in ("image", "speech")
        )
        return {"loss": image + speech, "image_rt60": image, "speech_rt60": speech}


def _as_angle(value: Tensor) -> Tensor:
    """(B, 1) numbers as points of the half circle, (B, 2)."""
    angle = value.clamp(-4, 4) * (math.pi / 8)
    return torch.cat([angle.cos(), angle.sin()], dim=1)
