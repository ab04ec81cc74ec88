"""The examples in the docstrings run, and the public functions have one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import cmx_fast
from cmx_fast import losses, ops
from cmx_fast._extras import MissingExtraError

PACKAGES = ("losses", "models", "nn", "ops", "reference")
MODULES = [
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages([f"{cmx_fast.__path__[0]}/{package}"], f"cmx_fast.{package}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    try:
        module = importlib.import_module(name)
    except MissingExtraError as error:
        pytest.skip(str(error))
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    "thing",
    [ops.info_nce, ops.supcon, ops.sigmoid_contrastive, *(getattr(losses, name) for name in losses.__all__)],
)
def test_public_things_have_an_example(thing):
    assert ">>>" in thing.__doc__
