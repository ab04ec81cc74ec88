"""Classifiers by attention that is more than a layer: moved pictures, glimpses, parts, patches and scales."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.nn.attention import (
    AttentionProposal,
    GlimpseSequence,
    PartAttention,
    PartSequence,
    RecurrentAttention,
    RecurrentAttentionCNN,
    RecurrentAttentionCrop,
    SpatialTransformer,
    ThinPlateTransformer,
    TwoLevelAttention,
    part_attention_loss,
    ranking_loss,
    recurrent_attention_loss,
)
from cmx_fast.systems.recognition.model import Classifier, Plan, groups_of
from cmx_fast.train.trainable import Batch

#: The smallest probability of which the logarithm is taken.
LEAST = 1e-12


class TransformedClassifier(Classifier):
    """A spatial transformer reads the picture, affinely or bent, before the encoder sees it.

    The network that localises is a small one on a quarter of the resolution [O].
    """

    def __init__(self, plan: Plan):
        super().__init__(plan)
        localise = nn.Sequential(
            nn.AvgPool2d(4),
            nn.Conv2d(3, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
        make = SpatialTransformer if plan.attention == "stn" else ThinPlateTransformer
        self.transformer = make(localise, 32 * 16)

    def maps(self, batch: Batch) -> list[Tensor]:
        return super().maps({"picture": self.transformer(batch["picture"])})


class PartClassifier(Classifier):
    """FCAN on the coarsest map."""

    def new_head(self, plan: Plan) -> nn.Module:
        return PartAttention(plan.recipe.width, plan.classes, plan.recipe.parts, plan.recipe.part_size)

    def forward(self, batch: Batch) -> Batch:
        sequence = self.head(self.features(batch))
        return {"logits": sequence.log_probabilities[-1], **sequence._asdict()}

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        sequence = PartSequence(*(outputs[name] for name in PartSequence._fields))
        return {"loss": part_attention_loss(sequence, batch["label"], self.recipe.part_weight)}


class GlimpseClassifier(Classifier):
    """Recurrent attention whose glimpses, at two scales, are of the coarsest map."""

    def new_head(self, plan: Plan) -> nn.Module:
        recipe = plan.recipe
        return RecurrentAttention(
            plan.classes,
            recipe.width,
            size=recipe.glimpse_size,
            scales=2,
            factor=2,
            steps=recipe.glimpses,
            deviation=recipe.glimpse_deviation,
        )

    def forward(self, batch: Batch) -> Batch:
        sequence = self.head(self.features(batch))
        return {"logits": sequence.log_probabilities, **sequence._asdict()}

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        sequence = GlimpseSequence(*(outputs[name] for name in GlimpseSequence._fields))
        return {"loss": recurrent_attention_loss(sequence, batch["label"], self.recipe.glimpse_weight)}


class PatchClassifier(Classifier):
    """Two-level attention's object level on patches of the coarsest map, half its side wide and a quarter apart.

    The filter learns from boxes, "box" (B, 4) of a batch, which patches lie in the object by half or more [O]; the
    paper's is a network that knows birds from ImageNet.
    """

    places: Tensor
    head: TwoLevelAttention

    def new_head(self, plan: Plan) -> nn.Module:
        side = plan.levels.sides[-1]
        self.patch, self.step = max(1, side // 2), max(1, side // 4)
        starts = torch.arange(0, side - self.patch + 1, self.step)
        corners = torch.cartesian_prod(starts, starts).flip(1)  # x and y, row by row
        self.register_buffer("places", torch.cat([corners, corners + self.patch], 1) / side, persistent=False)
        relevance, classes = (
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(plan.recipe.width, outputs))
            for outputs in (2, plan.classes)
        )
        return TwoLevelAttention(relevance, classes, relevant=[1])

    def forward(self, batch: Batch) -> Batch:
        x = self.features(batch)
        columns = F.unfold(x, self.patch, stride=self.step)
        patches = columns.transpose(1, 2).unflatten(2, (x.shape[1], self.patch, self.patch))
        relevance = self.head.filter_net(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        return {"logits": self.head(patches).clamp_min(LEAST).log(), "relevance": relevance}

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        """The class by the selected patches, and for the filter which patches lie in the object."""
        places, boxes = self.places, batch["box"][:, None]
        low = torch.maximum(places[:, :2], boxes[..., :2])
        high = torch.minimum(places[:, 2:], boxes[..., 2:])
        inside = (high - low).clamp_min(0).prod(2) / (places[:, 2:] - places[:, :2]).prod(1)
        filtered = F.cross_entropy(outputs["relevance"].flatten(0, 1), (inside >= 0.5).long().flatten())
        classified = F.nll_loss(outputs["logits"], batch["label"])
        return {"loss": classified + filtered, "filter": filtered}


class CoarsestMap(nn.Module):
    """The coarsest map of pictures."""

    def __init__(self, encoder: VisualEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, pictures: Tensor) -> Tensor:
        return self.encoder.maps(pictures)[-1]


class ScaleClassifier(nn.Module):
    """RA-CNN: an encoder per scale, one for all where it is fixed; the players "networks" and "proposals" take turns.

    The scales' probabilities are averaged [O]; the paper trains another layer on the scales' features.
    """

    TURNS = ("networks", "proposals")

    def __init__(self, plan: Plan):
        super().__init__()
        assert plan.encoder is not None
        self.recipe = recipe = plan.recipe
        encoders = [plan.encoder] * recipe.scales
        if not plan.encoder.fixed:
            encoders = [copy.deepcopy(encoder) for encoder in encoders]
        channels, side = plan.levels.channels[-1], plan.levels.sides[-1]
        self.scales = RecurrentAttentionCNN(
            [CoarsestMap(encoder) for encoder in encoders],
            [self._classifier(channels, plan.classes) for _ in encoders],
            [AttentionProposal(channels * side * side, recipe.proposal_width) for _ in encoders[1:]],
            RecurrentAttentionCrop(recipe.size),
        )

    def _classifier(self, channels: int, classes: int) -> nn.Module:
        """The layers of :class:`Classifier` without attention, from the encoder's map to logits."""
        return nn.Sequential(
            nn.Conv2d(channels, self.recipe.width, 1, bias=False),
            nn.BatchNorm2d(self.recipe.width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(self.recipe.dropout),
            nn.Linear(self.recipe.width, classes),
        )

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups: the encoders', unless they are fixed, and the others'."""
        return groups_of(self, self.recipe, "scales.features.")

    def forward(self, batch: Batch, turn: str = "all") -> Batch:
        sequence = self.scales(batch["picture"], turn)
        chances = torch.stack([logits.softmax(1) for logits in sequence.logits]).mean(0)
        scales = {f"scale{number}": logits for number, logits in enumerate(sequence.logits)}
        return {"logits": chances.clamp_min(LEAST).log(), **scales}

    def losses(self, outputs: Batch, batch: Batch, turn: str = "networks") -> Batch:
        """The cross-entropies of all scales, or the ranking of each scale above the one before."""
        logits = [outputs[f"scale{number}"] for number in range(self.recipe.scales)]
        if turn == "proposals":
            ranking = ranking_loss(logits, batch["label"], self.recipe.margin)
            return {"loss": ranking, "ranking": ranking}
        loss = torch.stack([F.cross_entropy(scale, batch["label"]) for scale in logits]).sum()
        return {"loss": loss, "classes": loss}


class ProposalStart(nn.Module):
    """The first training of RA-CNN's proposals: to the windows in which the networks' maps answer most."""

    def __init__(self, model: ScaleClassifier):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Batch:
        windows, targets = self.model.scales.proposal_targets(batch["picture"])
        return {"windows": torch.stack(windows), "targets": torch.stack(targets)}

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        return {"loss": F.mse_loss(outputs["windows"], outputs["targets"])}


#: By the names of the modules that are no layer.
CLASSIFIERS: dict[str, type[Classifier]] = {
    "stn": TransformedClassifier,
    "stn-thin-plate": TransformedClassifier,
    "two-level": PatchClassifier,
    "recurrent": GlimpseClassifier,
    "fcan": PartClassifier,
}
