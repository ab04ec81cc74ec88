"""Small detectors on an encoder's maps: SSD's default boxes, and a region proposal network with a classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from cmx_fast.evaluate.detection import Boxes
from cmx_fast.nn.attention import (
    DefaultBoxes,
    Proposed,
    RegionProposals,
    box_iou,
    multibox_loss,
    nms,
    proposal_loss,
    proposals,
)
from cmx_fast.systems.recognition.model import Joint, Plan, Recogniser
from cmx_fast.train.trainable import Batch

#: SSD300's sizes as shares of the picture: of its finest map, of the second, and of the one after the last.
FINEST_SIZE, SECOND_SIZE, LAST_SIZE = 0.1, 0.2, 1.05
#: The proposals that are classified in training and in evaluation; the paper: 2000 and 300.
TRAINED, TESTED = 64, 100
#: The overlap from which a proposal shows its object, and that above which the worse of two detections goes [P].
SHOWS, SUPPRESSED = 0.5, 0.45
#: Places a side of a proposal's features.
POOLED = 5
#: The least score of a detection, and the most detections of a picture [P, SSD].
LEAST_SCORE, MOST = 0.01, 200


class Detector(Recogniser):
    """Base of the detectors. A batch also has "boxes" (B, M, 4) as shares of the picture, "labels" (B, M) from 1 on and
    0 for none, and "difficult" (B, M), objects that training leaves out."""

    def objects(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """The boxes (N, 4) and labels (N,) of each picture."""
        there = (batch["labels"] > 0) & (batch["difficult"] == 0)
        return [
            (boxes[rows], labels[rows])
            for boxes, labels, rows in zip(batch["boxes"], batch["labels"], there, strict=True)
        ]

    def detections(self, outputs: Batch) -> list[Boxes]:
        """The detections of each picture, the best first, as shares of the picture."""
        raise NotImplementedError


class SSDDetector(Detector):
    """SSD: of each of several maps a score of every class and four offsets for each default box.

    The encoder's maps are followed by convolutions of stride 2 down to a single place, as in SSD300, whose sizes and
    ratios the boxes have.
    """

    def __init__(self, plan: Plan):
        super().__init__(plan)
        width, sides = plan.recipe.width, list(plan.levels.sides)
        self.lateral = nn.ModuleList(Joint((channels,), width) for channels in plan.levels.channels)
        self.further = nn.ModuleList()
        while sides[-1] > 1:
            self.further.append(
                nn.Sequential(
                    nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                )
            )
            sides.append(-(-sides[-1] // 2))
        size, count = plan.recipe.size, len(sides)
        shares = [FINEST_SIZE, *torch.linspace(SECOND_SIZE, LAST_SIZE, count).tolist()]
        ratios = [(2,) if number in (0, count - 2, count - 1) else (2, 3) for number in range(count)]
        self.boxes = DefaultBoxes(
            size, sides, [size / side for side in sides], [size * share for share in shares], ratios
        )
        self.classes = plan.classes + 1
        self.heads = nn.ModuleList(
            nn.Conv2d(width, (2 + 2 * len(of_map)) * (4 + self.classes), 3, padding=1) for of_map in ratios
        )

    def forward(self, batch: Batch) -> Batch:
        """ "offsets" (B, P, 4) and "logits" (B, P, classes + 1)."""
        maps = [lateral([x]) for lateral, x in zip(self.lateral, self.maps(batch), strict=True)]
        for layer in self.further:
            maps.append(layer(maps[-1]))
        rows = [
            head(x).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4 + self.classes))
            for head, x in zip(self.heads, maps, strict=True)
        ]
        offsets, logits = torch.cat(rows, 1).split([4, self.classes], 2)
        return {"offsets": offsets, "logits": logits}

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        matched = [self.boxes.match(boxes, labels) for boxes, labels in self.objects(batch)]
        return {"loss": multibox_loss(outputs["offsets"], outputs["logits"], matched)}

    def detections(self, outputs: Batch) -> list[Boxes]:
        chances = outputs["logits"].softmax(2)
        pairs = zip(outputs["offsets"], chances, strict=True)
        found = [
            self.boxes.detect(offsets, scores, least=LEAST_SCORE, overlap=SUPPRESSED, most=MOST)
            for offsets, scores in pairs
        ]
        return [Boxes(boxes.cpu(), labels.cpu(), scores.cpu()) for boxes, labels, scores in found]


class RPNDetector(Detector):
    """A region proposal network on the joint map, and a classifier of the features within each proposal.

    It is Faster R-CNN in small: the second network tells the class and leaves the box as proposed, and a detection's
    score is the product of both networks' [O]. In training the objects' own boxes are among the proposals.
    """

    def __init__(self, plan: Plan):
        super().__init__(plan)
        recipe = plan.recipe
        self.joint = Joint(plan.levels.channels, recipe.width)
        self.stride = recipe.size // plan.levels.sides[0]
        sizes = [recipe.size * share for share in (0.15, 0.3, 0.6)]
        self.propose = RegionProposals(recipe.width, self.stride, sizes, width=recipe.width)
        self.classify = nn.Sequential(
            nn.Flatten(),
            nn.Linear(recipe.width * POOLED * POOLED, 4 * recipe.width),
            nn.ReLU(),
            nn.Dropout(recipe.dropout),
            nn.Linear(4 * recipe.width, plan.classes + 1),
        )

    def forward(self, batch: Batch) -> Batch:
        """The proposals' scores and offsets; and of the best of them, in all pictures together, "boxes" (R, 4) in
        pixels, "picture" (R,), "proposed" scores (R,), and "classes" (R, classes + 1), logits."""
        features = self.joint(self.maps(batch))
        # Coordinates need float32, whatever the convolutions are in.
        proposed = Proposed(*(value.float() for value in self.propose(features)))
        sides = (self.recipe.size, self.recipe.size)
        with torch.no_grad():
            best = proposals(proposed, sides, after=TRAINED if self.training else TESTED)
            if self.training:
                truth = [boxes * self.recipe.size for boxes, _ in self.objects(batch)]
                best = [
                    (torch.cat([boxes, own]), torch.cat([scores, torch.ones_like(own[:, 0])]))
                    for (boxes, scores), own in zip(best, truth, strict=True)
                ]
        pooled = roi_align(
            features, [boxes for boxes, _ in best], POOLED, 1 / self.stride, sampling_ratio=2, aligned=True
        )
        counts = torch.tensor([len(scores) for _, scores in best], device=features.device)
        return {
            "scores": proposed.logits,
            "offsets": proposed.offsets,
            "anchors": proposed.anchors,
            "boxes": torch.cat([boxes for boxes, _ in best]),
            "picture": torch.arange(len(best), device=features.device).repeat_interleave(counts),
            "proposed": torch.cat([scores for _, scores in best]),
            "classes": self.classify(pooled),
        }

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        """The proposals' loss, and the cross-entropy of every proposal's class; 0 is the background."""
        objects = [(boxes * self.recipe.size, labels) for boxes, labels in self.objects(batch)]
        sides = (self.recipe.size, self.recipe.size)
        proposed = Proposed(outputs["scores"], outputs["offsets"], outputs["anchors"])
        proposing = proposal_loss(proposed, [boxes for boxes, _ in objects], sides)
        wanted = []
        for number, (boxes, labels) in enumerate(objects):
            own = outputs["boxes"][outputs["picture"] == number]
            if len(boxes) == 0:
                wanted.append(torch.zeros(len(own), dtype=torch.int64, device=own.device))
                continue
            share, object_of = box_iou(own, boxes).max(1)
            wanted.append(torch.where(share >= SHOWS, labels[object_of], 0))
        classifying = F.cross_entropy(outputs["classes"], torch.cat(wanted))
        return {"loss": proposing + classifying, "proposals": proposing, "classes": classifying}

    def detections(self, outputs: Batch) -> list[Boxes]:
        chances = outputs["classes"].softmax(1) * outputs["proposed"][:, None]
        found = []
        for number in range(len(outputs["scores"])):
            own = outputs["picture"] == number
            boxes, scores = outputs["boxes"][own] / self.recipe.size, chances[own]
            rows = []
            for label in range(1, scores.shape[1]):
                above = (scores[:, label] > LEAST_SCORE).nonzero()[:, 0]
                kept = above[nms(boxes[above], scores[above, label], SUPPRESSED, MOST)]
                rows.append((boxes[kept], torch.full_like(kept, label), scores[kept, label]))
            joined = [torch.cat(part) for part in zip(*rows, strict=True)]
            order = joined[2].sort(descending=True, stable=True).indices[:MOST]
            found.append(Boxes(*(part[order].cpu() for part in joined)))
        return found


DETECTORS: dict[str, type[Detector]] = {"ssd": SSDDetector, "rpn": RPNDetector}
