from __future__ import annotations

import struct

import pytest
import torch

from cmx_fast.data.media.files import BrokenFileError, read_audio
from cmx_fast.data.media.resampling import MOST_PHASES, RATES, ratio, resample

soundfile = pytest.importorskip("soundfile")


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000, 192000])
@pytest.mark.parametrize("wanted", [8000, 16000, 22050, 44100, 48000])
def test_usual_rates_are_exact(rate, wanted):
    source, target = ratio(rate, wanted)
    assert source * wanted == target * rate and max(source, target) <= MOST_PHASES


@pytest.mark.parametrize("rate", [1000, 1001, 7919, 22051, 44056, 47999, 191997, 767999])
@pytest.mark.parametrize("wanted", [8000, 22050])
def test_odd_rates_are_near_and_cheap(rate, wanted):
    source, target = ratio(rate, wanted)
    assert max(source, target) <= MOST_PHASES
    assert source / target == pytest.approx(rate / wanted, rel=1e-4)


def test_a_tone_keeps_its_pitch():
    rate, wanted = 22051, 8000
    tone = torch.sin(2 * torch.pi * 440 * torch.arange(rate) / rate)
    resampled = resample(tone, rate, wanted)
    spectrum = torch.fft.rfft(resampled[:wanted] * torch.hann_window(wanted)).abs()
    assert int(spectrum.argmax()) == 440
    assert resample(tone, rate, rate) is tone


@pytest.mark.parametrize("rate", [0, 1, 999, RATES[-1] + 1, 2**31 - 1])
def test_a_header_with_an_impossible_rate_is_a_broken_file(tmp_path, rate):
    file = tmp_path / "a.wav"
    soundfile.write(file, torch.rand(800).numpy() - 0.5, 8000)
    content = bytearray(file.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    file.write_bytes(content)
    with pytest.raises(BrokenFileError):
        read_audio(file, 22050, 22050)
