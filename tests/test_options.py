"""An option that several commands have means the same in each, and is refused alike."""

from __future__ import annotations

import importlib
import inspect
import typing
from pathlib import Path

import pytest
import torch

from cmx_fast import cli, options
from cmx_fast.train.fabric import chosen_device, new_fabric


def function(path: tuple[str, ...]):
    module, name = cli.COMMANDS[path][0].split(":")
    return getattr(importlib.import_module(module), name)


def kinds(path: tuple[str, ...]) -> dict[str, object]:
    return typing.get_type_hints(function(path), include_extras=True)


TRAINING = [path for path in cli.COMMANDS if path[0] == "train"] + [("evaluate", "finetune")]
each_training = pytest.mark.parametrize("path", TRAINING, ids=" ".join)
NEEDED = {
    "data": Path(__file__).parent,  # of no layout, so a folder
    "encoder": "efficientnet-lite0",
    "icgan": Path("none"),
    "run": Path("none"),
}


@each_training
def test_training_commands_share_their_options(path):
    own = kinds(path)
    assert own["device"] == options.Device and own["workers"] == options.Workers
    assert options.Set.__metadata__[0] in own["set"].__metadata__ and own["resume"] == options.Resume
    assert own["logger"] == options.Loggers
    assert own["precision"] == options.Precision and {"seed", "batch_size"} <= own.keys()
    assert own["seed"] == options.FirstSeed or "seeds" not in own


@pytest.mark.parametrize("path", [path for path in cli.COMMANDS if path[0] == "evaluate"], ids=" ".join)
def test_evaluations_share_the_device(path):
    assert kinds(path)["device"] == options.Device


@each_training
@pytest.mark.parametrize("option", ["batch_size", "lr"])
def test_the_short_options_set_the_recipe_s_fields(path, option):
    command = function(path)
    parameters = inspect.signature(command).parameters
    if option not in parameters:
        assert path == ("train", "icgan")  # whose two players have learning rates of their own
        return
    needed = [name for name, option in parameters.items() if option.default is option.empty]
    field = "lr" if option == "lr" else "batch"
    with pytest.raises(ValueError, match=rf"^(cross_)?{field} must be at least \d; got -1"):
        command(**{name: NEEDED[name] for name in needed}, **{option: -1})


def test_devices_that_are_not_there_are_refused():
    assert chosen_device("cpu") == "cpu" and chosen_device(None) in ("cpu", "cuda")
    with pytest.raises(ValueError, match="device must be cpu, cuda or cuda:N; got 'gpu'"):
        chosen_device("gpu")
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(
        ValueError, match=f"device {missing}: PyTorch finds .* GPUs; --device cpu runs without"
    ):
        chosen_device(missing)
    assert new_fabric("fp32", device="cpu").device == torch.device("cpu")


def test_one_gpu_is_not_for_several_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--device cuda:1 is for one process; torchrun gives each of 2"):
        new_fabric("fp32", device="cuda:1")
