"""Choice of an operator's implementation on a device, with its reason."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable

import torch

from cmx_fast.reference.transforms import transformed

IMPLEMENTATIONS = ("auto", "reference", "cpp", "triton", "cuda")
OPERATORS = (
    "attention",
    "info_nce",
    "supcon",
    "dense_scores",
    "sigmoid_contrastive",
    "kmeans",
    "cluster_cross_entropy",
    "sparse_code",
    "pyramid_correlation",
    "channel_gate",
    "position_gate",
    "prepare_frames",
    "softmax_block",
    "band_spectrogram",
    "warp_and_mask",
)
# Triton programs hold a row block in registers chunk by chunk; the launchers are written and compiled up to this many
# features (of the sparse code: atoms, of the correlation: channels).
TRITON_MAX_FEATURES = {
    "attention": 65536,
    "dense_scores": 65536,
    "kmeans": 4096,
    "cluster_cross_entropy": 4096,
    "sparse_code": 128,
    "pyramid_correlation": 65536,
    "channel_gate": 65536,
    "position_gate": 65536,
}
TRITON_MOST_FEATURES = 2048

# Of the operators that csrc/cuda has kernels for, one that stands for them: where it is registered, so are the others.
CUDA_OPERATORS = {"pyramid_correlation": "pyramid_correlation_cuda_fwd", "kmeans": "kmeans_cuda_step"}

logger = logging.getLogger("cmx_fast")


# Looked up once at import: torch.compile must not trace through a search.
# The extension holds the operators' schemas and CPU kernels. It links against the libraries of torch, now loaded.
HAS_EXTENSION = importlib.util.find_spec("cmx_fast._C") is not None
if HAS_EXTENSION:
    importlib.import_module("cmx_fast._C")
COMPILED_FOR_CUDA = frozenset(
    op
    for op, name in CUDA_OPERATORS.items()
    if HAS_EXTENSION and torch._C._dispatch_has_kernel_for_dispatch_key(f"cmx_fast::{name}", "CUDA")
)
HAS_TRITON = importlib.util.find_spec("triton") is not None

#: For the forward pass inside of an autograd.Function: without it an op called there still walks through the Python
#: that register_autograd installed for it, 15 us a call, only to find that no gradient is asked for.
below_autograd = torch._C._AutoDispatchBelowAutograd


def _unavailable(op: str, impl: str, device: str, dtype: torch.dtype, features: int) -> str | None:
    """The reason why this implementation can't run there, or None if it can."""
    if impl == "reference":
        return None
    if transformed():
        return "kernels have no rule for torch.func's transforms and forward-mode derivatives; use impl='reference'"
    if impl == "cuda" and op not in CUDA_OPERATORS:
        return "it has no CUDA C++ kernel; use impl='triton'"
    if not HAS_EXTENSION:
        return "the C++ extension cmx_fast._C is not built (reinstall without CMX_NO_EXTENSION)"
    if impl == "cpp":
        return None if device == "cpu" else f"the C++ kernel runs on CPU tensors, these are on {device}"
    kernels = "CUDA C++" if impl == "cuda" else "Triton"
    if device != "cuda":
        return f"{kernels} kernels run on CUDA tensors, these are on {device}"
    if impl == "cuda" and op not in COMPILED_FOR_CUDA:
        return (
            "the extension was built without its CUDA files (a build with FORCE_CUDA=1 says what is missing)"
        )
    if impl == "triton" and not HAS_TRITON:
        return "Triton is not installed"
    if dtype == torch.float64:
        return f"the {kernels} kernels take float32, bfloat16 and float16, not float64"
    if impl == "cuda":
        return None
    most = TRITON_MAX_FEATURES.get(op, TRITON_MOST_FEATURES)
    if features > most:
        return f"the Triton kernels take at most {most} features per row, got {features}"
    return None


def choose(op: str, impl: str, device: str, dtype: torch.dtype, features: int) -> str:
    """The implementation to run; an explicit one that can't run raises ``ValueError`` with the reason."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLEMENTATIONS))}; got {impl!r}")
    if impl != "auto":
        reason = _unavailable(op, impl, device, dtype, features)
        if reason is not None:
            raise ValueError(f"{op}: impl={impl!r} can't run here: {reason}")
        return impl
    chosen, reason = automatic(op, device, dtype, features)
    if not torch.compiler.is_compiling():
        _log_once(op, device, chosen, reason)
    return chosen


def automatic(op: str, device: str, dtype: torch.dtype = torch.float32, features: int = 1) -> tuple[str, str]:
    """The implementation that ``auto`` takes on this device, and the reason in words."""
    preferred = "triton" if device == "cuda" else "cpp"
    reason = _unavailable(op, preferred, device, dtype, features)
    if reason is None:
        return preferred, "fused " + ("Triton kernel" if preferred == "triton" else "C++ kernel")
    return "reference", reason


@functools.cache
def _log_once(op: str, device: str, chosen: str, reason: str) -> None:
    logger.info("%s on %s: impl=%r (%s)", op, device, chosen, reason)


def operator(op: str, way: str, impl: str) -> Callable:
    """The registered op of an implementation: ``way`` is "fwd", "bwd" or "step".

    "cuda" has ops of its own, since "triton" already is the CUDA kernel of the others.
    """
    return getattr(torch.ops.cmx_fast, f"{op}_cuda_{way}" if impl == "cuda" else f"{op}_{way}")


def implementations() -> dict[str, dict[str, tuple[str, str]]]:
    """The implementation that ``auto`` takes and its reason, for every operator and device type."""
    return {op: {device: automatic(op, device) for device in ("cpu", "cuda")} for op in OPERATORS}


def register_triton(op: str, launcher: str) -> None:
    """Make ``cmx_fast.kernels.<launcher>`` the CUDA kernel of a registered op; Triton is imported at the first call."""
    module, name = launcher.rsplit(".", 1)

    @functools.cache
    def load() -> Callable:
        return getattr(importlib.import_module(f"cmx_fast.kernels.{module}"), name)

    torch.library.register_kernel(f"cmx_fast::{op}", "cuda", lambda *args: load()(*args))
