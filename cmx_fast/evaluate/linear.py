"""Linear classification of frozen features: by a machine of scikit-learn's, or of many rows by gradient descent."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast._extras import require

#: Penalties of the support vector machine that are tried (CrissCross's code), and ridges of least squares;
#: cross-validation on the training set chooses one.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
RIDGES = (1e-1, 1.0, 10.0, 1e2, 1e3)
MACHINES = ("svm", "ridge")
FOLDS = 3
#: More rows than these are classified by gradient descent: a machine's time grows with their square.
MOST_ROWS = 20_000
#: Gradient descent: weight decays that are tried, the share of the groups that chooses one, rows per step and epochs.
DECAYS = (1e-5, 1e-4, 1e-3)
CHOOSING = 0.1
ROWS = 1024
EPOCHS = 20


def classify(
    train: Tensor, labels: Tensor, test: Tensor, *, groups: Tensor | None = None, machine: str = "svm"
) -> Tensor:
    """Fit a linear machine to ``train`` (N, D) and its labels (N,); gives decision values (M, classes) of ``test``.

    Features are standardised by the training set. The penalty is chosen on the training set alone. Above
    :data:`MOST_ROWS` rows :func:`descend` takes the machine's place.

    Args:
        test: (M, D).
        groups: (N,) int64; rows of one group, such as clips of one sound, are never divided between the rows that fit
            and those that choose the penalty. None: every row for itself.
        machine: "svm", a support vector machine with squared hinges, or "ridge", least squares in closed form, whose
            time hardly depends on the penalty.

    Raises:
        MissingExtraError: scikit-learn is not installed; names the extra.
        ValueError: fewer than two classes in the labels, or an unknown machine.
    """
    if machine not in MACHINES:
        raise ValueError(f"machine must be {' or '.join(MACHINES)}; got {machine!r}")
    if len(labels.unique()) < 2:
        raise ValueError(f"the training set has {len(labels.unique())} class; a classifier needs two")
    if len(train) > MOST_ROWS:
        return descend(train, labels, test, groups)
    require("sklearn", "train")
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, StratifiedKFold
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    fit, tried = {
        "svm": (LinearSVC(dual="auto", max_iter=5000), {"fit__C": PENALTIES}),
        "ridge": (RidgeClassifier(), {"fit__alpha": RIDGES}),
    }[machine]
    classifier = Pipeline([("standardise", StandardScaler()), ("fit", fit)])
    rows_of = torch.arange(len(labels)) if groups is None else groups
    # Every part of the rows has each class: of the class of the fewest groups, one at least.
    smallest = min(len(rows_of[labels == label].unique()) for label in labels.unique())
    together: dict[str, Any] = {}
    if smallest >= 2:
        parts = (StratifiedKFold if groups is None else StratifiedGroupKFold)(min(FOLDS, smallest))
        classifier = GridSearchCV(classifier, tried, cv=parts)
        together = {} if groups is None else {"groups": groups.numpy()}
    # In double precision: least squares of many features that are nearly alike are ill-conditioned in single.
    classifier.fit(train.double().numpy(), labels.numpy(), **together)
    values = torch.from_numpy(classifier.decision_function(test.double().numpy()))
    known = labels.unique()
    # Two classes have one decision value.
    values = torch.stack([-values, values], 1) if values.dim() == 1 else values
    result = values.new_full((len(test), int(known.max()) + 1), -torch.inf)
    result[:, known] = values
    return result


def descend(train: Tensor, labels: Tensor, test: Tensor, groups: Tensor | None = None) -> Tensor:
    """Multinomial logistic regression by stochastic gradient descent; arguments and result as of :func:`classify`.

    A tenth of the groups chooses the weight decay. Cost: four fits of 20 epochs, 6 N D classes operations each; the
    training set is standardised in a copy.
    """
    deviation, mean = torch.std_mean(train.float(), 0)
    scale = torch.where(deviation > 0, deviation, 1.0)
    known, numbers = labels.unique(return_inverse=True)
    rows = (train.float() - mean) / scale
    whole = torch.arange(len(rows)) if groups is None else groups.unique(return_inverse=True)[1]
    order = torch.randperm(int(whole.max()) + 1, generator=torch.Generator().manual_seed(0))
    chooses = torch.isin(whole, order[: int(CHOOSING * len(order))])
    choosing, fitting = chooses.nonzero()[:, 0], (~chooses).nonzero()[:, 0]

    def right(decay: float) -> float:
        layer = _fit(rows, numbers, fitting, len(known), decay)
        return float((layer(rows[choosing]).argmax(1) == numbers[choosing]).double().mean())

    layer = _fit(rows, numbers, torch.arange(len(rows)), len(known), max(DECAYS, key=right))
    result = rows.new_full((len(test), int(known.max()) + 1), -torch.inf)
    with torch.no_grad():
        result[:, known] = layer((test.float() - mean) / scale)
    return result


def _fit(rows: Tensor, numbers: Tensor, used: Tensor, classes: int, decay: float) -> torch.nn.Linear:
    """A linear layer fitted to the rows ``used``: momentum 0.9, and a rate that falls to 0 along a cosine."""
    layer = torch.nn.Linear(rows.shape[1], classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=decay)
    generator = torch.Generator().manual_seed(0)
    steps = EPOCHS * -(-len(used) // ROWS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for batch in used[torch.randperm(len(used), generator=generator)].split(ROWS):
            loss = F.cross_entropy(layer(rows[batch]), numbers[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return layer.requires_grad_(False)


def accuracy(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """The share of test rows whose highest decision value is that of their class."""
    return float((classify(train, labels, test).argmax(1) == test_labels).double().mean())
