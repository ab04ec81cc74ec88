"""Linear classification of frozen features: by a support vector machine, or of many rows by gradient descent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast._extras import require

#: Penalties that are tried (CrissCross's code); cross-validation on the training set chooses one.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 3
#: More rows than these are classified by gradient descent: a machine's time grows with their square.
MOST_ROWS = 20_000
#: Gradient descent: weight decays that are tried, the share of the rows that chooses one, rows per step and epochs.
DECAYS = (1e-5, 1e-4, 1e-3)
CHOOSING = 0.1
ROWS = 1024
EPOCHS = 20


def classify(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Fit a linear SVM to ``train`` (N, D) and its labels (N,); gives decision values (M, classes) of ``test`` (M, D).

    Features are standardised by the training set. The penalty is chosen on the training set alone. Above
    :data:`MOST_ROWS` rows :func:`descend` takes the machine's place.

    Raises:
        MissingExtraError: scikit-learn is not installed; names the extra.
        ValueError: fewer than two classes in the labels.
    """
    if len(labels.unique()) < 2:
        raise ValueError(f"the training set has {len(labels.unique())} class; a classifier needs two")
    if len(train) > MOST_ROWS:
        return descend(train, labels, test)
    require("sklearn", "train")
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    machine = make_pipeline(StandardScaler(), LinearSVC(dual="auto", max_iter=5000))
    smallest = int(labels.bincount()[labels.unique()].min())
    if smallest >= 2:
        machine = GridSearchCV(machine, {"linearsvc__C": PENALTIES}, cv=min(FOLDS, smallest))
    machine.fit(train.numpy(), labels.numpy())
    values = torch.from_numpy(machine.decision_function(test.numpy()))
    known = labels.unique()
    # Two classes have one decision value.
    values = torch.stack([-values, values], 1) if values.dim() == 1 else values
    result = values.new_full((len(test), int(known.max()) + 1), -torch.inf)
    result[:, known] = values
    return result


def descend(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Multinomial logistic regression by stochastic gradient descent; arguments and result as of :func:`classify`.

    A tenth of the rows chooses the weight decay. Cost: four fits of 20 epochs, 6 N D classes operations each; the
    training set is standardised in a copy.
    """
    deviation, mean = torch.std_mean(train.float(), 0)
    scale = torch.where(deviation > 0, deviation, 1.0)
    known, numbers = labels.unique(return_inverse=True)
    rows = (train.float() - mean) / scale
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    choosing, fitting = order.split([int(CHOOSING * len(rows)), len(rows) - int(CHOOSING * len(rows))])

    def right(decay: float) -> float:
        layer = _fit(rows, numbers, fitting, len(known), decay)
        return float((layer(rows[choosing]).argmax(1) == numbers[choosing]).double().mean())

    layer = _fit(rows, numbers, order, len(known), max(DECAYS, key=right))
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
