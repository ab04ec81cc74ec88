"""``attention_consistency`` and what its users run today, at small sizes (``pytest benchmarks/``)."""


def test_attention_consistency(measured):
    assert measured.extra_info["error"] < 1e-4
