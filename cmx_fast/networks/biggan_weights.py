"""Loads generators as IC-GAN publishes them: BigGAN checkpoints, by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from cmx_fast.networks.biggan import GENERATOR_WIDTHS, Generator

#: Ends of names under which the code's three kinds of batch norm keep their statistics, and ours.
STATISTICS = {
    ".bn.running_mean": ".stored_mean",
    ".bn.running_var": ".stored_var",
    ".bn.stored_mean": ".stored_mean",
    ".bn.stored_var": ".stored_var",
}
COUNTERS = (".num_batches_tracked", ".accumulation_counter")
#: The most names in a list of those that do not fit.
SHOWN = 8


def load_icgan_generator(path: Path | str) -> Generator:
    """Load a generator from a checkpoint of IC-GAN's code: ``G_ema_best0.pth`` or the like, or the folder that has one.

    Sizes are read off the weights. Class embeddings that such files hold are never used.

    Raises:
        FileNotFoundError: no such file, or not one ``G_ema*.pth`` in the folder.
        ValueError: the file is not a checkpoint of tensors, or not of that generator; the message lists the names that
            are missing, not known, or of another shape.
    """
    file = _find(Path(path))
    stored = _read(file)
    generator = _of_the_size_of(stored, file)
    own = generator.state_dict()
    missing = [name for name in own if name not in stored and not name.startswith("shared.")]
    unknown = [name for name in stored if name not in own and not name.startswith("shared.")]
    other = [
        f"{name} {tuple(stored[name].shape)}, not {tuple(value.shape)}"
        for name, value in own.items()
        if name in stored and not name.startswith("shared.") and stored[name].shape != value.shape
    ]
    problems = [
        f"{problem}: {', '.join(names[:SHOWN])}"
        + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        for problem, names in (("missing", missing), ("not known", unknown), ("other shapes", other))
        if names
    ]
    if problems:
        raise ValueError(f"{file} does not fit an IC-GAN generator; {'; '.join(problems)}")
    generator.load_state_dict({**own, **{n: v for n, v in stored.items() if not n.startswith("shared.")}})
    return generator.requires_grad_(False).eval()


def _find(path: Path) -> Path:
    if path.is_dir():
        checkpoints = sorted(path.glob("G_ema*.pth"))
        if len(checkpoints) != 1:
            names = ", ".join(file.name for file in checkpoints) or "none"
            raise FileNotFoundError(f"{path} must hold one G_ema*.pth, found {names}; name the file")
        return checkpoints[0]
    if not path.is_file():
        raise FileNotFoundError(f"there is no generator {path}")
    return path


def _read(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file} is not a readable PyTorch checkpoint: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} must hold a state dict of tensors, as IC-GAN's G_ema*.pth")
    named = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        for theirs, ours in STATISTICS.items():
            if name.endswith(theirs):
                name = name.removesuffix(theirs) + ours
        if not name.endswith(COUNTERS):
            named[name] = value
    return named


def _of_the_size_of(stored: dict[str, Tensor], file: Path) -> Generator:
    needed = ("shared_feat.weight", "linear.weight", "output_layer.0.gain")
    if not all(name in stored for name in needed):
        names = ", ".join(list(stored)[:5])
        raise ValueError(f"{file} lacks {', '.join(n for n in needed if n not in stored)} (found: {names})")
    blocks = len({name.split(".")[1] for name in stored if name.startswith("blocks.")})
    sizes = {len(widths) - 1: size for size, widths in GENERATOR_WIDTHS.items()}
    if blocks not in sizes:
        raise ValueError(f"{file} has {blocks} blocks; generators of 64 or 128 pixels have 4 or 5")
    resolution = sizes[blocks]
    condition, features = stored["shared_feat.weight"].shape
    return Generator(
        resolution,
        stored["output_layer.0.gain"].shape[0] // GENERATOR_WIDTHS[resolution][-1],
        stored["linear.weight"].shape[1] * (blocks + 1),
        features,
        condition,
    )
