import numpy as np
import pytest

from cmx_fast.data.schroeder import energy_decay_curve, reverberation_time

RATE = 22050


@pytest.mark.parametrize("rt60", [0.2, 0.7, 2.5])
def test_exponential_decay_gives_its_own_time(rt60):
    t = np.arange(int(1.5 * rt60 * RATE)) / RATE
    assert reverberation_time(10 ** (-3 * t / rt60), RATE) == pytest.approx(rt60, rel=1e-3)


def test_decaying_noise_with_a_direct_sound():
    t = np.arange(RATE) / RATE
    noise = np.random.default_rng(0).standard_normal(RATE) * 10 ** (-3 * t / 0.6)
    assert reverberation_time(noise, RATE) == pytest.approx(0.6, rel=0.05)
    assert reverberation_time(np.concatenate([np.zeros(500), noise]), RATE) == pytest.approx(0.6, rel=0.05)


def test_scale_and_rate():
    t = np.arange(RATE) / RATE
    decay = 10 ** (-3 * t / 0.5)
    assert reverberation_time(1e-3 * decay, RATE) == pytest.approx(0.5, rel=1e-3)
    assert reverberation_time(decay, 2 * RATE) == pytest.approx(0.25, rel=1e-3)


def test_lone_impulse_has_no_reverberation():
    assert reverberation_time(np.eye(1, 1000, 10)[0], RATE) == 0.0


def test_curve_starts_at_zero_and_falls():
    curve = energy_decay_curve(np.array([0.0, 1.0, 1.0]))
    np.testing.assert_allclose(curve, [0.0, 0.0, 10 * np.log10(0.5)])


@pytest.mark.parametrize("bad", [np.zeros(10), np.array([1.0, np.nan]), np.zeros(0), np.ones((2, 5))])
def test_refuses(bad):
    with pytest.raises(ValueError, match="response must"):
        reverberation_time(bad, RATE)
