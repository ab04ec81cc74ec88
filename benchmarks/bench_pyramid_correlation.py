"""``pyramid_correlation`` and what its users run today, at small sizes (``pytest benchmarks/``)."""


def test_pyramid_correlation(measured):
    assert measured.extra_info["error"] < 1e-4
