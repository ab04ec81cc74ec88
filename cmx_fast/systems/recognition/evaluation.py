"""Measures networks on held-out pictures: predicted classes against true ones, and the cost of a training step."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from cmx_fast.evaluate import segmentation
from cmx_fast.evaluate.summary import SeedScores, new_table, seeds_note
from cmx_fast.systems.recognition.attentions import ATTENTIONS, SEGMENT
from cmx_fast.systems.recognition.classifiers import ScaleClassifier
from cmx_fast.systems.recognition.data import Examples
from cmx_fast.systems.recognition.model import Classifier, Segmenter
from cmx_fast.train.trainable import Batch

Network = Segmenter | Classifier | ScaleClassifier

#: Pictures in the report.
EXAMPLES = 8
#: The figures of each class by name, of :class:`cmx_fast.evaluate.segmentation.Agreement`, with their titles.
BY_CLASS = {"iou": "IoU", "recall": "accuracy"}
#: Steps that are timed, after one that is not.
TIMED = 5


@torch.no_grad()
def predictions(model: Network, examples: Examples) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Predict every example in float32: yields indices, predicted classes and true ones.

    Classes are (B, S, S) of masks, -1 where a pixel does not count, or (B,) of pictures.
    """
    training = model.training
    model.eval()
    for batch in examples.in_order():
        logits, truth = model(batch)["logits"], batch["mask" if "mask" in batch else "label"]
        if truth.dim() == 3:
            logits = F.interpolate(logits, truth.shape[1:], mode="bilinear")
        yield batch["index"].cpu(), logits.argmax(1).cpu(), truth.cpu()
    model.train(training)


def confusion(model: Network, examples: Examples) -> Tensor:
    """Count the pixels, or pictures, of each predicted class in each true one: (classes, classes) int64."""
    return count(model, examples)[0]


def count(model: Network, examples: Examples, kept: Sequence[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
    """The counts of :func:`confusion`, and the predictions of some examples by index."""
    classes = len(examples.dataset.class_names)
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    shown: dict[int, Tensor] = {}
    for index, predicted, truth in predictions(model, examples):
        counts += segmentation.confusion(predicted, truth, classes, classes)
        shown |= {i: row for i, row in zip(index.tolist(), predicted, strict=True) if i in kept}
    return counts, shown


def figures_of(counts: Tensor) -> dict[str, float]:
    """The figures of a network from the counts of :func:`confusion`, each a share of 1."""
    agreement = segmentation.agreement(counts)
    return {
        "accuracy": agreement.accuracy,
        "class_accuracy": float(agreement.recall.nanmean()),
        "miou": float(agreement.iou.nanmean()),
    }


def measures(task: str) -> dict[str, str]:
    """The figures of a task's table, with their titles."""
    if task == SEGMENT:
        return {"accuracy": "accuracy", "class_accuracy": "per class", "miou": "mIoU"}
    return {"accuracy": "top-1", "class_accuracy": "per class"}


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
        largest_class: the accuracy of the most frequent class for everything.
        examples: indices of the pictures in the report.
        shown: by model, the first seed's prediction of each of them.
    """

    task: str
    split: str
    scores: SeedScores
    by_class: dict[str, dict[str, list[float | None]]]
    costs: dict[str, Cost]
    largest_class: float
    examples: list[int]
    shown: dict[str, dict[int, Tensor]]

    def as_dict(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "largest_class": self.largest_class,
            **self.scores.as_dict(list(measures(self.task))),
            "by_class": self.by_class,
            "costs": {name: value._asdict() for name, value in self.costs.items()},
        }


def table(evaluation: Evaluation, pictures: int, batch: int) -> Table:
    """The table for a terminal: percent, mean and spread over the seeds, and the costs."""
    columns = measures(evaluation.task)
    rows = new_table(
        f"{pictures} pictures of the split {evaluation.split}, %; all of the largest class: "
        f"{100 * evaluation.largest_class:.1f}; steps of {batch}" + seeds_note(evaluation.scores.seeds),
        [*columns.values(), "parameters", "ms", "MiB kept"],
    )
    for name, cost in evaluation.costs.items():
        rows.add_row(
            ATTENTIONS[name].title,
            *(evaluation.scores.percent(name, measure) for measure in columns),
            *cost_cells(cost),
        )
    return rows


def of_classes(seeds: Sequence[segmentation.Agreement]) -> dict[str, list[float | None]]:
    """The figures of each class, means over the seeds."""
    means = {figure: torch.stack([getattr(seed, figure) for seed in seeds]).nanmean(0) for figure in BY_CLASS}
    return {
        figure: [None if math.isnan(value) else value for value in values.tolist()]
        for figure, values in means.items()
    }


def cost_cells(cost: Cost) -> list[str]:
    """Parameters, milliseconds of a step, and mebibytes that it keeps, as text."""
    return [f"{cost.parameters:,}", f"{1000 * cost.seconds:.0f}", f"{cost.kept / 2**20:.1f}"]
