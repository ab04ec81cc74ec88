import numpy as np
import pytest

from cmx_fast.data.transforms.schroeder import energy_decay_curve, reverberation_time

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


def measured(rt60, floor, rate, *, ahead=0.0, seconds=None, seed=0):
    """Decaying noise that begins after ``ahead`` seconds, over steady noise ``floor`` dB below its onset."""
    rng = np.random.default_rng([seed, round(1000 * rt60), rate])
    t = np.arange(round((1.2 * rt60 + 0.5 if seconds is None else seconds) * rate)) / rate
    decay = np.concatenate(
        [np.zeros(round(ahead * rate)), rng.standard_normal(len(t)) * 10 ** (-3 * t / rt60)]
    )
    return decay + 10 ** (floor / 20) * rng.standard_normal(len(decay))


@pytest.mark.parametrize("rt60", [0.2, 0.4, 0.8, 1.5, 3.0])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 48000])
@pytest.mark.parametrize("ahead", [0.0, 0.03, 0.4])
def test_noise_does_not_lengthen_the_decay(rt60, rate, ahead):
    for floor in (-40, -45, -50, -60, -70):
        estimate = reverberation_time(measured(rt60, floor, rate, ahead=ahead), rate)
        assert estimate == pytest.approx(rt60, rel=0.1), floor
    for floor in (-20, -25, -30, -33):
        assert np.isnan(reverberation_time(measured(rt60, floor, rate, ahead=ahead), rate)), floor


@pytest.mark.parametrize("floor", [-45, -55])
@pytest.mark.parametrize("rt60", [0.3, 1.0, 2.0])
def test_noise_of_any_kind_and_length(rt60, floor):
    """The file's length, its noise and its end make no difference."""
    plain = measured(rt60, floor, RATE)
    faded = plain * np.minimum(1, np.arange(len(plain), 0, -1) / (len(plain) / 8))
    time = np.arange(len(plain)) / RATE
    hum = measured(rt60, -120, RATE) + 10 ** (floor / 20) * np.sqrt(2) * np.sin(2 * np.pi * 50 * time)
    offset = measured(rt60, -120, RATE) + 10 ** (floor / 20)
    for response in (
        plain,
        faded,
        np.concatenate([plain, np.zeros(RATE)]),
        measured(rt60, floor, RATE, seconds=8.0),
        hum,
        offset,
    ):
        assert reverberation_time(response, RATE) == pytest.approx(rt60, rel=0.1)


def test_a_file_that_ends_early():
    for seen, known in ((25, False), (32, False), (38, True), (45, True), (60, True)):
        estimate = reverberation_time(measured(1.0, -200, RATE, seconds=seen / 60), RATE)
        assert estimate == pytest.approx(1.0, rel=0.05) if known else np.isnan(estimate), seen


@pytest.mark.parametrize("samples", [40, 1000, RATE])
def test_noise_alone_has_no_decay_to_be_seen(samples):
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert np.isnan(reverberation_time(rng.standard_normal(samples), RATE))
    assert np.isnan(reverberation_time(np.ones(samples), RATE))
    assert np.isnan(
        reverberation_time(rng.standard_normal(samples) * 10 ** np.linspace(-2, 0, samples), RATE)
    )


def test_a_late_decay_that_is_slower_counts_as_far_as_it_is_in_the_range():
    """Two coupled rooms: T20 of the whole, with and without noise, agrees."""
    t = np.arange(2 * RATE) / RATE
    noise = np.random.default_rng(0).standard_normal((2, len(t)))
    both = 10 ** (-3 * t / 0.5) + 10 ** (-1.8 - 3 * t / 1.5)
    without, with_noise = (
        reverberation_time(x, RATE) for x in (noise[0] * both, noise[0] * both + 1e-3 * noise[1])
    )
    assert with_noise == pytest.approx(without, rel=0.03)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e20, 1e38])
def test_magnitudes(scale):
    response = measured(0.6, -50, RATE)
    assert reverberation_time(scale * response, RATE) == pytest.approx(
        reverberation_time(response, RATE), rel=1e-9
    )


def test_lone_impulse_has_no_reverberation():
    assert reverberation_time(np.eye(1, 1000, 10)[0], RATE) == 0.0


def test_curve_starts_at_zero_and_falls():
    curve = energy_decay_curve(np.array([0.0, 1.0, 1.0]))
    np.testing.assert_allclose(curve, [0.0, 0.0, 10 * np.log10(0.5)])


@pytest.mark.parametrize("bad", [np.zeros(10), np.array([1.0, np.nan]), np.zeros(0), np.ones((2, 5))])
def test_refuses(bad):
    with pytest.raises(ValueError, match="response must"):
        reverberation_time(bad, RATE)
