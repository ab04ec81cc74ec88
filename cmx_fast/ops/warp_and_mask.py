"""SpecAugment's pass over spectrograms after its random draws: frames moved in time, bands and frames hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.ops import _checks
from cmx_fast.ops._implementations import HAS_EXTENSION, choose, register_triton


def warp_and_mask(
    x: Tensor, position: Tensor, hidden_bands: Tensor, hidden_frames: Tensor, *, impl: str = "auto"
) -> Tensor:
    """Warp and mask spectrograms: frame t is ``x`` at ``position[t]``, and 0 where its band or frame is hidden.

    Positions between two frames are interpolated linearly. Time warping and masking of Park et al., "SpecAugment",
    Interspeech 2019, section 2, in one pass.

    Args:
        x: (B, F, T) spectrograms, float32, float64, bfloat16 or float16, at least one frame.
        position: (B, T), any floating dtype, in frames; outside of 0 to T - 1 it counts as the nearest end, NaN as 0.
        hidden_bands: (B, F) bool. hidden_frames: (B, T) bool.
        impl: "auto", "reference", "cpp" (CPU) or "triton" (CUDA).

    Returns:
        x's shape and dtype. Differentiable in x through the reference, which "auto" takes where a gradient is asked
        for.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or device, before any work.

    Cost: x is read once (neighbouring frames twice, from the cache) and the result written once.

    Example:
        >>> import torch
        >>> from cmx_fast.ops import warp_and_mask
        >>> x = torch.tensor([[[1.0, 2.0, 4.0]]])
        >>> shown = torch.zeros(1, 1, dtype=torch.bool), torch.tensor([[False, False, True]])
        >>> warp_and_mask(x, torch.tensor([[0.5, 1.5, 2.0]]), *shown)
        tensor([[[1.5000, 3.0000, 0.0000]]])
    """
    _checks.check_floating("x", x, 3, "(B, F, T)")
    if x.dim() != 3 or x.shape[2] == 0:
        raise ValueError(f"x must have shape (B, F, T) with frames, got {tuple(x.shape)}")
    _checks.check_floating("position", position, 2, "(B, T)")
    count, bands, frames = x.shape
    for name, value, shape in (
        ("position", position, (count, frames)),
        ("hidden_bands", hidden_bands, (count, bands)),
        ("hidden_frames", hidden_frames, (count, frames)),
    ):
        if name != "position" and getattr(value, "dtype", None) != torch.bool:
            raise TypeError(
                f"{name} must be a bool tensor, got {getattr(value, 'dtype', type(value).__name__)}"
            )
        if tuple(value.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
        if value.device != x.device:
            raise ValueError(f"{name} is on {value.device} but x is on {x.device}; move one of them")
    wanted = torch.is_grad_enabled() and x.requires_grad
    if impl == "auto" and wanted:
        impl = "reference"
    impl = choose("warp_and_mask", impl, x.device.type, x.dtype, 1)
    position = position.to(torch.promote_types(x.dtype, torch.float32))
    if impl == "reference":
        return reference.warp_and_mask(x, position, hidden_bands, hidden_frames)
    if wanted:
        raise ValueError(f"impl={impl!r} has no gradient; use impl='reference', or x.detach()")
    return torch.ops.cmx_fast.warp_and_mask_fwd(x.contiguous(), position, hidden_bands, hidden_frames)


if HAS_EXTENSION:

    @torch.library.register_fake("cmx_fast::warp_and_mask_fwd")
    def _(x, position, hidden_bands, hidden_frames):
        return torch.empty_like(x)

    register_triton("warp_and_mask_fwd", "warp_and_mask.warp_and_mask_fwd")
