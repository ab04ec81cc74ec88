"""Run folders whose models are all there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cmx_fast.networks.weights import read_json


def finished_run(run: Path, command: str) -> dict[str, Any]:
    """The config of a run of ``cmx <command>`` whose models are all there.

    Raises:
        ValueError: not such a folder, a config that can't be read, or a model that is not finished.
    """
    if not (run / "config.json").is_file():
        raise ValueError(f"{run} is not a run folder: it has no config.json")
    config = read_json(run / "config.json")
    if config.get("command") != command:
        raise ValueError(f"{run} is a run of cmx {config.get('command')}, not of cmx {command}")
    missing = [
        f"seed{s}/{m}.pt"
        for s in config["seeds"]
        for m in config["models"]
        if not (run / f"seed{s}" / f"{m}.pt").is_file()
    ]
    if missing:
        raise ValueError(
            f"{run} is not finished: no {', '.join(missing)}; continue it with cmx {command} --resume"
        )
    return config
