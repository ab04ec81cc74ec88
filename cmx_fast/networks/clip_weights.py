"""CLIP's weights in OpenCLIP's or OpenAI's files: the right activation, and the visual tower alone."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

from torch import nn

from cmx_fast._extras import require
from cmx_fast.networks.pretrained_files import load_weights


def check_model(model: str, weights: Path) -> Any:
    """OpenCLIP's package, once the model and its file are known to exist and to have the same activation.

    Of weights that could be OpenAI's, whose activation is QuickGELU, a message says which model they would need.

    Raises:
        FileNotFoundError: no such file.
        MissingExtraError: open_clip_torch is not installed.
        ValueError: OpenCLIP knows no such model, or the weights are OpenAI's, whose activation is not the model's.
    """
    open_clip = require("open_clip", "generation")
    if not weights.is_file():
        raise FileNotFoundError(f"there are no CLIP weights {weights}")
    if model not in open_clip.list_models():
        raise ValueError(f"OpenCLIP has no model {model!r}; see open_clip.list_models()")
    quick = f"{model}-quickgelu"
    if quick in open_clip.list_models() and not open_clip.get_model_config(model).get("quick_gelu"):
        if is_by_openai(weights):
            raise ValueError(f"{weights} are OpenAI's, trained with QuickGELU: take the model {quick}")
        print(
            f"{weights}: taken as {model}'s, with GELU; OpenAI's, MetaCLIP's and DFN's need {quick}",
            file=sys.stderr,
        )
    return open_clip


def default_model(weights: Path) -> str:
    """OpenCLIP's name of ViT-B/32 with the activation of these weights: QuickGELU where they are OpenAI's."""
    return "ViT-B-32-quickgelu" if weights.is_file() and is_by_openai(weights) else "ViT-B-32"


def weights_only(weights: Path) -> bool:
    """False for OpenAI's TorchScript archives: only so their weights can be read, and nothing is unpickled or run."""
    return not (is_by_openai(weights) and _is_script(weights))


def is_by_openai(weights: Path) -> bool:
    """True if a file's form, its name, or its model's folder in a cache of the hub says that OpenAI trained it."""
    named = "openai" in weights.name.lower() or any(part.endswith(".openai") for part in weights.parts)
    return named or _is_script(weights)


def _is_script(weights: Path) -> bool:
    """True if the file is a TorchScript archive, as OpenAI published its models."""
    if not zipfile.is_zipfile(weights):
        return False
    with zipfile.ZipFile(weights) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def visual_tower(model: str, weights: Path) -> nn.Module:
    """The visual tower of an OpenCLIP model with the file's weights; its text tower is never built.

    Raises:
        as :func:`check_model`, and ValueError: the file can't be read, or its tower does not fit the model.
    """
    open_clip = check_model(model, weights)
    config = open_clip.get_model_config(model)
    vision = dict(config["vision_cfg"], timm_model_pretrained=False)
    text = {"context_length": 1, "vocab_size": 2, "width": 64, "heads": 1, "layers": 1}
    quick = bool(config.get("quick_gelu", False))
    tower = open_clip.CLIP(config["embed_dim"], vision_cfg=vision, text_cfg=text, quick_gelu=quick).visual
    try:
        stored = open_clip.factory.load_state_dict(str(weights), weights_only=weights_only(weights))
    except Exception as error:  # a damaged file can make the readers raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{weights} is not a readable CLIP checkpoint: {reason}") from error
    if not any(name.startswith("visual.") for name in stored):
        raise ValueError(
            f"{weights} has no visual tower: none of its {len(stored)} names begins with 'visual.'"
        )
    state = {
        name.removeprefix("visual."): v.float() for name, v in stored.items() if name.startswith("visual.")
    }
    load_weights(tower, state, weights, f"the visual tower of OpenCLIP's {model}")
    return tower
