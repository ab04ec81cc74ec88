"""``supcon`` and what its users run today, forward and backward at small sizes (``pytest benchmarks/``)."""


def test_supcon(measured):
    assert measured.extra_info["error"] < 0.05
