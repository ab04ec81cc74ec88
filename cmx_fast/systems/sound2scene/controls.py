"""Sound2Scene's controls (section 5 of the paper): of waves before the encoder, of features before the generator."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.networks.biggan import Generator

#: GAN inversion: the paper cites methods and gives no numbers, so these are ours.
INVERSION_STEPS, INVERSION_RATE = 500, 0.05


def change_volume(wave: Tensor, decibels: float) -> Tensor:
    """A wave (..., samples) louder or quieter, clipped to [-1, 1].

    The encoder standardises each clip's log spectrogram, which takes a gain back out but for its floor: near silence,
    and where loud sound is clipped, volume shows.
    """
    return (wave * 10 ** (decibels / 20)).clamp(-1, 1)


def mix(*waves: Tensor) -> Tensor:
    """The sum of waves (samples,) clipped to [-1, 1]; shorter ones are repeated to the longest.

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
    """weight z^V + (1 - weight) z^A, (B, D), of unit length again.

    Raises:
        ValueError: ``weight`` outside [0, 1].
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in [0, 1], 1 for the picture alone; got {weight}")
    return F.normalize(torch.lerp(sound, picture, weight), dim=1)


def edit(picture: Tensor, to: Tensor, since: Tensor, strength: float = 1.0) -> Tensor:
    """z^V + strength (z^A_to - z^A_since), (B, D), of unit length again: from one sound to another, of a picture."""
    return F.normalize(picture + strength * (to - since), dim=1)


def invert(
    generator: Generator,
    picture: Tensor,
    features: Tensor,
    noise: Tensor,
    *,
    steps: int = INVERSION_STEPS,
    look: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """GAN inversion: the features (B, D) and noise (B, dim_z) that the generator makes ``picture`` (B, 3, S, S) of.

    Both are optimised by Adam from where they are given, the picture's own features and any noise, against the mean
    squared difference of the pictures and, with ``look``, that of what it makes of them (a network's features: their
    perceptual distance). Each step is a pass through the generator and back.

    Args:
        picture: in [0, 1], of the generator's size.
        look: maps pictures in [0, 1] to features, differentiably.
        progress: called with the step and the mean error after each.

    Returns:
        Unit features, noise, and the mean squared error of each picture in the end (B,).

    Raises:
        ValueError: a picture of another size.
    """
    wanted = 2 * picture - 1
    with torch.no_grad():
        made = generator(noise, features)
    if made.shape != wanted.shape:
        raise ValueError(
            f"picture must have shape {tuple(made.shape)}, as the generator makes them; got {tuple(picture.shape)}"
        )
    h, z = features.clone().requires_grad_(), noise.clone().requires_grad_()
    optimizer = torch.optim.Adam([h, z], INVERSION_RATE)
    seen = None if look is None else look(picture).detach()
    with torch.enable_grad():
        for step in range(steps):
            made = generator(z, F.normalize(h, dim=1))
            error = (made - wanted).square().mean((1, 2, 3))
            loss = error if look is None or seen is None else error + _distance(look((made + 1) / 2), seen)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            if progress is not None:
                progress(step + 1, float(error.detach().mean()))
    with torch.no_grad():
        unit = F.normalize(h, dim=1)
        error = (generator(z, unit) - wanted).square().mean((1, 2, 3)) / 4
    return unit.detach(), z.detach(), error


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference of unit features, (B, D) to (B,)."""
    return (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(1)
