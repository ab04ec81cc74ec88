"""Triton device code and its launchers, installed as ``cmx_fast.kernels``."""

if __name__ != "cmx_fast.kernels":
    raise ImportError(
        f"import this package as cmx_fast.kernels, not as {__name__}: two copies would be loaded"
    )
