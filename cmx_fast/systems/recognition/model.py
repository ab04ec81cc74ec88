"""Networks that segment or classify: an encoder's maps, an attention module, a last layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.nn.attention import ContextEncoding, DualAttention, presence_loss
from cmx_fast.systems.recognition.attentions import LAYERS, MapSize
from cmx_fast.systems.recognition.recipe import RecognitionRecipe
from cmx_fast.train.trainable import Batch


class Levels(NamedTuple):
    """The maps of an encoder that a network uses, finest first.

    Attributes:
        numbers: among the encoder's maps. channels: of each. sides: of each, for pictures of the recipe's size.
    """

    numbers: tuple[int, ...]
    channels: tuple[int, ...]
    sides: tuple[int, ...]

    @staticmethod
    def of(encoder: VisualEncoder, recipe: RecognitionRecipe) -> Levels:
        """The maps of stride ``finest`` and more; raises as :meth:`VisualEncoder.map_shapes`."""
        channels, sides, _ = zip(*encoder.map_shapes(recipe.size, recipe.finest), strict=True)
        count = len(encoder.strides)
        return Levels(tuple(range(count - len(sides), count)), channels, sides)


class Joint(nn.Module):
    """One map (B, width, h, w) of maps of several strides, with the finest one's h and w.

    A 1 x 1 convolution of the maps side by side, the coarser ones enlarged bilinearly: taken apart, so that each map is
    convolved at its own size. Then a norm and a ReLU.
    """

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(c, width, 1, bias=False) for c in channels)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        finest, *coarser = [part(x) for part, x in zip(self.parts, maps, strict=True)]
        for x in coarser:
            finest = finest + F.interpolate(x, finest.shape[2:], mode="bilinear")
        return F.relu(self.norm(finest))


class Plan(NamedTuple):
    """What a network is built of.

    Attributes:
        attention: its name. classes: their number.
        levels: the encoder's maps that are used.
        encoder: makes maps of pictures; None: the batches have them.
    """

    recipe: RecognitionRecipe
    attention: str
    classes: int
    levels: Levels
    encoder: VisualEncoder | None


class Recogniser(nn.Module):
    """Base of the networks. A batch has "picture" (B, 3, S, S) in [0, 1], or of a fixed encoder "map0", "map1", ..."""

    def __init__(self, plan: Plan):
        super().__init__()
        self.recipe, self.levels, self.encoder = plan.recipe, plan.levels, plan.encoder

    def maps(self, batch: Batch) -> list[Tensor]:
        """The maps of a batch, finest first."""
        if self.encoder is None:
            return [batch[f"map{number}"] for number in range(len(self.levels.numbers))]
        maps = self.encoder.maps(batch["picture"])
        return [maps[number] for number in self.levels.numbers]

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups: the encoder's, unless it is fixed, and the others'."""
        return groups_of(self, self.recipe, "encoder.")

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        """The losses of a batch; "loss" is minimised."""
        raise NotImplementedError


def groups_of(network: nn.Module, recipe: RecognitionRecipe, encoder: str) -> list[dict[str, Any]]:
    """Parameter groups: those that learn among the parameters whose names begin with ``encoder``, and the others."""
    named = list(network.named_parameters())
    learnt = [value for name, value in named if name.startswith(encoder) and value.requires_grad]
    others = [value for name, value in named if not name.startswith(encoder)]
    of_encoder = [{"params": learnt, "lr": recipe.encoder_lr}] if learnt else []
    return [*of_encoder, {"params": others, "lr": recipe.lr}]


class Segmenter(Recogniser):
    """The maps, a 3 x 3 convolution, attention, a 1 x 1 convolution; DANet has last layers of its own, three of them.

    Without attention it is FCN's head as DANet's, OCNet's and EncNet's codes have it. A batch also has "mask" (B, S, S)
    int64, -1 where it does not count.
    """

    def __init__(self, plan: Plan):
        super().__init__(plan)
        recipe, build = plan.recipe, LAYERS.get(plan.attention)
        assert build is not None
        self.joint = nn.Sequential(
            Joint(plan.levels.channels, recipe.width),
            nn.Conv2d(recipe.width, recipe.width, 3, padding=1, bias=False),
            nn.BatchNorm2d(recipe.width),
            nn.ReLU(),
        )
        self.attention = build(recipe, MapSize(plan.classes, plan.levels.sides[0]))
        if not isinstance(self.attention, DualAttention):
            self.last = nn.Sequential(nn.Dropout2d(recipe.dropout), nn.Conv2d(recipe.width, plan.classes, 1))

    def forward(self, batch: Batch) -> Batch:
        """ "logits" (B, classes, h, w) of the finest map; of DANet also its branches', of EncNet "presence"."""
        features = self.joint(self.maps(batch))
        if isinstance(self.attention, DualAttention):
            total, positions, channels = self.attention(features)
            return {"logits": total, "positions": positions, "channels": channels}
        if isinstance(self.attention, ContextEncoding):
            features, presence = self.attention(features)
            return {"logits": self.last(features), "presence": presence}
        return {"logits": self.last(self.attention(features))}

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        """Cross-entropy of every pixel; DANet's branches have their own, and EncNet its SE-loss."""
        mask = batch["mask"]
        losses: Batch = {
            name: pixel_loss(outputs[name], mask)
            for name in ("logits", "positions", "channels")
            if name in outputs
        }
        total = torch.stack(list(losses.values())).sum()
        if "presence" in outputs:
            losses["presence"] = presence_loss(outputs["presence"], mask)
            total = total + self.recipe.presence_weight * losses["presence"]
        return {"loss": total, **({} if len(losses) == 1 else losses)}


def pixel_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """The mean cross-entropy of logits (B, classes, h, w), enlarged to the mask (B, S, S), over pixels that count."""
    enlarged = F.interpolate(logits, mask.shape[1:], mode="bilinear")
    return F.cross_entropy(enlarged, mask, ignore_index=-1, reduction="sum") / (mask >= 0).sum().clamp_min(1)


class Classifier(Recogniser):
    """The coarsest map, attention, its mean, and a linear layer; batches also have "label" (B,) int64."""

    def __init__(self, plan: Plan):
        super().__init__(plan)
        self.joint = Joint(plan.levels.channels[-1:], plan.recipe.width)
        self.head = self.new_head(plan)

    def new_head(self, plan: Plan) -> nn.Module:
        """The modules from the map (B, width, h, w) on."""
        build = LAYERS.get(plan.attention)
        size = MapSize(plan.classes, plan.levels.sides[-1])
        return nn.Sequential(
            nn.Identity() if build is None else build(plan.recipe, size),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(plan.recipe.dropout),
            nn.Linear(plan.recipe.width, plan.classes),
        )

    def features(self, batch: Batch) -> Tensor:
        """The coarsest map at the recipe's width."""
        return self.joint(self.maps(batch)[-1:])

    def forward(self, batch: Batch) -> Batch:
        return {"logits": self.head(self.features(batch))}

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        return {"loss": F.cross_entropy(outputs["logits"], batch["label"])}
