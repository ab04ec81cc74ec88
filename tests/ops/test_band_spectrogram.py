"""Spectrograms in bands: against the definition in float64, eager's error, laws, odd sizes, bad input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from cmx_fast import ops, reference
from cmx_fast.ops import band_reach, band_spectrogram

LN10 = np.log(10)


def truth_of(wave, window, bands, n_fft, hop, ends, preemphasis, remove_mean, logarithm, floor):
    """Frame by frame from the definition, in float64."""
    x, window, bands = (t.double().numpy() for t in (wave, window, bands))
    length = len(window)
    rows = []
    for row in x:
        row = np.concatenate([row[:1], row[1:] - preemphasis * row[:-1]])
        at = 0
        if ends == "reflected":
            row, at = np.pad(row, n_fft // 2, mode="reflect"), (n_fft - length) // 2
            count = 1 + (len(row) - n_fft) // hop
        elif ends == "zeros":
            count = 1 + -(-max(0, len(row) - length) // hop)
            row = np.pad(row, (0, length + hop))
        else:
            count = 1 + (len(row) - length) // hop
        energies = []
        for f in range(count):
            frame = row[f * hop + at : f * hop + at + length]
            frame = frame - frame.mean() if remove_mean else frame
            energies.append(bands @ np.abs(np.fft.rfft(frame * window, n_fft)) ** 2)
        rows.append(np.array(energies).T)
    energy = torch.from_numpy(np.array(rows))
    if logarithm == "decibels":
        return 10 * torch.log10(energy.clamp_min(floor))
    return torch.where(energy == 0, floor, energy).log() if logarithm == "natural" else energy


def triangles(count, bins):
    """Overlapping triangles, the first of them empty as narrow mel filters are."""
    centres = torch.linspace(0, bins - 1, count + 2)
    j = torch.arange(bins)[None]
    width = (bins - 1) / (count + 1)
    weights = (1 - (j - centres[1:-1, None]).abs() / width).clamp_min(0)
    weights[0] = 0
    return weights


CASES = [
    (*case, logarithm, floor)
    for (logarithm, floor), case in itertools.product(
        (("none", 0.0), ("decibels", 1e-10), ("natural", 2.2e-16)),
        (
            ("reflected", 0.0, False),
            ("cut", 0.0, True),
            ("cut", 0.97, False),
            ("cut", 0.9, True),
            ("zeros", 0.97, False),
            ("zeros", 0.0, False),
        ),
    )
]


@pytest.mark.parametrize(("ends", "preemphasis", "remove_mean", "logarithm", "floor"), CASES)
@pytest.mark.parametrize(
    ("samples", "length", "n_fft", "hop", "count"),
    [
        (4000, 512, 512, 159, 40),
        (40, 33, 64, 100, 9),
        (900, 480, 1024, 240, 257),
        (700, 33, 64, 7, 5),
        (100, 16, 16, 16, 1),
    ],
)
def test_as_exact_as_eager(
    samples, length, n_fft, hop, count, ends, preemphasis, remove_mean, logarithm, floor
):
    wave, window = torch.randn(3, samples), torch.rand(length) + 0.1
    bands = triangles(count, n_fft // 2 + 1)
    given = (n_fft, hop, ends, preemphasis, remove_mean, logarithm, floor)
    truth = truth_of(wave, window, bands, *given)
    options = dict(
        zip(("n_fft", "hop", "ends", "preemphasis", "remove_mean", "logarithm", "floor"), given, strict=True)
    )
    actual = band_spectrogram(wave, window, bands, **options, impl="cpp")
    eager = band_spectrogram(wave, window, bands, **options, impl="reference")
    assert actual.dtype == torch.float32 and actual.shape == truth.shape == eager.shape
    ours, theirs = ((each.double() - truth).norm() for each in (actual, eager))
    assert ours <= 1.5 * max(theirs, 6e-8 * truth.norm()), (ours, theirs)
    exact = band_spectrogram(wave.double(), window.double(), bands.double(), **options)
    torch.testing.assert_close(exact, truth, rtol=1e-9, atol=1e-9)


def test_standardised():
    wave, bands = torch.randn(2, 3000), triangles(20, 129)
    mean, std = torch.randn(20), torch.rand(20) + 0.5
    options = {"n_fft": 256, "hop": 100, "ends": "reflected", "logarithm": "decibels", "floor": 1e-10}
    plain = band_spectrogram(wave, torch.hann_window(256), bands, **options)
    got = band_spectrogram(wave, torch.hann_window(256), bands, mean=mean, std=std, **options)
    torch.testing.assert_close(got, (plain - mean[:, None]) / std[:, None])
    only = band_spectrogram(wave, torch.hann_window(256), bands, std=std, **options, impl="reference")
    torch.testing.assert_close(only, plain / std[:, None])


@pytest.mark.parametrize("n_fft", [2**k for k in range(4, 13)])
def test_energy_of_all_frequencies_is_that_of_the_samples(n_fft):
    """Parseval's law, for every length of transform."""
    wave = torch.randn(2, 3 * n_fft)
    weights = torch.full((1, n_fft // 2 + 1), 2.0)
    weights[0, 0] = weights[0, -1] = 1
    energy = band_spectrogram(wave, torch.ones(n_fft), weights, n_fft=n_fft, hop=n_fft, impl="cpp")
    expected = n_fft * wave.unflatten(1, (3, n_fft)).square().sum(2)
    torch.testing.assert_close(energy[:, 0], expected, rtol=1e-5, atol=0)


def test_a_tone_is_one_frequency():
    n = 2048
    for k in (1, 5, 511, 1023):
        wave = torch.cos(2 * torch.pi * k * torch.arange(n, dtype=torch.float64) / n).float()[None]
        power = band_spectrogram(wave, torch.ones(n), torch.eye(n // 2 + 1), n_fft=n, hop=1, impl="cpp")[
            0, :, 0
        ]
        assert power.argmax() == k
        assert power[k].item() == pytest.approx((n / 2) ** 2, rel=1e-5)
        power[k] = 0
        assert power.max() < 1e-5


def test_one_frame_does_not_change_with_its_neighbours():
    """Lanes of a vector, tasks and batches of any number give the same bits."""
    wave, bands = torch.randn(2, 9000), triangles(30, 257)
    options = {"n_fft": 512, "hop": 128, "logarithm": "decibels", "floor": 1e-10, "impl": "cpp"}
    whole = band_spectrogram(wave, torch.hann_window(512), bands, **options)
    for f in (0, 1, 17, whole.shape[2] - 1):
        alone = band_spectrogram(wave[1:, f * 128 : f * 128 + 512], torch.hann_window(512), bands, **options)
        assert alone[0, :, 0].equal(whole[1, :, f])


def test_what_lies_outside_a_wave_is_never_read():
    memory = torch.full((4, 700), float("nan"))
    memory[1:3] = torch.randn(2, 700)
    wave = memory[1:3]
    for ends, preemphasis in (("zeros", 0.97), ("cut", 0.97), ("reflected", 0.0)):
        actual = band_spectrogram(
            wave, torch.ones(100), triangles(9, 65), n_fft=128, hop=37, ends=ends, preemphasis=preemphasis,
            impl="cpp",
        )  # fmt: skip
        assert actual.isfinite().all(), ends


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(value):
    wave = torch.randn(1, 2000)
    wave[0, 1000] = value
    actual = band_spectrogram(
        wave,
        torch.ones(64),
        triangles(8, 33),
        n_fft=64,
        hop=64,
        logarithm="decibels",
        floor=1e-10,
        impl="cpp",
    )
    frame = 1000 // 64
    assert not actual[0, 1:, frame].isfinite().any()
    assert actual[0, :, :frame].isfinite().all() and actual[0, :, frame + 1 :].isfinite().all()


def test_silence_is_exactly_the_floor():
    options = {"n_fft": 64, "hop": 32, "impl": "cpp"}
    silence = torch.zeros(1, 640)
    actual = band_spectrogram(
        silence, torch.ones(64), triangles(8, 33), logarithm="decibels", floor=1e-10, **options
    )
    assert actual.eq(-100).all()
    actual = band_spectrogram(
        silence, torch.ones(64), triangles(8, 33), logarithm="natural", floor=1e-7, **options
    )
    assert actual.eq(np.float32(np.log(1e-7))).all()


def test_other_layouts_types_and_no_waves():
    wave, bands = torch.randn(700, 4), triangles(9, 65)
    options = {"n_fft": 128, "hop": 50}
    expected = band_spectrogram(wave.T.contiguous(), torch.ones(100), bands, **options)
    assert band_spectrogram(wave.T, torch.ones(100), bands, **options).equal(expected)
    half = band_spectrogram(wave.T.bfloat16(), torch.ones(100), bands, **options)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0.1, atol=5.0)
    assert band_spectrogram(torch.randn(0, 700), torch.ones(100), bands, **options).shape == (0, 9, 13)
    assert band_spectrogram(wave.T, torch.ones(100), bands[:0], **options).shape == (4, 0, 13)


def test_a_transform_of_another_length_and_gradients_go_to_the_reference():
    wave = torch.randn(1, 600, requires_grad=True)
    bands = triangles(5, 51)
    got = band_spectrogram(wave, torch.ones(100), bands, n_fft=100, hop=50)
    assert got.equal(reference.band_spectrogram(wave, torch.ones(100), bands, n_fft=100, hop=50))
    (gradient,) = torch.autograd.grad(got.sum(), wave)
    assert gradient.abs().sum() > 0
    with pytest.raises(
        ValueError, match="float32 waves without gradient and an n_fft that is a power of two"
    ):
        band_spectrogram(wave, torch.ones(100), bands, n_fft=100, hop=50, impl="cpp")


def test_reach():
    weights = torch.tensor([[0.0, 1, 2, 0], [0, 0, 0, 0], [3, 0, 0, 1], [0, 0, 0, 5]])
    assert band_reach(weights).tolist() == [[1, 3], [0, 0], [0, 4], [3, 4]]


def test_compiles():
    layer = torch.compile(
        lambda w: 2 * band_spectrogram(w, torch.ones(64), triangles(8, 33), n_fft=64, hop=32)
    )
    wave = torch.randn(2, 640)
    torch.testing.assert_close(
        layer(wave), 2 * band_spectrogram(wave, torch.ones(64), triangles(8, 33), n_fft=64, hop=32)
    )


GOOD = {
    "wave": torch.randn(2, 300),
    "window": torch.ones(64),
    "bands": torch.ones(3, 33),
    "n_fft": 64,
    "hop": 10,
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"wave": torch.ones(300)}, ValueError, r"\(B, samples\)"),
        ({"wave": torch.ones(2, 300).int()}, TypeError, "wave must be float32"),
        ({"hop": 0}, ValueError, "hop must be a positive number of samples, got 0"),
        ({"n_fft": 64.0}, ValueError, "n_fft must be a positive number"),
        ({"n_fft": 32}, ValueError, "window must be 1 to n_fft = 32 numbers"),
        ({"bands": torch.ones(3, 32)}, ValueError, r"bands must have shape \(K, 33\)"),
        ({"wave": torch.ones(2, 63)}, ValueError, "63 samples; ends='cut' needs 64"),
        ({"wave": torch.ones(2, 32), "ends": "reflected"}, ValueError, "needs 33 here"),
        ({"ends": "wrapped"}, ValueError, "ends must be one of"),
        ({"logarithm": "bels"}, ValueError, "logarithm must be one of"),
        ({"logarithm": "natural"}, ValueError, "floor must be positive"),
        ({"mean": torch.ones(2)}, ValueError, r"mean must have one number per band, \(3,\)"),
        ({"preemphasis": 0.9, "ends": "reflected"}, ValueError, "preemphasis goes with"),
        ({"remove_mean": True, "ends": "zeros"}, ValueError, "remove_mean goes with ends='cut'"),
        ({"reach": torch.zeros(2, 2).int()}, ValueError, r"reach must be \(3, 2\) int32, got \(2, 2\)"),
        ({"reach": torch.zeros(3, 2)}, ValueError, "got .* torch.float32"),
        ({"reach": torch.tensor([[0, 33], [0, 34], [0, 1]]).int()}, RuntimeError, "0 to 33, got 34"),
        ({"reach": torch.tensor([[-1, 33], [0, 3], [0, 1]]).int()}, RuntimeError, "0 to 33, got -1"),
        ({"remove_mean": 1}, TypeError, "remove_mean must be True or False"),
        ({"window": torch.ones(64, device="meta")}, ValueError, "window is on meta"),
        ({"impl": "triton"}, ValueError, "run on CUDA tensors"),
    ],
)
def test_refuses(change, error, message):
    with pytest.raises(error, match=message):
        ops.band_spectrogram(**{**GOOD, **change})


@pytest.mark.parametrize("n_fft", [64, 100])
def test_full_precision_under_autocast(n_fft):
    """By the kernel, and by the reference, whose product autocast would take."""
    wave, bands = torch.randn(2, 700), triangles(8, n_fft // 2 + 1)
    expected = band_spectrogram(wave, torch.ones(n_fft), bands, n_fft=n_fft, hop=32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert band_spectrogram(wave, torch.ones(n_fft), bands, n_fft=n_fft, hop=32).equal(expected)
