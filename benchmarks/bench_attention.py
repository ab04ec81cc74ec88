"""``attention`` and what its users run today, at small sizes (``pytest benchmarks/``)."""


def test_attention(measured):
    assert measured.extra_info["error"] < 0.05
