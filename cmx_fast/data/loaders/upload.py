"""Copies batches to the device while it is still busy with the last one."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(x: Tensor, device: torch.device | str) -> Tensor:
    """``x`` on the device; the copy takes its turn there, and the host goes on.

    A GPU copies from page-locked memory only: from any other the host would first wait until the GPU is idle.
    """
    if torch.device(device).type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
