"""The three papers' audio front ends: by libraries, written in PyTorch, and ours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from cmx_fast import reference
from cmx_fast.nn import LogFilterbank, PowerSpectrogram
from cmx_fast.nn.filterbank import EMPTY
from cmx_fast.nn.logmel import LogMel

from ..harness.problems import Problem
from ..harness.provider import OURS, Provider, compiled, formula

TORCHAUDIO, SPEECH_FEATURES, SCIPY = "torchaudio", "python_speech_features", "SciPy"
EAGER = "eager formula"


def problem(task: str, n: int, samples: int, seed: int = 0) -> Problem:
    """Waves (n, samples) as loud as speech."""
    generator = torch.Generator().manual_seed(seed)
    return Problem({"wave": 0.1 * torch.randn(n, samples, dtype=torch.float64, generator=generator)}, ())


#: n_fft, hop and bands of each front end.
SHAPES = {
    "log-mel": (2048, 441, 128),
    "filterbank": (1024, 240, 257),
    "power spectrogram": (512, 159, 257),
}
# Made when they are first used: the mel bands are torchaudio's, which a GPU's machine may lack.
_log_mel_layer, _filterbank_layer, _power_layer = map(
    functools.cache, (LogMel, LogFilterbank, PowerSpectrogram)
)


@functools.cache
def _mel_spectrogram() -> nn.Module:
    import torchaudio

    return torchaudio.transforms.MelSpectrogram(sample_rate=22050, n_fft=2048, hop_length=441, n_mels=128)


def _torchaudio(wave: Tensor) -> Tensor:
    layer = _log_mel_layer()
    level = 10 * torch.log10(_mel_spectrogram()(wave).clamp_min(1e-10))
    return (level - layer.mean[:, None]) / layer.std[:, None]


def _speech_features(wave: Tensor) -> Tensor:
    from python_speech_features import logfbank

    options = {"winlen": 0.02, "winstep": 0.01, "nfft": 1024, "preemph": 0.97, "nfilt": 257}
    rows = [logfbank(row, 24000, **options) for row in (wave * 32768).numpy()]
    return torch.stack([torch.from_numpy(row).T for row in rows])


def _scipy(wave: Tensor) -> Tensor:
    from scipy.signal import spectrogram

    return torch.from_numpy(spectrogram(wave.numpy(), 16000, nperseg=512, noverlap=353)[2])


def _log_mel(wave: Tensor) -> Tensor:
    layer = _log_mel_layer()
    return reference.band_spectrogram(
        wave, layer.window, layer.bands, n_fft=layer.n_fft, hop=layer.hop, ends="reflected", logarithm="decibels",
        floor=1e-10, mean=layer.mean, std=layer.std,
    )  # fmt: skip


def _filterbank(wave: Tensor) -> Tensor:
    layer = _filterbank_layer()
    return reference.band_spectrogram(
        wave, layer.scale, layer.bands, n_fft=layer.nfft, hop=layer.step, ends="zeros", preemphasis=layer.preemph,
        logarithm="natural", floor=EMPTY,
    )  # fmt: skip


def _power(wave: Tensor) -> Tensor:
    layer = _power_layer()
    return reference.band_spectrogram(
        wave, layer.window, layer.bands, n_fft=layer.nperseg, hop=layer.step, remove_mean=True
    )


def _providers(
    library: str,
    package: str,
    theirs: Callable[[Tensor], Tensor],
    eager: Callable[[Tensor], Tensor],
    layer: Callable[[], nn.Module],
) -> dict[str, Provider]:
    def truth(p: Problem) -> Tensor:
        return eager(p["wave"])

    def arguments(p: Problem) -> tuple[Tensor]:
        return (p["wave"],)

    there = {library: Provider(lambda p: lambda: theirs(p["wave"]), truth, package=package)}
    return {
        **(there if find_spec(package) else {}),
        EAGER: formula(truth),
        "torch.compile of it": compiled(eager, arguments),
        OURS: Provider(lambda p: functools.partial(layer(), p["wave"]), truth),
    }


PROVIDERS: dict[str, dict[str, Provider]] = {
    "log-mel": _providers(TORCHAUDIO, "torchaudio", _torchaudio, _log_mel, _log_mel_layer),
    "filterbank": _providers(
        SPEECH_FEATURES, "python_speech_features", _speech_features, _filterbank, _filterbank_layer
    ),
    "power spectrogram": _providers(SCIPY, "scipy", _scipy, _power, _power_layer),
}
