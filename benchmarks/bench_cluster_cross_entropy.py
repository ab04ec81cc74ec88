"""``cluster_cross_entropy`` and what its users run today, at small sizes (``pytest benchmarks/``)."""


def test_cluster_cross_entropy(measured):
    assert measured.extra_info["error"] < 0.05
