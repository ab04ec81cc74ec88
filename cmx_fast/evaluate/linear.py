"""Linear classification of frozen features by a support vector machine, as audio features are judged."""

from __future__ import annotations

import torch
from torch import Tensor

from cmx_fast._extras import require

#: Penalties that are tried (CrissCross's code); cross-validation on the training set chooses one.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 3


def classify(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Fit a linear SVM to ``train`` (N, D) and its labels (N,); gives decision values (M, classes) of ``test`` (M, D).

    Features are standardised by the training set. The penalty is chosen on the training set alone.

    Raises:
        MissingExtraError: scikit-learn is not installed; names the extra.
        ValueError: fewer than two classes in the labels.
    """
    require("sklearn", "train")
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    if len(labels.unique()) < 2:
        raise ValueError(f"the training set has {len(labels.unique())} class; a classifier needs two")
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


def accuracy(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """The share of test rows whose highest decision value is that of their class."""
    return float((classify(train, labels, test).argmax(1) == test_labels).double().mean())
