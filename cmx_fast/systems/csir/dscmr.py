"""DSCMR, the baseline of the CSIR paper's table (there "DCMR").

Zhen et al., "Deep Supervised Cross-Modal Retrieval", CVPR 2019; sizes, weights and the norms as in its public code.
Here it has the same pre-trained encoders as CSIR. Their features are standardised, and they are fine-tuned for as many
steps at the same rates (ours; its own code takes ready-made features and a rate of 1e-4). So the two differ in the
common space and the loss alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.systems.csir.model import ImageEncoder, SpeechEncoder, TwoTowers, accuracy
from cmx_fast.systems.csir.recipe import CSIRRecipe
from cmx_fast.train.trainable import Batch


class DSCMR(TwoTowers):
    """A linear layer and a ReLU per modality; then a linear layer to the common space and a classifier for both.

    J = mean ||p_v - y|| + mean ||p_s - y||                                        (labels, y one-hot)
      + alpha * sum over (v,s), (v,v), (s,s) of mean_ij [log(1 + e^t_ij) - S_ij t_ij]   (t = cosine / 2)
      + beta * mean ||f_v - f_s||                                                  (modality invariance)

    with alpha = 1e-3, beta = 0.1, S_ij = 1 for rows of the same space, and row norms that are not squared.
    """

    def __init__(self, recipe: CSIRRecipe, spaces: int, image: ImageEncoder, speech: SpeechEncoder):
        super().__init__(recipe, image, speech)
        self.spaces = spaces
        self.image_hidden = nn.Linear(self.image_width, recipe.dscmr_hidden)
        self.speech_hidden = nn.Linear(speech.dim, recipe.dscmr_hidden)
        self.common = nn.Linear(recipe.dscmr_hidden, recipe.dscmr_dim)
        self.classifier = nn.Linear(recipe.dscmr_dim, spaces)

    def project_image(self, features: Tensor) -> Tensor:
        return self.common(F.relu(self.image_hidden(self.image_norm(features))))

    def project_speech(self, features: Tensor) -> Tensor:
        return self.common(F.relu(self.speech_hidden(self.speech_norm(features))))

    def forward(self, batch: Batch) -> Batch:
        image_features, speech_features = self.features(batch)
        image, speech = self.project_image(image_features), self.project_speech(speech_features)
        return {
            "image": image,
            "speech": speech,
            "image_space": self.classifier(image),
            "speech_space": self.classifier(speech),
        }

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        """Loss, its three parts and the classifier's accuracy on speech; the batch has "space" (B,) int64."""
        recipe, space = self.recipe, batch["space"]
        image, speech = outputs["image"], outputs["speech"]
        one_hot = F.one_hot(space, self.spaces).to(image.dtype)
        labels = sum(
            (outputs[f"{modality}_space"] - one_hot).norm(dim=1).mean() for modality in ("image", "speech")
        )
        same = (space[:, None] == space[None, :]).to(image.dtype)
        v, s = F.normalize(image, dim=1), F.normalize(speech, dim=1)
        discrimination = sum(likelihood(a, b, same) for a, b in ((v, s), (v, v), (s, s)))
        invariance = (image - speech).norm(dim=1).mean()
        return {
            "loss": labels + recipe.dscmr_alpha * discrimination + recipe.dscmr_beta * invariance,
            "labels": torch.as_tensor(labels),
            "discrimination": torch.as_tensor(discrimination),
            "invariance": invariance,
            "accuracy": accuracy(outputs["speech_space"], space),
        }


def likelihood(a: Tensor, b: Tensor, same: Tensor) -> Tensor:
    """The mean of log(1 + e^theta) - same * theta for theta = a b^T / 2: (B, D), (B, D), (B, B) -> 0-d."""
    theta = 0.5 * (a @ b.T)
    return (F.softplus(theta) - same * theta).mean()
