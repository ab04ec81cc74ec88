"""Sound2Scene's controls (section 5 of the paper): they change an encoder's waves or a generator's features."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.networks.biggan import Generator
from cmx_fast.systems.sound2scene.options import INVERSION_STEPS

#: GAN inversion: the paper cites methods and gives no numbers, so these are ours.
INVERSION_RATE = 0.05


def change_volume(wave: Tensor, decibels: float) -> Tensor:
    """Make a wave (..., samples) louder or quieter and clip it to [-1, 1].

    The encoder standardises each clip's log spectrogram, which takes a gain out again. Volume shows only where the
    logarithm's floor is near, in near silence, and where loud sound is clipped.
    """
    return (wave * 10 ** (decibels / 20)).clamp(-1, 1)


def mix(*waves: Tensor) -> Tensor:
    """Add waves (samples,) and clip the sum to [-1, 1]; shorter ones are repeated to the longest.

    Raises:
        ValueError: no wave, one without samples, or waves of integers or on several devices.
    """
    if not waves or any(wave.dim() != 1 or not len(wave) for wave in waves):
        raise ValueError(f"mix takes waves (samples,), at least one, got {[tuple(w.shape) for w in waves]}")
    if not all(wave.is_floating_point() for wave in waves) or len({wave.device for wave in waves}) > 1:
        kinds = ", ".join(f"{wave.dtype} on {wave.device}" for wave in waves)
        raise ValueError(f"mix takes float waves in [-1, 1] on one device, got {kinds}")
    length = max(len(wave) for wave in waves)
    return functools.reduce(torch.add, (_repeated(wave, length) for wave in waves)).clamp(-1, 1)


def _repeated(wave: Tensor, length: int) -> Tensor:
    return wave.repeat(-(-length // len(wave)))[:length]


def interpolate(picture: Tensor, sound: Tensor, weight: float) -> Tensor:
    """Mix features to weight z^V + (1 - weight) z^A, (B, D), of unit length again.

    Raises:
        ValueError: ``weight`` outside [0, 1].
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in [0, 1], 1 for the picture alone; got {weight}")
    return F.normalize(torch.lerp(sound, picture, weight), dim=1)


def edit(picture: Tensor, to: Tensor, since: Tensor, strength: float = 1.0) -> Tensor:
    """Move a picture's features from one sound to another: z^V + strength (z^A_to - z^A_since), made unit vectors."""
    return F.normalize(picture + strength * (to - since), dim=1)


def invert(
    generator: Generator,
    picture: Tensor,
    features: Tensor,
    noise: Tensor,
    *,
    steps: int = INVERSION_STEPS,
    perception: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """GAN inversion: find features (B, D) and noise (B, dim_z) from which the generator makes ``picture`` (B, 3, S, S).

    Adam starts from ``features``, the picture's own, and from any ``noise``. It lessens the mean squared difference of
    the pictures and, with ``perception``, that of their features by a network. A step is a pass through the generator
    and back.

    Args:
        picture: in [0, 1], of the generator's size.
        perception: maps pictures in [0, 1] to features, differentiably.
        progress: called with the step and the mean error after each.

    Returns:
        Unit features, noise, and the mean squared error of each picture in the end (B,).

    Raises:
        ValueError: a picture of another size.
    """
    target = 2 * picture - 1
    with torch.no_grad():
        made = generator(noise, features)
    if made.shape != target.shape:
        raise ValueError(
            f"picture must have shape {tuple(made.shape)}, as the generator makes them; got {tuple(picture.shape)}"
        )
    h, z = features.clone().requires_grad_(), noise.clone().requires_grad_()
    optimizer = torch.optim.Adam([h, z], INVERSION_RATE)
    perceived = None if perception is None else perception(picture).detach()
    with torch.enable_grad():
        for step in range(steps):
            made = generator(z, F.normalize(h, dim=1))
            error = (made - target).square().mean((1, 2, 3))
            loss = error
            if perception is not None and perceived is not None:
                loss = error + _distance(perception((made + 1) / 2), perceived)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            if progress is not None:
                progress(step + 1, float(error.detach().mean()))
    with torch.no_grad():
        unit = F.normalize(h, dim=1)
        error = (generator(z, unit) - target).square().mean((1, 2, 3)) / 4
    return unit.detach(), z.detach(), error


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """Squared distance of features made unit vectors, (B, D) to (B,)."""
    return (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(1)
