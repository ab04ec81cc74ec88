"""Fast kernels and training for audio-visual contrastive learning."""

import importlib.util

import torch  # noqa: F401  (before _C, which links against its libraries)

if importlib.util.find_spec("cmx_fast._C") is not None:
    from . import _C  # noqa: F401

__version__ = "0.1.0"
