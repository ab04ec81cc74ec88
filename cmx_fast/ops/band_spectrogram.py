"""Energy of overlapping frames in bands of frequency: framing, Fourier transform, bands and logarithm in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.kernels.common.codes import Logarithm
from cmx_fast.ops import _checks
from cmx_fast.ops._implementations import HAS_EXTENSION, choose, register_triton

ENDS = ("cut", "zeros", "reflected")
LOGARITHM_CODES = {code.name.lower(): code.value for code in Logarithm}
LOGARITHMS = tuple(LOGARITHM_CODES)
SMALLEST, LARGEST = 16, 16384  # transforms of the kernels


def band_spectrogram(
    wave: Tensor,
    window: Tensor,
    bands: Tensor,
    *,
    n_fft: int,
    hop: int,
    reach: Tensor | None = None,
    ends: str = "cut",
    preemphasis: float = 0.0,
    remove_mean: bool = False,
    logarithm: str = "none",
    floor: float = 0.0,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Levels ``log(bands @ |rfft(window * frame, n_fft)|^2)`` of the frames that begin every ``hop`` samples.

    Log-mels, filterbanks and power spectral densities are these levels with their own window, bands and logarithm.

    Args:
        wave: (B, samples), float32 or float64; bfloat16 and float16 are computed in float32, also under autocast.
        window: (length,) float32 or float64, at most ``n_fft`` long; shorter frames are followed by zeros.
        bands: (K, n_fft // 2 + 1), each band's weight of each frequency.
        n_fft, hop: in samples.
        reach: (K, 2) int32, each band's first bin and the one behind its last, by :func:`band_reach`; computed on the
            device of ``bands`` if not given.
        ends: "cut": whole frames only; "zeros": the last one is filled with zeros; "reflected": frames centred on every
            ``hop``-th sample (from ``n_fft // 2`` before it), samples mirrored at both ends, as torch.stft's.
        preemphasis: replace x[t] by x[t] - preemphasis * x[t - 1], and keep x[0]; with "cut" and "zeros".
        remove_mean: subtract each frame's mean before the window; with "cut".
        logarithm: "none"; "decibels", 10 log10 of at least ``floor``; or "natural", ln, of ``floor`` where the energy
            is 0.
        floor: an energy, positive with a logarithm.
        mean, std: (K,) each: mean is subtracted from the levels, which std then divides.
        impl: "auto", "reference", "cpp" (CPU) or "triton" (CUDA).

    Returns:
        (B, K, frames) float32, float64 for float64 waves, with 1 + (samples - length) // hop frames; with "zeros"
        1 + ceil((samples - length) / hop), with "reflected" 1 + samples // hop.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or range, before any work.
        RuntimeError: a ``reach`` beyond the bins, on the CPU; a GPU leaves out what lies beyond them.

    Cost: a transform per frame and the bands' bins; nothing but the waves is read and nothing but the levels written
    (CUDA: the windowed frames and their spectra, too, for cuFFT). The kernels take ``n_fft`` that are powers of two and
    float32; all else, and waves that a gradient is asked of, goes to the reference.

    Example:
        >>> import torch
        >>> from cmx_fast.ops import band_spectrogram
        >>> wave = torch.sin(torch.arange(64) * torch.pi / 4)[None]
        >>> band_spectrogram(wave, torch.ones(16), torch.eye(9), n_fft=16, hop=16)[0, :, 0].round()
        tensor([ 0.,  0., 64.,  0.,  0.,  0.,  0.,  0.,  0.])
    """
    _check(
        wave, window, bands, reach, n_fft, hop, ends, preemphasis, remove_mean, logarithm, floor, mean, std
    )
    if impl == "auto" and not _suits(wave, n_fft):
        impl = "reference"
    impl = choose("band_spectrogram", impl, wave.device.type, wave.dtype, 1)
    wave = wave if wave.dtype == torch.float64 else wave.float()
    beyond = wave.shape[1] - window.shape[0]
    frames = {
        "cut": 1 + beyond // hop,
        "zeros": 1 - (-max(0, beyond) // hop),
        "reflected": 1 + (wave.shape[1] + 2 * (n_fft // 2) - n_fft) // hop,
    }[ends]
    if wave.shape[0] == 0 or bands.shape[0] == 0:
        return wave.new_empty(wave.shape[0], bands.shape[0], frames)
    if impl == "reference":
        with torch.autocast(wave.device.type, enabled=False):  # too few bits for power
            return reference.band_spectrogram(
                wave, window, bands, n_fft=n_fft, hop=hop, ends=ends, preemphasis=preemphasis,
                remove_mean=remove_mean, logarithm=logarithm, floor=floor, mean=mean, std=std,
            )  # fmt: skip
    if not _suits(wave, n_fft):
        raise ValueError(
            f"impl={impl!r} takes float32 waves without gradient and an n_fft that is a power of two from {SMALLEST} "
            f"to {LARGEST}, got {wave.dtype} and {n_fft}; use impl='reference'"
        )
    return torch.ops.cmx_fast.band_spectrogram_fwd(
        wave.contiguous(), window.float(), bands.float(), band_reach(bands) if reach is None else reach,
        None if mean is None else mean.float(), None if std is None else std.float(), frames, n_fft, hop,
        ends == "reflected", preemphasis, remove_mean, LOGARITHM_CODES[logarithm], floor,
    )  # fmt: skip


def band_reach(bands: Tensor) -> Tensor:
    """Ranges (K, 2) int32 of the bins that have weights in ``bands`` (K, bins): the first, and the one behind the last.

    A band without weights has the range (0, 0).
    """
    weighted = bands != 0
    begin = weighted.int().argmax(1)
    end = bands.shape[1] - weighted.flip(1).int().argmax(1)
    return torch.stack([begin, torch.where(weighted.any(1), end, begin)], 1).int()


def _suits(wave: Tensor, n_fft: int) -> bool:
    """True if the kernels take this wave and this transform."""
    return (
        wave.dtype != torch.float64
        and not (torch.is_grad_enabled() and wave.requires_grad)
        and SMALLEST <= n_fft <= LARGEST
        and n_fft & (n_fft - 1) == 0
    )


def _check(
    wave: Tensor, window: Tensor, bands: Tensor, reach: Tensor | None, n_fft: int, hop: int, ends: str,
    preemphasis: float, remove_mean: bool, logarithm: str, floor: float, mean: Tensor | None, std: Tensor | None,
) -> None:  # fmt: skip
    _checks.check_floating("wave", wave, 2, "(B, samples)")
    if wave.dim() != 2:
        raise ValueError(f"wave must have shape (B, samples), got {tuple(wave.shape)}")
    for name, value in (("n_fft", n_fft), ("hop", hop)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive number of samples, got {value!r}")
    for name, number in (("preemphasis", preemphasis), ("floor", floor)):
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < float("inf"):
            raise ValueError(f"{name} must be a finite number from 0 on, got {number!r}")
    _checks.check_choice("ends", ends, ENDS)
    _checks.check_choice("logarithm", logarithm, LOGARITHMS)
    _checks.check_flags(remove_mean=remove_mean)
    _checks.check_floating("window", window, 1, "(length,)")
    _checks.check_floating("bands", bands, 2, "(K, n_fft // 2 + 1)")
    if window.dim() != 1 or not 1 <= window.shape[0] <= n_fft:
        raise ValueError(f"window must be 1 to n_fft = {n_fft} numbers, got shape {tuple(window.shape)}")
    if bands.dim() != 2 or bands.shape[1] != n_fft // 2 + 1:
        raise ValueError(f"bands must have shape (K, {n_fft // 2 + 1}), got {tuple(bands.shape)}")
    if reach is not None and (tuple(reach.shape) != (len(bands), 2) or reach.dtype != torch.int32):
        raise ValueError(
            f"reach must be ({len(bands)}, 2) int32, got {tuple(reach.shape)} {reach.dtype}; band_reach(bands) makes it"
        )
    for name, each in (("mean", mean), ("std", std)):
        if each is not None and tuple(each.shape) != (bands.shape[0],):
            raise ValueError(
                f"{name} must have one number per band, ({bands.shape[0]},); got {tuple(each.shape)}"
            )
    for name, tensor in (
        ("window", window),
        ("bands", bands),
        ("reach", reach),
        ("mean", mean),
        ("std", std),
    ):
        if tensor is not None and tensor.device != wave.device:
            raise ValueError(f"{name} is on {tensor.device} but wave is on {wave.device}; move one of them")
    samples = wave.shape[1]
    least = {"cut": window.shape[0], "zeros": 1, "reflected": n_fft // 2 + 1}[ends]
    if samples < least:
        raise ValueError(
            f"wave has {samples} samples; ends={ends!r} needs {least} here: pad or repeat shorter ones"
        )
    if ends == "reflected" and n_fft % 2:
        raise ValueError(f"ends='reflected' needs an even n_fft, got {n_fft}")
    if preemphasis and ends == "reflected":
        raise ValueError("preemphasis goes with ends='cut' or 'zeros'; apply it before for 'reflected'")
    if remove_mean and ends != "cut":
        raise ValueError(f"remove_mean goes with ends='cut', got {ends!r}; pad the wave instead")
    if logarithm != "none" and floor == 0:
        raise ValueError(f"floor must be positive for logarithm={logarithm!r}, got {floor}")


if HAS_EXTENSION:

    @torch.library.register_fake("cmx_fast::band_spectrogram_fwd")
    def _(wave, window, bands, reach, mean, std, frames, *_):
        return wave.new_empty(wave.shape[0], bands.shape[0], frames)

    register_triton("band_spectrogram_fwd", "band_spectrogram.band_spectrogram_fwd")
