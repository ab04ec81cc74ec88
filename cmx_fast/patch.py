"""Puts this package's losses and estimators in the place of an installed package's own, without a change of its users.

.. code-block:: python

    import cmx_fast.patch

    cmx_fast.patch.open_clip()             # before or after the training script's imports of open_clip's modules
    with cmx_fast.patch.sklearn():         # until the block ends
        ...

A class is replaced wherever the package's own modules have bound its name. Names that other modules bound before, such
as a script's ``from open_clip import ClipLoss``, and classes that were built on the original stay as they are.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import logging
import sys
from collections.abc import Mapping
from types import ModuleType, TracebackType
from typing import Any

from typing_extensions import Self

from cmx_fast._extras import MissingExtraError

logger = logging.getLogger("cmx_fast")


class Patch:
    """The classes that a call replaced; as a context manager it undoes itself.

    Attributes:
        replaced: names that now lead to this package, such as "open_clip.factory.ClipLoss".
    """

    def __init__(self, package: str, replacements: Mapping[type, type]):
        self._package = package
        self._replacements = dict(replacements)
        self.replaced = self._exchange(self._replacements)
        for name in self.replaced:
            logger.info("%s is cmx_fast's", name)

    def undo(self) -> None:
        """Put the originals back, also in modules of the package that were imported meanwhile; twice does no harm."""
        self._exchange({ours: original for original, ours in self._replacements.items()})
        self.replaced = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"Patch({self._package!r}, replaced={self.replaced})"

    def _exchange(self, new: Mapping[type, type]) -> list[str]:
        """Rebind the package's names of the old classes; returns them, sorted."""
        changed = []
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] != self._package or not isinstance(module, ModuleType):
                continue
            for attribute, value in list(vars(module).items()):
                if isinstance(value, type) and value in new:
                    setattr(module, attribute, new[value])
                    changed.append(f"{name}.{attribute}")
        return sorted(changed)


def open_clip() -> Patch:
    """Replace ``open_clip.ClipLoss`` and ``SigLipLoss``, also for ``create_loss``, by :mod:`cmx_fast.losses`' own.

    Returns:
        What was replaced, to be undone.

    Raises:
        MissingExtraError: the package is not installed.
        RuntimeError: it lacks one of the classes, has one with other arguments, or it is patched already.
    """
    names = ("ClipLoss", "SigLipLoss")
    return _patch("open_clip", {f"open_clip.loss.{name}": f"cmx_fast.losses.{name}" for name in names})


def lightly() -> Patch:
    """Replace ``lightly.loss.NTXentLoss`` by :class:`cmx_fast.losses.NTXentLoss`; errors as of :func:`open_clip`."""
    return _patch("lightly", {"lightly.loss.ntx_ent_loss.NTXentLoss": "cmx_fast.losses.NTXentLoss"})


def pytorch_metric_learning() -> Patch:
    """Replace pytorch-metric-learning's ``SupConLoss`` by :class:`cmx_fast.losses.metric_learning.SupConLoss`.

    Errors are those of :func:`open_clip`.
    """
    return _patch(
        "pytorch_metric_learning",
        {"pytorch_metric_learning.losses.SupConLoss": "cmx_fast.losses.metric_learning.SupConLoss"},
    )


def sentence_transformers() -> Patch:
    """Replace ``MultipleNegativesRankingLoss`` by that of :mod:`cmx_fast.losses.sentence_transformers`.

    Errors are those of :func:`open_clip`.
    """
    original = "sentence_transformers.sentence_transformer.losses.MultipleNegativesRankingLoss"
    return _patch(
        "sentence_transformers",
        {original: "cmx_fast.losses.sentence_transformers.FusedMultipleNegativesRankingLoss"},
    )


def info_nce() -> Patch:
    """Replace info-nce-pytorch's ``InfoNCE`` by :class:`cmx_fast.losses.InfoNCE`; errors as of :func:`open_clip`."""
    return _patch("info_nce", {"info_nce.InfoNCE": "cmx_fast.losses.InfoNCE"})


def sklearn() -> Patch:
    """Replace ``sklearn.cluster.KMeans`` and ``MiniBatchKMeans`` by :mod:`cmx_fast.cluster`'s.

    scikit-learn's functions and estimators that make them, such as ``SpectralClustering`` and ``KBinsDiscretizer``,
    then make these. Errors are those of :func:`open_clip`.
    """
    names = ("KMeans", "MiniBatchKMeans")
    return _patch("sklearn", {f"sklearn.cluster.{name}": f"cmx_fast.cluster.{name}" for name in names})


def _patch(package: str, names: Mapping[str, str]) -> Patch:
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error.name or package} is not installed: there is no {package} to patch; pip install "
            "'cmx-fast[examples]' brings it"
        ) from error
    classes = {}
    for original, replacement in names.items():
        ours, theirs = _class(replacement), _class(original, package)
        if theirs is ours:
            raise RuntimeError(
                f"{original} is cmx_fast's already; undo the first patch, or keep its handle instead"
            )
        lacking = [
            f"{method}({name}=)"
            for method in ("__init__", "forward", "fit")
            for name in sorted(_arguments(theirs, method) - _arguments(ours, method))
        ]
        if lacking:
            raise RuntimeError(
                f"{original} of {_version(package)} has arguments that {replacement} lacks: {', '.join(lacking)}; it "
                "can't be replaced"
            )
        classes[theirs] = ours
    return Patch(package, classes)


def _class(path: str, package: str = "") -> type:
    module, _, name = path.rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        if not package:
            raise
        raise RuntimeError(f"{_version(package)} has no {path}; it can't be patched") from error
    if not isinstance(found, type):
        raise RuntimeError(f"{path} of {_version(package)} is no class, but {type(found).__name__}")
    return found


def _arguments(cls: type, method: str) -> set[str]:
    """The names of a method's arguments, those of ``*`` and ``**`` left out."""
    function = getattr(cls, method, None)
    if function is None:
        return set()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name for name, p in inspect.signature(function).parameters.items() if p.kind not in several}


def _version(package: str) -> str:
    distributions = importlib.metadata.packages_distributions().get(package, [package])
    try:
        return f"{distributions[0]} {importlib.metadata.version(distributions[0])}"
    except importlib.metadata.PackageNotFoundError:
        return f"the installed {package}"
