"""The base of the classes that use what was trained, and how the class of a run is found."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from cmx_fast.networks.weights import read_json


class TrainedModel(nn.Module):
    """A trained model for use: fixed, and in evaluation. Moves with ``.to(device)``."""

    @classmethod
    def from_run(cls, folder: Path | str, *, model: str | None = None, seed: int | None = None) -> Self:
        """Open a model of a finished run, on the GPU if there is one."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return next(self.parameters()).device


def open_trained(
    folder: Path | str,
    classes: Mapping[str, str],
    verb: str,
    *,
    model: str | None = None,
    seed: int | None = None,
) -> Any:
    """Open a finished run by the class that its system has for the purpose, on the GPU if there is one.

    Args:
        classes: of each command that trains a system, "module:Class".
        verb: what the classes do, for the message.
        model: the trained model's name; default as of the class.
        seed: one of the run's; default its first.

    Raises:
        ValueError: no run, one that is not finished, or one of a system without such a class; or it has no such model
            or seed.
    """
    folder = Path(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no run: there is no config.json in it")
    command = str(read_json(file).get("command"))
    if command not in classes:
        raise ValueError(
            f"{folder} is a run of cmx {command}, which does not {verb}; those of "
            f"{', '.join(f'cmx {name}' for name in classes)} do"
        )
    module, name = classes[command].split(":")
    return getattr(importlib.import_module(module), name).from_run(folder, model=model, seed=seed)
