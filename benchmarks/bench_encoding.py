"""The encoding layer and its residual form, at small sizes (``pytest benchmarks/``)."""


def test_encoding(measured):
    assert measured.extra_info["error"] < 0.05
