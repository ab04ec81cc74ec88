"""Measures networks on held-out pictures: predictions against the truth, and the cost of a training step."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from cmx_fast.evaluate import detection, segmentation
from cmx_fast.evaluate.summary import SeedScores, new_table, seeds_note
from cmx_fast.systems.recognition.classifiers import ScaleClassifier
from cmx_fast.systems.recognition.data import Examples
from cmx_fast.systems.recognition.detectors import Detector
from cmx_fast.systems.recognition.networks import Network
from cmx_fast.systems.recognition.options import ATTENTIONS, CLASSIFY, DETECT, SEGMENT
from cmx_fast.train.trainable import Batch

#: Pictures in the report.
EXAMPLES = 8
#: The figures of a task's table with their titles, the one that it is mostly judged by first.
MEASURES = {
    SEGMENT: {"miou": "mIoU", "accuracy": "accuracy", "class_accuracy": "per class"},
    CLASSIFY: {"accuracy": "top-1", "class_accuracy": "per class"},
    DETECT: {"map": "mAP at 0.5"},
}
#: The figures of each class with their titles.
BY_CLASS = {
    SEGMENT: {"iou": "IoU", "recall": "accuracy"},
    CLASSIFY: {"recall": "accuracy"},
    DETECT: {"precision": "average precision at 0.5"},
}
#: Steps that are timed, after one that is not.
TIMED = 5


class Measured(NamedTuple):
    """The figures of a network on a split.

    Attributes:
        figures: :data:`MEASURES`, each a share of 1.
        by_class: :data:`BY_CLASS`, (classes,) each; NaN for a class that is not there.
        shown: predictions of some examples by index: (S, S) classes, a class, or the detections.
        largest: the accuracy of the most frequent class for everything; None of detections.
    """

    figures: dict[str, float]
    by_class: dict[str, Tensor]
    shown: dict[int, Any]
    largest: float | None


def measure(model: Network, examples: Examples, kept: Sequence[int] = ()) -> Measured:
    """Measure a network on all examples, in float32; ``kept``: the examples whose predictions are shown."""
    return (
        _measure_boxes(model, examples, kept)
        if isinstance(model, Detector)
        else _measure(model, examples, kept)
    )


def _measure(model: Network, examples: Examples, kept: Sequence[int]) -> Measured:
    """Count the pixels, or pictures, of each predicted class in each true one."""
    classes = len(examples.dataset.class_names)
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    shown: dict[int, Any] = {}
    for batch, outputs in predictions(model, examples):
        logits, truth = outputs["logits"], batch["mask" if "mask" in batch else "label"]
        if truth.dim() == 3:
            logits = F.interpolate(logits, truth.shape[1:], mode="bilinear")
        predicted = logits.argmax(1).cpu()
        counts += segmentation.confusion(predicted, truth.cpu(), classes, classes)
        shown |= _chosen(batch, predicted, kept)
    agreement = segmentation.agreement(counts)
    figures = {
        "accuracy": agreement.accuracy,
        "class_accuracy": float(agreement.recall.nanmean()),
        "miou": float(agreement.iou.nanmean()),
    }
    by_class = {"iou": agreement.iou, "recall": agreement.recall}
    return Measured(figures, by_class, shown, float(counts.sum(0).max() / counts.sum()))


def _measure_boxes(model: Detector, examples: Examples, kept: Sequence[int]) -> Measured:
    """Compare the detections of each class with its objects."""
    found: list[detection.Boxes] = []
    objects: list[detection.Boxes] = []
    shown: dict[int, Any] = {}
    for batch, outputs in predictions(model, examples):
        detections = model.detections(outputs)
        found += detections
        for boxes, labels, difficult in zip(batch["boxes"], batch["labels"], batch["difficult"], strict=True):
            there = labels.cpu() > 0
            objects.append(
                detection.Boxes(boxes.cpu()[there], labels.cpu()[there], None, difficult.cpu()[there] > 0)
            )
        shown |= _chosen(batch, detections, kept)
    labels = range(1, len(examples.dataset.class_names) + 1)
    precision = torch.tensor([detection.average_precision(found, objects, label) for label in labels])
    return Measured({"map": float(precision.nanmean())}, {"precision": precision}, shown, None)


@torch.no_grad()
def predictions(model: Network, examples: Examples) -> Iterator[tuple[Batch, Batch]]:
    """Every example once: yields batches with the network's outputs in evaluation."""
    training = model.training
    model.eval()
    for batch in examples.in_order():
        yield batch, model(batch)
    model.train(training)


def _chosen(batch: Batch, predicted: Iterable[Any], kept: Sequence[int]) -> dict[int, Any]:
    return {i: row for i, row in zip(batch["index"].tolist(), predicted, strict=True) if i in kept}


class Cost(NamedTuple):
    """The cost of a network in training.

    Attributes:
        parameters: that are trained.
        seconds: of a step without its data: forward, losses, backward; the median.
        kept: bytes that the forward pass keeps for the backward pass, beside the parameters and the batch.
    """

    parameters: int
    seconds: float
    kept: int


def cost(model: Network, batch: Batch) -> Cost:
    """Measure the cost of training steps on a batch; the network's weights stay."""
    training = model.training
    model.train()
    own = {storage(value) for value in [*model.parameters(), *model.buffers(), *batch.values()]}
    kept: dict[tuple[int, int], int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if storage(tensor) not in own:
            kept[storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    state = {name: value.clone() for name, value in model.named_buffers()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = step_outputs(model, batch)
    total = sum(kept.values())
    del outputs
    seconds = []
    for _ in range(TIMED + 1):
        synchronise(batch)
        began = time.perf_counter()
        step_outputs(model, batch).backward()
        synchronise(batch)
        seconds.append(time.perf_counter() - began)
        model.zero_grad()
    with torch.no_grad():
        for name, value in model.named_buffers():
            value.copy_(state[name])
    model.train(training)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    return Cost(trained, statistics.median(seconds[1:]), total)


def step_outputs(model: Network, batch: Batch) -> Tensor:
    """The loss of a step; of players that take turns the sum."""
    if isinstance(model, ScaleClassifier):
        turns = (model.losses(model(batch, turn), batch, turn)["loss"] for turn in model.TURNS)
        return torch.stack(list(turns)).sum()
    return model.losses(model(batch), batch)["loss"]


def storage(tensor: Tensor) -> tuple[int, int]:
    """The place of a tensor's memory, the same for all its views."""
    held = tensor.untyped_storage()
    return held.data_ptr(), held.nbytes()


def synchronise(batch: Batch) -> None:
    device = next(iter(batch.values())).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Evaluation:
    """The figures of the table and the report.

    Attributes:
        task, split.
        scores: by model, each seed's.
        by_class: by model, :data:`BY_CLASS` of each class, means over the seeds; None where a class is not there.
        costs: by model.
        largest: the accuracy of the most frequent class for everything; None of detections.
        examples: indices of the pictures in the report.
        shown: by model, the first seed's prediction of each of them.
    """

    task: str
    split: str
    scores: SeedScores
    by_class: dict[str, dict[str, list[float | None]]]
    costs: dict[str, Cost]
    largest: float | None
    examples: list[int]
    shown: dict[str, dict[int, Any]]

    def as_dict(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "largest_class": self.largest,
            **self.scores.as_dict(list(MEASURES[self.task])),
            "by_class": self.by_class,
            "costs": {name: value._asdict() for name, value in self.costs.items()},
        }


def table(evaluation: Evaluation, pictures: int, batch: int) -> Table:
    """The table for a terminal: percent, mean and spread over the seeds, and the costs."""
    columns = MEASURES[evaluation.task]
    largest = (
        "" if evaluation.largest is None else f"; all of the largest class: {100 * evaluation.largest:.1f}"
    )
    rows = new_table(
        f"{pictures} pictures of the split {evaluation.split}, %{largest}; steps of {batch}"
        + seeds_note(evaluation.scores.seeds),
        [*columns.values(), "parameters", "ms", "MiB kept"],
    )
    for name, cost in evaluation.costs.items():
        rows.add_row(
            ATTENTIONS[name].title,
            *(evaluation.scores.percent(name, measure) for measure in columns),
            *cost_cells(cost),
        )
    return rows


def of_classes(task: str, seeds: Sequence[Measured]) -> dict[str, list[float | None]]:
    """The figures of each class, means over the seeds."""
    means = {
        figure: torch.stack([seed.by_class[figure] for seed in seeds]).nanmean(0) for figure in BY_CLASS[task]
    }
    return {
        figure: [None if math.isnan(value) else value for value in values.tolist()]
        for figure, values in means.items()
    }


def cost_cells(cost: Cost) -> list[str]:
    """Parameters, milliseconds of a step, and mebibytes that it keeps, as text."""
    return [f"{cost.parameters:,}", f"{1000 * cost.seconds:.0f}", f"{cost.kept / 2**20:.1f}"]
