"""Spectrograms in bands on the GPU: windowed frames, cuFFT, then power, bands and logarithm from one read.

Tile and owner: a program of the first kernel owns one frame, (N_FFT,), of one wave. A program of the second owns FRAMES
frames and BANDS neighbouring bands, (FRAMES, BANDS), and walks the bins BINS at a time from the first that any of its
bands takes to the last (``reach``): bands of a filter bank are narrow and lie next to each other.

Why it is right: power times bands is a float32 product in IEEE precision, not TF32's; bins outside the reach have
weight 0. A place before or behind the wave loads 0, and a reach beyond the bins is cut before it is an address.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.arguments import on_own_device
from cmx_fast.kernels.common.codes import Logarithm
from cmx_fast.kernels.common.grids import ceil_div

__all__ = ["band_spectrogram_fwd"]

FRAMES, BANDS, BINS = 32, 16, 32


@triton.jit
def band_spectrogram_frame_kernel(
    wave_ptr,  # (B, samples)
    window_ptr,  # (length,)
    out_ptr,  # out, (B, frames, n_fft)
    samples,
    length,
    frames,
    hop,
    lead,  # zeros before the window
    shift,  # samples that the first frame begins before the wave
    preemphasis,
    N_FFT: tl.constexpr,
    REFLECTED: tl.constexpr,
    PREEMPHASIS: tl.constexpr,
    REMOVE_MEAN: tl.constexpr,
):
    f = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    t = tl.arange(0, N_FFT)
    inside = (t >= lead) & (t < lead + length)
    place = f.to(tl.int64) * hop - shift + t
    if REFLECTED:
        place = tl.abs(place)
        place = tl.where(place < samples, place, 2 * (samples - 1) - place)
    mask = inside & (place >= 0) & (place < samples)
    # (N_FFT,)
    x = tl.load(wave_ptr + b * samples + place, mask=mask, other=0.0)
    if PREEMPHASIS:
        before = tl.load(wave_ptr + b * samples + place - 1, mask=mask & (place > 0), other=0.0)
        x -= preemphasis * before
    if REMOVE_MEAN:
        x -= tl.sum(x, 0) / length
    window = tl.load(window_ptr + t - lead, mask=inside, other=0.0)
    # 0 outside the wave and the window, whatever the mean that was subtracted.
    # (N_FFT,)
    tl.store(out_ptr + (b * frames + f) * N_FFT + t, tl.where(mask, x * window, 0.0))


@triton.jit
def band_spectrogram_band_kernel(
    spectrum_ptr,  # (B, frames, bins, 2)
    bands_ptr,  # (K, bins)
    reach_ptr,  # (K, 2)
    mean_ptr,  # (K,) or None
    std_ptr,  # (K,) or None
    out_ptr,  # out, (B, K, frames)
    frames,
    bins,
    count,
    floor,
    lowest,
    DECIBELS: tl.constexpr,
    NATURAL: tl.constexpr,
    FRAMES: tl.constexpr,
    BANDS: tl.constexpr,
    BINS: tl.constexpr,
):
    f = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES)
    k = tl.program_id(1) * BANDS + tl.arange(0, BANDS)
    b = tl.program_id(2).to(tl.int64)
    # (BANDS,) each
    begins = tl.load(reach_ptr + 2 * k, mask=k < count, other=2147483647)
    ends = tl.load(reach_ptr + 2 * k + 1, mask=k < count, other=0)
    # A reach beyond the bins must not lead out of the spectra.
    begin = tl.maximum(tl.min(tl.where(ends > begins, begins, 2147483647), 0), 0)
    end = tl.minimum(tl.max(ends, 0), bins)
    energy = tl.zeros((FRAMES, BANDS), tl.float32)
    rows = spectrum_ptr + (b * frames + f.to(tl.int64))[:, None] * (2 * bins)
    for j0 in range(begin, end, BINS):
        j = j0 + tl.arange(0, BINS)
        mask = (f < frames)[:, None] & (j < end)[None, :]
        # (FRAMES, BINS) each
        re = tl.load(rows + 2 * j[None, :], mask=mask, other=0.0)
        im = tl.load(rows + 2 * j[None, :] + 1, mask=mask, other=0.0)
        # (BINS, BANDS)
        weights = tl.load(
            bands_ptr + k.to(tl.int64)[None, :] * bins + j[:, None],
            mask=(k < count)[None, :] & (j < end)[:, None],
            other=0.0,
        )
        energy = tl.dot(re * re + im * im, weights, energy, input_precision="ieee")
    # Comparisons are such that NaN stays.
    if DECIBELS:
        level = tl.where(energy <= floor, lowest, 4.342944819032518 * tl.log(energy))
    elif NATURAL:
        level = tl.where(energy == 0, lowest, tl.log(energy))
    else:
        level = energy
    if mean_ptr is not None:
        # (BANDS,)
        level -= tl.load(mean_ptr + k, mask=k < count, other=0.0)[None, :]
    if std_ptr is not None:
        # (BANDS,)
        level /= tl.load(std_ptr + k, mask=k < count, other=1.0)[None, :]
    # (FRAMES, BANDS)
    address = out_ptr + (b * count + k.to(tl.int64))[None, :] * frames + f[:, None]
    tl.store(address, level, mask=(f < frames)[:, None] & (k < count)[None, :])


@on_own_device
def band_spectrogram_fwd(
    wave: Tensor, window: Tensor, bands: Tensor, reach: Tensor, mean: Tensor | None, std: Tensor | None, frames: int,
    n_fft: int, hop: int, reflected: bool, preemphasis: float, remove_mean: bool, logarithm: int, floor: float,
) -> Tensor:  # fmt: skip
    """Levels (B, K, frames) float32 of float32 waves (B, samples); ``logarithm`` is a code of :class:`Logarithm`."""
    batch, samples = wave.shape
    count, bins = bands.shape
    out = wave.new_empty(batch, count, frames)
    if out.numel() == 0:
        return out
    framed = wave.new_empty(batch, frames, n_fft)
    lead = (n_fft - len(window)) // 2 if reflected else 0
    band_spectrogram_frame_kernel[frames, batch](
        wave.contiguous(), window.contiguous(), framed, samples, len(window), frames, hop, lead,
        n_fft // 2 if reflected else 0, preemphasis, N_FFT=n_fft, REFLECTED=reflected, PREEMPHASIS=preemphasis != 0,
        REMOVE_MEAN=remove_mean, num_warps=4 if n_fft <= 2048 else 8,
    )  # fmt: skip
    decibels, natural = logarithm == Logarithm.DECIBELS, logarithm == Logarithm.NATURAL
    lowest = 10 * math.log10(floor) if decibels else math.log(floor) if natural else 0.0
    spectrum = torch.view_as_real(torch.fft.rfft(framed))
    band_spectrogram_band_kernel[ceil_div(frames, FRAMES), ceil_div(count, BANDS), batch](
        spectrum, bands.contiguous(), reach.contiguous(), mean, std, out, frames, bins, count, floor,
        lowest, DECIBELS=decibels, NATURAL=natural, FRAMES=FRAMES, BANDS=BANDS, BINS=BINS, num_warps=4,
    )  # fmt: skip
    return out
