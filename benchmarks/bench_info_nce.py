"""``info_nce`` and what its users run today, forward and backward at small sizes (``pytest benchmarks/``)."""


def test_info_nce(measured):
    assert measured.extra_info["error"] < 0.05
