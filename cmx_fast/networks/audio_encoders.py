"""Pretrained audio encoders from local files in their authors' layouts; nothing is downloaded::

    panns:FILE      CNN14 of PANNs, e.g. Cnn14_mAP=0.431.pth, and its 8 and 16 kHz variants
    vggish:FILE     VGGish as torchvggish stores it
    beats:FILE      BEATs, pretrained or fine-tuned

``docs/encoders.md`` has a table of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.networks.beats import BEATs, read_beats
from cmx_fast.networks.fixed_encoder import FixedEncoder
from cmx_fast.networks.pretrained_files import description, load_weights, numbered, read_state
from cmx_fast.networks.weights import digest
from cmx_fast.ops import band_spectrogram


class AudioEncoder(FixedEncoder):
    """A pretrained encoder: waves (B, samples) in [-1, 1] at ``sample_rate`` to features (B, width), or to maps.

    :meth:`maps` gives a list of (B, C, F, T), frequency before time; their times are in step with the wave. The
    spectrogram is the network's own. It is fixed until :meth:`unfreeze`.

    Attributes:
        name: of the network.
        sample_rate: in Hz. shortest: samples that a wave needs.
        width: of the features. channels: of the maps, finest first.
    """

    def __init__(self, name: str, network: Panns | VGGish | BEATs):
        super().__init__()
        self.name, self.network = name, network
        self.sample_rate, self.shortest = network.sample_rate, network.shortest
        self.width, self.channels = network.width, network.channels
        self.fix()

    def maps(self, waves: Tensor) -> list[Tensor]:
        """The maps (B, channels[i], F_i, T_i) of waves, finest first.

        Raises:
            ValueError: waves of another shape or dtype, or shorter than ``shortest``.
        """
        return self.network.maps(self._checked(waves))

    def forward(self, waves: Tensor) -> Tensor:
        return self.network(self._checked(waves))

    def fingerprint(self) -> str:
        """A hash of the weights and the front end: that of features which this encoder gives."""
        return digest([self.name, self.sample_rate, self.state_dict()])

    def file_weights(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The weights and the metadata of a safetensors file that :func:`open_audio_encoder` reads under ``name``."""
        weights, metadata = self.network.file_contents()
        return {name: value.contiguous().clone() for name, value in weights.items()}, metadata

    def _checked(self, waves: Tensor) -> Tensor:
        if waves.dim() != 2 or not waves.is_floating_point() or waves.shape[1] < self.shortest:
            raise ValueError(
                f"waves must be float (B, samples) with at least {self.shortest} samples for {self.name}, got "
                f"{waves.dtype} {tuple(waves.shape)}"
            )
        return waves


def open_audio_encoder(spec: str) -> AudioEncoder:
    """Open a pretrained audio encoder by family and file; the forms are this module's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such family, or a file that does not fit: the message has the first names that are missing, not
            expected or of another shape, and says what the file looks like.
    """
    family, colon, file = spec.partition(":")
    if not colon or not file or family not in FAMILIES:
        raise ValueError(f"there is no audio encoder {spec!r}: panns:FILE, vggish:FILE or beats:FILE")
    return AudioEncoder(family, FAMILIES[family](Path(file)))


def reopen_audio_encoder(family: str, fingerprint: str, file: Path | str) -> AudioEncoder:
    """Open the audio encoder that a model was trained with, from a file of its weights.

    Raises:
        as :func:`open_audio_encoder`, and ValueError: the weights are not those of the model.
    """
    encoder = open_audio_encoder(f"{family}:{file}")
    if encoder.fingerprint() != fingerprint:
        raise ValueError(
            f"{file} is not the {family} that the model was trained with: its weights are others"
        )
    return encoder


#: Names in PANNs' files: the real part of the Fourier matrix, whose first row is the window, and the mel filters.
STFT, MELS = "spectrogram_extractor.stft.conv_real.weight", "logmel_extractor.melW"


class Panns(nn.Module):
    """CNN14 of PANNs (Kong et al. 2020, table 1): log-mels (B, 1, T, 64), six blocks of two 3x3 convolutions.

    The features are the input of the classifier's last layer. Rate, window and mel filters are the file's.

    Args:
        window: (n_fft,), of frames every 5 / 16 of it, which is 10 ms at the rates that PANNs were trained at.
        mels: (bands, 1 + n_fft / 2).
        widths: channels of the blocks (64, 128, 256, 512, 1024, 2048 in CNN14).
    """

    window: Tensor
    mels: Tensor

    def __init__(self, window: Tensor, mels: Tensor, widths: tuple[int, ...]):
        super().__init__()
        self.n_fft = len(window)
        self.hop = 5 * self.n_fft // 16
        self.sample_rate, self.shortest = (
            100 * self.hop,
            self.n_fft + 31 * self.hop,
        )  # 32 frames outlast five halvings
        self.channels, self.width = widths, widths[-1]
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("mels", mels, persistent=False)
        self.bn0 = nn.BatchNorm2d(len(mels))
        for number, (inner, outer) in enumerate(zip((1, *widths), widths, strict=False), 1):
            self.add_module(f"conv_block{number}", _PannsBlock(inner, outer))
        self.fc1 = nn.Linear(self.width, self.width)

    def file_contents(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """See :meth:`AudioEncoder.file_weights`; of the STFT, the window alone."""
        return {**self.state_dict(), STFT: self.window[None, None], MELS: self.mels.T}, {}

    def logmel(self, waves: Tensor) -> Tensor:
        """Decibels (B, bands, frames) of power in the bands, at least -100."""
        return band_spectrogram(
            waves,
            self.window,
            self.mels,
            n_fft=self.n_fft,
            hop=self.hop,
            ends="reflected",
            logarithm="decibels",
            floor=1e-10,
        )

    def maps(self, waves: Tensor) -> list[Tensor]:
        x = self.bn0(self.logmel(waves)[..., None]).permute(0, 3, 2, 1)  # (B, 1, T, bands)
        maps = []
        for number in range(1, len(self.channels) + 1):
            x = self.get_submodule(f"conv_block{number}")(x)
            if number < len(self.channels):
                x = F.avg_pool2d(x, 2)
            maps.append(x.transpose(2, 3))
        return maps

    def forward(self, waves: Tensor) -> Tensor:
        over_time = self.maps(waves)[-1].mean(2)
        return F.relu(self.fc1(over_time.amax(2) + over_time.mean(2)))


class _PannsBlock(nn.Module):
    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outer), nn.BatchNorm2d(outer)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class VGGish(nn.Module):
    """VGGish (Hershey et al. 2017) with torchvggish's names: 128 features of each 0.96 s, averaged over the wave.

    Maps are of the whole wave at once, before the fully connected layers.
    """

    SECONDS_FRAMES, BANDS = 96, 64
    bands: Tensor
    window: Tensor
    sample_rate, width, channels = 16_000, 128, (64, 128, 256, 512)
    shortest = 400 + 95 * 160

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inner = 1
        for outer, convolutions in ((64, 1), (128, 1), (256, 2), (512, 2)):
            for _ in range(convolutions):
                layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU(inplace=True)]
                inner = outer
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 4 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, self.width),
            nn.ReLU(inplace=True),
        )
        self.register_buffer("window", torch.hann_window(400), persistent=False)
        self.register_buffer("bands", vggish_bands(), persistent=False)

    def file_contents(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """See :meth:`AudioEncoder.file_weights`."""
        return self.state_dict(), {}

    def logmel(self, waves: Tensor) -> Tensor:
        """ln(mel + 0.01) of magnitudes, (B, frames, 64): frames of 25 ms every 10 ms, not padded."""
        frames = waves.float().unfold(1, 400, 160) * self.window
        return torch.log(torch.fft.rfft(frames, 512).abs() @ self.bands.T + 0.01)

    def maps(self, waves: Tensor) -> list[Tensor]:
        x, maps = self.logmel(waves)[:, None], []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x.transpose(2, 3))
        return maps

    def forward(self, waves: Tensor) -> Tensor:
        examples = self.logmel(waves).unfold(1, self.SECONDS_FRAMES, self.SECONDS_FRAMES).transpose(2, 3)
        x = self.features(examples.flatten(0, 1)[:, None])
        embedded = self.embeddings(x.permute(0, 2, 3, 1).flatten(1))
        return embedded.unflatten(0, examples.shape[:2]).mean(1)


def vggish_bands() -> Tensor:
    """VGGish's mel filters (64, 257): triangles on the HTK scale from 125 to 7500 Hz; the first bin is in none."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127 * torch.log1p(hertz / 700)

    edges = torch.linspace(*mel(torch.tensor([125.0, 7500.0], dtype=torch.float64)).tolist(), 66).double()
    bins = mel(torch.linspace(0, 8000, 257, dtype=torch.float64))
    low, centre, high = (edges[i : i + 64, None] for i in range(3))
    bands = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp_min(0)
    bands[:, 0] = 0
    return bands.float()


def _panns(file: Path) -> Panns:
    state = read_state(file)
    blocks = numbered(state, "conv_block", "")
    if STFT not in state or MELS not in state or blocks == 0 or "fc1.weight" not in state:
        raise ValueError(f"{file} holds no CNN14 of PANNs: it looks like {description(state)}")
    window = state[STFT][0, 0]  # the real part at 0 Hz
    widths = tuple(
        state[name].shape[0] for n in range(1, blocks + 1) if (name := f"conv_block{n}.conv1.weight") in state
    )
    network = Panns(window, state[MELS].T.contiguous(), widths)
    left_out = ("spectrogram_extractor.", "logmel_extractor.", "fc_audioset.")
    weights = {name: value for name, value in state.items() if not name.startswith(left_out)}
    load_weights(network, weights, file, "PANNs' CNN14")
    return network


def _vggish(file: Path) -> VGGish:
    network = VGGish()
    state = {name: value for name, value in read_state(file).items() if not name.startswith("pproc.")}
    load_weights(network, state, file, "VGGish")
    return network


FAMILIES: dict[str, Callable[[Path], Panns | VGGish | BEATs]] = {
    "panns": _panns,
    "vggish": _vggish,
    "beats": read_beats,
}
