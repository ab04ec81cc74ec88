"""Reads other projects' checkpoints without running code in them, and says what does not fit a network."""

from __future__ import annotations

import argparse
import pickle
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmx_fast._extras import require

#: Entries that hold the weights, in the order in which they are taken: DINO's teacher before its student.
WRAPPERS = ("teacher", "state_dict_ema", "model_ema", "state_dict", "model", "student")
#: Beginnings of names that say who held the network, not what it is: DDP, torch.compile, DINO, MoCo.
HOLDERS = ("module.", "_orig_mod.", "backbone.", "encoder_q.")
#: Heads of self-supervised training (SwAV, DINO), which no encoder has.
PROJECTORS = ("projection_head.", "prototypes.", "dino_head.", "ibot_head.")
#: Names of a kind that a message lists.
LISTED = 4


def read_checkpoint(path: Path | str) -> Any:
    """The contents of a PyTorch or safetensors file; only tensors and plain values are unpickled.

    Raises:
        as :func:`read_state`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights {path}")
    if path.suffix == ".safetensors":
        try:
            return require("safetensors.torch", "timm").load_file(path)
        except (ValueError, RuntimeError, OSError) as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
        except Exception as error:  # SafetensorError derives from Exception alone
            if type(error).__module__.startswith("safetensors"):
                raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
            raise
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # DINO's files hold their arguments
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a readable PyTorch checkpoint: {reason}") from error


def read_metadata(path: Path | str) -> dict[str, str]:
    """The metadata of a safetensors file that :func:`read_checkpoint` reads."""
    with require("safetensors", "timm").safe_open(path, "pt") as file:
        return file.metadata() or {}


def read_state(path: Path | str) -> dict[str, Tensor]:
    """The state dict in a PyTorch or safetensors file, out of its wrappers ``state_dict``, ``model``, ``teacher``, ...

    Names lose the beginnings that DDP, torch.compile and self-supervised training give them, and the heads of such
    training are left out. Where a file holds several networks, a message says which is taken. Nothing is downloaded,
    and only tensors and plain values are unpickled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file can't be read, or holds no state dict; says what it holds.
        MissingExtraError: the file is in safetensors' format, which is not installed.
    """
    path = Path(path)
    content = _unwrapped(read_checkpoint(path), path)
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        keys = ", ".join(map(str, list(content)[:LISTED])) or "nothing"
        raise ValueError(f"{path} holds no weights by name (found: {keys})")
    for holder in HOLDERS:
        while any(name.startswith(holder) for name in state):
            state = {n.removeprefix(holder): value for n, value in state.items() if n.startswith(holder)}
    return {name: value for name, value in state.items() if not name.startswith(PROJECTORS)}


def load_weights(network: nn.Module, state: dict[str, Tensor], path: Path | str, kind: str) -> None:
    """Load a state dict into a network that it fits name by name; batch norms' counts of batches may be missing.

    Args:
        path: the file that it comes from; kind: the network. Both are for the message.

    Raises:
        ValueError: names or shapes differ; the message has the first of each sort and says what the file looks like.
    """
    expected = network.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    foreign = [name for name in state if name not in expected]
    misshapen = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = [
        f"{sort} {_first(names)}"
        for sort, names in (("it lacks", missing), ("it has", foreign), ("shapes differ:", misshapen))
        if names
    ]
    if problems:
        raise ValueError(
            f"{path} does not fit {kind}: {'; '.join(problems)}. The file looks like {description(state)}"
        )
    expected.update(state)  # which keeps the versions that some modules read
    network.load_state_dict(expected)


def description(state: dict[str, Tensor]) -> str:
    """A few words for the network that a state dict is of, by its names and shapes."""
    names = state.keys()
    if "visual.conv1.weight" in names or "visual.trunk.pos_embed" in names:
        return "a CLIP model (open_clip:MODEL=FILE)"
    if "patch_embed.proj.weight" in names and "pos_embed" in names:
        width, _, patch, _ = state["patch_embed.proj.weight"].shape
        return f"a ViT of width {width}, {numbered(names, 'blocks')} blocks and patches of {patch} pixels"
    if "_conv_stem.weight" in names or "conv_stem.weight" in names:
        stem = state["_conv_stem.weight" if "_conv_stem.weight" in names else "conv_stem.weight"]
        return f"an EfficientNet or MobileNet with {stem.shape[0]} channels in its stem"
    if "conv1.weight" in names and "layer1.0.conv1.weight" in names:
        blocks = [numbered(names, f"layer{stage}") for stage in (1, 2, 3, 4)]
        block = "bottlenecks" if "layer1.0.conv3.weight" in names else "basic blocks"
        return f"a ResNet of {blocks} {block}"
    if "embeddings.0.weight" in names and "features.0.weight" in names:
        return "VGGish (vggish:FILE)"
    if "conv_block1.conv1.weight" in names:
        return f"a PANN of {numbered(names, 'conv_block', '')} blocks (panns:FILE)"
    if "patch_embedding.weight" in names:
        return "BEATs (beats:FILE)"
    return f"a network of {len(state)} tensors, the first being {_first(names)}"


def numbered(names: Iterable[str], stem: str, separator: str = ".") -> int:
    """The count of modules ``stem.0``, ``stem.1``, ... among the names: 1 more than the highest number."""
    pattern = re.compile(re.escape(stem + separator) + r"(\d+)\.")
    found = [int(match[1]) for name in names if (match := pattern.match(name))]
    return max(found, default=-1) + (0 if separator == "" else 1)


def _first(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _unwrapped(content: Any, path: Path) -> dict[str, Any]:
    while isinstance(content, dict):
        wrappers = [name for name in WRAPPERS if isinstance(content.get(name), dict)]
        if not wrappers:
            return content
        if len(wrappers) > 1:
            print(f"{path}: takes {wrappers[0]!r}; leaves {', '.join(wrappers[1:])}", file=sys.stderr)
        content = content[wrappers[0]]
    raise ValueError(f"{path} holds {type(content).__name__}, not weights by name")
