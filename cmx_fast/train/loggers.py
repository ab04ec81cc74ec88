"""What a run logs to beside its metrics.csv: TensorBoard's event files, and Weights & Biases."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.loggers import TensorBoardLogger
from lightning_fabric.loggers.logger import Logger

from cmx_fast._extras import require
from cmx_fast.options import LOGGERS


class WandbLogger(Logger):
    """A run of Weights & Biases in a folder; offline (``wandb sync`` sends it) unless ``WANDB_MODE`` says otherwise."""

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        wandb = require("wandb", "wandb")
        mode = os.environ.get("WANDB_MODE", "offline")
        self.run = wandb.init(dir=folder, name=folder.name, config=dict(config), mode=mode)
        self.run.define_metric(
            "*", step_metric="step"
        )  # stages count their steps anew, which W&B's own can't

    @property
    def name(self) -> str:
        return str(self.run.name)

    @property
    def version(self) -> str:
        return str(self.run.id)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.run.log({**metrics, "step": step})

    def log_hyperparams(self, params: Any) -> None:
        self.run.config.update(params)

    def finalize(self, status: str) -> None:
        self.run.finish()


def check_loggers(names: Sequence[str]) -> None:
    """
    Raises:
        ValueError: a name that is no logger's.
        MissingExtraError: a logger's package is not installed.
    """
    for name in names:
        if name not in LOGGERS:
            raise ValueError(f"logger must be {' or '.join(LOGGERS)}; got {name!r}")
    if "tensorboard" in names and importlib.util.find_spec("tensorboard") is None:
        require("tensorboardX", "tensorboard")
    if "wandb" in names:
        require("wandb", "wandb")


def open_logger(name: str, folder: Path, config: Mapping[str, Any]) -> Logger:
    """The logger of a run folder: TensorBoard's has its files in ``<folder>/tensorboard``."""
    if name == "wandb":
        return WandbLogger(folder, config)
    return TensorBoardLogger(folder, name="tensorboard", version="")
