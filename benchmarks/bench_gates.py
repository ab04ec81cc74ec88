"""Gates and what their users run today, at small sizes (``pytest benchmarks/``)."""


def test_gates(measured):
    assert measured.extra_info["error"] < 0.05
