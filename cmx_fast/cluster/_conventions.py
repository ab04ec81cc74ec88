"""scikit-learn's conventions: its own base classes, errors and warnings where it is installed, else stand-ins."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np

try:
    from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
    from sklearn.exceptions import ConvergenceWarning, NotFittedError

    class Base(TransformerMixin, ClusterMixin, BaseEstimator):
        """``set_output``, the routing of metadata (``set_fit_request``), tags and the HTML of notebooks."""

        def __sklearn_tags__(self) -> Any:
            tags = super().__sklearn_tags__()
            tags.input_tags.sparse = True
            return tags

except ImportError:

    class NotFittedError(ValueError, AttributeError):  # type: ignore[no-redef]
        """An estimator is used before it is fitted."""

    class ConvergenceWarning(UserWarning):  # type: ignore[no-redef]
        """There are fewer different samples than clusters."""

    class Base:  # type: ignore[no-redef]
        """An empty base: without scikit-learn there are no conventions to serve."""


def check_integer(name: str, value: Any, least: int, other: str = "") -> None:
    """Refuse, by name, a value that is not an integer of at least ``least``."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be {other}an integer of at least {least}, got {value!r}")


def check_number(name: str, value: Any, most: float = float("inf")) -> None:
    """Refuse, by name, a value that is not a number from 0 to ``most``."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) <= most:
        bounds = f"from 0 to {most:g}" if most < float("inf") else "of at least 0"
        raise ValueError(f"{name} must be a number {bounds}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Refuse, by name, a value that is neither True nor False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def column_names(X: Any) -> np.ndarray | None:
    """The names of a data frame's columns if they are strings, else None.

    Raises:
        TypeError: only some of them are.
    """
    names = [] if getattr(X, "columns", None) is None else list(X.columns)
    kinds = sorted({type(name).__name__ for name in names})
    strings = sum(isinstance(name, str) for name in names)
    if 0 < strings < len(names):
        raise TypeError(f"columns of X must all have strings as names, or none, got {kinds}; rename them")
    return np.array(names, dtype=object) if strings else None


def check_column_names(estimator: Any, given: np.ndarray | None) -> None:
    """Refuse the columns of a data frame that are not the fitted one's, or are in another order."""
    fitted = getattr(estimator, "feature_names_in_", None)
    name = type(estimator).__name__
    if fitted is None or given is None:
        if given is not None:
            warnings.warn(f"X has feature names, but {name} was fitted without feature names", stacklevel=4)
        if fitted is not None:
            warnings.warn(
                f"X does not have valid feature names, but {name} was fitted with feature names", stacklevel=4
            )
        return
    if list(fitted) == list(given):
        return
    lines = ["The feature names should match those that were passed during fit."]
    unseen, missing = sorted(set(given) - set(fitted)), sorted(set(fitted) - set(given))
    for heading, names in (
        ("Feature names unseen at fit time:", unseen),
        ("Feature names seen at fit time, yet now missing:", missing),
    ):
        if names:
            lines += [heading, *(f"- {name}" for name in names[:5]), *(["- ..."] if len(names) > 5 else [])]
    if not unseen and not missing:
        lines.append("Feature names must be in the same order as they were in fit.")
    raise ValueError("\n".join(lines) + "\n")
