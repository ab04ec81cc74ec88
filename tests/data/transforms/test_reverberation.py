import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve

from cmx_fast.data.transforms.reverberation import _smooth_length, damp, peak_normalise, reverberate
from cmx_fast.data.transforms.schroeder import reverberation_time


@pytest.mark.parametrize(
    ("speech", "air", "length"), [(1000, 300, 1299), (1000, 300, 500), (70, 33, 400), (1, 1, 1)]
)
def test_convolution_as_scipy(speech, air, length):
    rng = np.random.default_rng(0)
    s, a = rng.standard_normal((2, speech)), rng.standard_normal((2, air))
    expected = np.zeros((2, max(length, speech + air)))
    expected[:, : speech + air - 1] = fftconvolve(s, a, axes=1)
    got = reverberate(torch.from_numpy(s), torch.from_numpy(a), length)
    np.testing.assert_allclose(got.numpy(), expected[:, :length], atol=1e-11)


def test_one_response_for_many_sentences():
    s, a = torch.randn(4, 200), torch.randn(50)
    torch.testing.assert_close(reverberate(s, a, 200)[2], reverberate(s[2], a, 200))


def test_gradients():
    s = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    a = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, a: reverberate(s, a, 14), (s, a))


def test_fft_length_is_the_smallest_smooth_one():
    def smooth(n: int) -> bool:
        for p in (2, 3, 5):
            while n % p == 0:
                n //= p
        return n == 1

    for n in [1, 2, 7, 11, 13, 127, 1025, 4099, 158761]:
        assert _smooth_length(n) == next(m for m in range(n, 2 * n + 1) if smooth(m))


def test_peak_is_one_and_silence_stays():
    waves = torch.stack([0.01 * torch.randn(100), torch.zeros(100)])
    got = peak_normalise(waves)
    torch.testing.assert_close(got.abs().amax(1), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("factor", [0.3, 0.7, 1.0])
def test_damping_shortens_the_decay_and_keeps_the_direct_sound(factor):
    rate, rt60 = 8000, 1.2
    time = torch.arange(2 * rate) / rate
    decay = torch.cat([torch.zeros(400), 10 ** (-3 * time / rt60)])  # 50 ms before the direct sound
    damped = damp(decay, rate, rt60, factor)
    assert reverberation_time(damped.numpy(), rate) == pytest.approx(factor * rt60, rel=0.01)
    assert torch.equal(damped[:401], decay[:401])
    with pytest.raises(ValueError, match="factor must be in"):
        damp(decay, rate, rt60, 1.1)
    with pytest.raises(ValueError, match="rt60 above 0, got 0.5 and nan"):
        damp(decay, rate, float("nan"), 0.5)


@pytest.mark.parametrize(
    ("speech", "air", "length", "error"),
    [
        (torch.ones(3), torch.ones(3), 0, ValueError),
        (torch.ones(0), torch.ones(3), 5, ValueError),
        (torch.ones(3), torch.ones(2, 0), 5, ValueError),
        (torch.ones(3, dtype=torch.int16), torch.ones(3), 5, TypeError),
    ],
)
def test_refuses(speech, air, length, error):
    with pytest.raises(error, match=r"speech|air|length"):
        reverberate(speech, air, length)
