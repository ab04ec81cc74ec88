"""Audio front ends and what their users run today, at small sizes (``pytest benchmarks/``)."""


def test_band_spectrogram(measured):
    assert measured.extra_info["error"] < 1e-3
