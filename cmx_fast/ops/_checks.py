"""Argument checks that the operators share: each error names the argument, its value and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LABELS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
#: The default logit scale of the contrastive operators, MoCo's and SupCon's. Beside a temperature it is known by its
#: identity: a caller's own 1 / 0.07 is another object.
DEFAULT_SCALE = 1 / 0.07


def check_floating(name: str, value: object, min_dim: int, shape: str) -> None:
    """Require a tensor of one of the four floating dtypes with at least ``min_dim`` dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {shape}, got {type(value).__name__}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {value.dtype}")
    if value.dim() < min_dim:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")


def check_alike(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Require the dtype, device and last dimension of another tensor."""
    if value.device != other.device:
        raise ValueError(
            f"{name} is on {value.device} but {other_name} is on {other.device}; move one of them"
        )
    if value.dtype != other.dtype:
        raise TypeError(f"{name} is {value.dtype} but {other_name} is {other.dtype}; convert one of them")
    if value.shape[-1] != other.shape[-1]:
        raise ValueError(
            f"{name} has {value.shape[-1]} features per row but {other_name} has {other.shape[-1]}; they must be equal"
        )


def check_same(name: str, value: object, other_name: str, other: Tensor) -> None:
    """Require a tensor of the shape, dtype and device of another."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor like {other_name}, got {type(value).__name__}")
    if value.shape != other.shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)} but {other_name} has {tuple(other.shape)}; they must be equal"
        )
    if value.device != other.device:
        raise ValueError(
            f"{name} is on {value.device} but {other_name} is on {other.device}; move one of them"
        )
    if value.dtype != other.dtype:
        raise TypeError(f"{name} is {value.dtype} but {other_name} is {other.dtype}; convert one of them")


def channels_last(x: Tensor) -> bool:
    """True if the channels of a position lie next to each other in memory, and not the positions of a channel."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.dim() in formats and not x.is_contiguous() and x.is_contiguous(memory_format=formats[x.dim()])


def check_index(name: str, value: object, shape: Sequence[int], device: torch.device) -> None:
    """Require an int64 tensor of exactly this shape and device."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be an int64 tensor, got {kind}; use {name}.long()")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"{name} is on {value.device} but the features are on {device}; move one of them")


def check_labels(name: str, value: object, shape: Sequence[int], device: torch.device) -> Tensor:
    """Labels of this shape and any integer type as int64."""
    if not isinstance(value, Tensor) or value.dtype not in LABELS:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of integers, got {kind}; use {name}.long()")
    value = value if value.dtype == torch.int64 else value.long()
    check_index(name, value, shape, device)
    return value


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Require one of the named choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_flags(**flags: object) -> None:
    """Require each flag to be True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def check_fraction(name: str, value: object) -> None:
    """Require a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")


def readable(tensor: Tensor) -> bool:
    """True if the tensor's values can be read for free: on the CPU, not in torch.compile, not below a vmap."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not _vectorised()


def _vectorised() -> bool:
    """True while a torch.func.vmap runs: a tensor then stands for many, and has no one value."""
    if not torch._C._are_functorch_transforms_active():
        return False
    interpreters = torch._C._functorch.get_interpreter_stack() or ()
    return any(each.key() == torch._C._functorch.TransformType.Vmap for each in interpreters)


def scale_tensor(
    logit_scale: Tensor | float,
    features: Tensor,
    temperature: Tensor | float | None = None,
    default: float = DEFAULT_SCALE,
) -> Tensor:
    """The logit scale as a 0-d tensor in the accumulation dtype beside the features; gradients flow through.

    It is 1 / temperature where that is given, and then no logit scale may be but the operator's default object.
    """
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    if temperature is not None:
        if logit_scale is not default:
            raise ValueError(
                f"logit_scale and temperature can't both be given, got {logit_scale} and {temperature}; pass one of "
                "them (logit_scale is 1 / temperature)"
            )
        return _of_temperature(temperature, features.device, wide)
    if not isinstance(logit_scale, Tensor):
        # Real: NumPy's numbers as well, of which only float64 is a Python float.
        if isinstance(logit_scale, bool) or not isinstance(logit_scale, int | float | Real):
            raise TypeError(f"logit_scale must be a number or a 0-d tensor, got {type(logit_scale).__name__}")
        if not 0 < logit_scale < math.inf:
            raise ValueError(
                f"logit_scale must be positive and finite (it is 1 / temperature), got {logit_scale}"
            )
        return torch.full((), float(logit_scale), dtype=wide, device=features.device)
    if logit_scale.numel() != 1 or logit_scale.is_complex() or logit_scale.dtype == torch.bool:
        raise ValueError(
            f"logit_scale must be a real 0-d tensor, got {logit_scale.dtype} of shape {tuple(logit_scale.shape)}"
        )
    if logit_scale.device != features.device:
        raise ValueError(f"logit_scale is on {logit_scale.device} but the features are on {features.device}")
    if readable(logit_scale) and not logit_scale.item() > 0:
        raise ValueError(f"logit_scale must be positive (it is 1 / temperature), got {logit_scale.item()}")
    return logit_scale.reshape(()).to(wide)


def bias_tensor(logit_bias: Tensor | float, features: Tensor) -> Tensor:
    """The logit bias as a 0-d tensor in the accumulation dtype beside the features; gradients flow through."""
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    if not isinstance(logit_bias, Tensor):
        if isinstance(logit_bias, bool) or not isinstance(logit_bias, Real):
            raise TypeError(f"logit_bias must be a number or a 0-d tensor, got {type(logit_bias).__name__}")
        if not math.isfinite(logit_bias):
            raise ValueError(f"logit_bias must be finite, got {logit_bias}")
        return torch.full((), float(logit_bias), dtype=wide, device=features.device)
    if logit_bias.numel() != 1 or logit_bias.is_complex() or logit_bias.dtype == torch.bool:
        raise ValueError(
            f"logit_bias must be a real 0-d tensor, got {logit_bias.dtype} of shape {tuple(logit_bias.shape)}"
        )
    if logit_bias.device != features.device:
        raise ValueError(f"logit_bias is on {logit_bias.device} but the features are on {features.device}")
    return logit_bias.reshape(()).to(wide)


def _of_temperature(temperature: Tensor | float, device: torch.device, wide: torch.dtype) -> Tensor:
    """1 / temperature, 0-d."""
    if not isinstance(temperature, Tensor):
        if isinstance(temperature, bool) or not isinstance(temperature, Real):
            raise TypeError(f"temperature must be a number or a 0-d tensor, got {type(temperature).__name__}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {temperature}")
        return torch.full((), 1 / float(temperature), dtype=wide, device=device)
    if temperature.numel() != 1 or temperature.is_complex() or temperature.dtype == torch.bool:
        raise ValueError(
            f"temperature must be a real 0-d tensor, got {temperature.dtype} of shape {tuple(temperature.shape)}"
        )
    if temperature.device != device:
        raise ValueError(f"temperature is on {temperature.device} but the features are on {device}")
    if readable(temperature) and not 0 < temperature.item() < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature.item()}")
    return temperature.reshape(()).to(wide).reciprocal()


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in autocast's dtype where autocast is on for their device, else as they are; float64 stays.

    Products are then made in half precision, the softmax in float32.
    """
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if t.dtype in (torch.float32, torch.bfloat16, torch.float16) else t for t in tensors
    )
