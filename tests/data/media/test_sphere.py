from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
from shorten_files import write_shortened

from cmx_fast.data.media.files import BrokenFileError, audio_problem, read_audio

RATE = 16000


def speech(count):
    noise = np.random.default_rng(0).standard_normal(count)
    return (8000 * np.sin(np.arange(count) / 20) + 500 * noise).astype(np.int16)


def test_what_shorten_compressed_is_read_to_the_bit(tmp_path):
    samples = speech(5000)
    write_shortened(tmp_path / "a.wv1", samples, RATE)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    assert audio_problem(tmp_path / "a.wv1") is None
    for rate, most in ((RATE, 5000), (RATE, 700), (8000, 2500)):
        read, expected = (read_audio(tmp_path / name, rate, most) for name in ("a.wv1", "a.wav"))
        torch.testing.assert_close(read, expected)


def test_sphere_that_is_not_compressed(tmp_path):
    samples = speech(3000)
    soundfile.write(tmp_path / "a.sph", samples, RATE, format="NIST", subtype="PCM_16")
    torch.testing.assert_close(
        read_audio(tmp_path / "a.sph", RATE, 3000), torch.from_numpy(samples).float() / 2**15
    )


def test_what_is_broken_is_named(tmp_path):
    write_shortened(tmp_path / "none.wv1", speech(0), RATE)
    assert audio_problem(tmp_path / "none.wv1") == "has no samples"
    write_shortened(tmp_path / "a.wv1", speech(5000), RATE)
    whole = (tmp_path / "a.wv1").read_bytes()
    (tmp_path / "a.wv1").write_bytes(whole[:1024] + b"nothing of shorten" * 40)
    with pytest.raises(BrokenFileError, match=r"a\.wv1: "):
        read_audio(tmp_path / "a.wv1", RATE, 5000)
