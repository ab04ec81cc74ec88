"""Detection of derivatives that only PyTorch's own operations can take."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def transformed() -> bool:
    """True while a transform of torch.func (grad, jvp, vmap, ...) runs, or forward-mode derivatives are being taken.

    Kernels see neither: they would drop tangents, and derivatives would come out as 0. torch.compile traces through it.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
