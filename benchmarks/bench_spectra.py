"""Audio front ends and what their users run today, at small sizes (``pytest benchmarks/``)."""


def test_spectra(measured):
    assert measured.extra_info["error"] < 1e-3
