"""Optional dependencies: imported where they are used, and named clearly where they are missing."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, which ``pip install 'cmx-fast[extra]'`` brings.

    Raises:
        MissingExtraError: the module, or something it needs itself, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error.name or module} is not installed; pip install 'cmx-fast[{extra}]' brings it"
        ) from error


#: The modules that ``pip install 'cmx-fast[train]'`` brings.
TRAIN = (
    "jinja2",
    "lightning_fabric",
    "matplotlib",
    "PIL",
    "rich",
    "scipy",
    "sklearn",
    "torchaudio",
    "torchvision",
    "typer",
    "yaml",
)


def require_all(modules: tuple[str, ...], extra: str) -> None:
    """Look for the modules of an extra, without importing them.

    Raises:
        MissingExtraError: some are not installed.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingExtraError(
            f"{', '.join(missing)} {verb} not installed; pip install 'cmx-fast[{extra}]' brings what training, "
            "evaluation, data sets and the command line need"
        )


def package_folder(package: str, extra: str) -> Path:
    """The folder of an installed package that is not imported: for the files that it brings.

    Raises:
        MissingExtraError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"{package} is not installed; pip install 'cmx-fast[{extra}]' brings it")
    return Path(spec.submodule_search_locations[0])
