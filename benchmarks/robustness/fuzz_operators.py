"""Tries operators with random arguments, good and bad, beside their references."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cmx_fast import ops


class Wrong(Exception):
    """The answer is not the right one."""


SIZES = (0, 1, 2, 3, 5, 8, 17, 33)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NUMBERS = (0.0, 1.0, -1.0, 0.005, 14.3, 1e30, float("nan"), float("inf"), 1, 3, -2, True, None, "x")
NAMES = ("dot", "l2", "sql2", "cosine", "softmax", "none", "mean", "sum", "mean_nonzero", "Dot", "", 3, None)


def _size(rng: random.Random, sizes: dict[str, int], letter: str) -> int:
    """The size of a letter in this try, so that shapes fit; sometimes another one."""
    size = sizes.setdefault(letter, rng.choice(SIZES))
    return size if rng.random() < 0.95 else rng.choice(SIZES)


def _tensor(rng: random.Random, sizes: dict[str, int], shape: str, dtype: torch.dtype) -> Any:
    """A tensor of a shape in letters ("N D"); sometimes strided, with a NaN, of another dtype, or no tensor."""
    kind = rng.random()
    if kind < 0.02:
        return rng.choice([None, 3.0, "x", [1, 2]])
    dims = [_size(rng, sizes, letter) for letter in shape.split()]
    if kind < 0.04:
        dims = dims[1:] if rng.random() < 0.5 else [2, *dims]
    x = torch.randn(dims, dtype=torch.float64)
    if kind < 0.07 and x.numel():
        x.view(-1)[rng.randrange(x.numel())] = rng.choice([float("nan"), float("inf"), 1e4])
    if kind < 0.10:
        dtype = rng.choice([*DTYPES, torch.int64, torch.complex64, torch.bool])
    x = x.to(dtype)
    if 0.10 < kind < 0.2 and x.dim() > 1:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    if 0.2 < kind < 0.22:
        x = x.to("meta")
    return x


def _labels(rng: random.Random, sizes: dict[str, int], shape: str, most: int) -> Any:
    if rng.random() < 0.04:
        return rng.choice([None, 3, torch.ones(2)])
    low = 0 if rng.random() < 0.95 else -3
    return torch.randint(low, max(1, most), [_size(rng, sizes, letter) for letter in shape.split()])


def _options(rng: random.Random, **values: tuple) -> dict[str, Any]:
    """Some of the options, mostly with valid values."""
    chosen = {}
    for name, choices in values.items():
        if rng.random() < 0.5:
            odd = rng.random() < 0.04
            chosen[name] = rng.choice(NUMBERS + NAMES) if odd else rng.choice(choices)
    return chosen


BOTH = (True, False)


def _info_nce(rng: random.Random, sizes: dict[str, int], dtype: torch.dtype) -> tuple[tuple, dict[str, Any]]:
    options = _options(
        rng, in_batch=BOTH, within=BOTH, similarity=("dot", "l2", "sql2"), symmetric=BOTH, normalize=BOTH,
        label_smoothing=(0.0, 0.1), reduction=("mean", "sum", "none"),
    )  # fmt: skip
    if rng.random() < 0.5:
        sizes["M"] = sizes.setdefault("N", rng.choice(SIZES))
    if rng.random() < 0.3:
        options["bank"] = [_tensor(rng, sizes, "K D", dtype) for _ in range(rng.randint(0, 2))]
    if rng.random() < 0.2:
        options["target"] = _labels(rng, sizes, "N", sizes.get("M", 1))
    scale = rng.choice(NUMBERS) if rng.random() < 0.1 else rng.choice([1.0, 14.3, torch.tensor(3.0)])
    return (_tensor(rng, sizes, "N D", dtype), _tensor(rng, sizes, "M D", dtype), scale), options


def _supcon(rng: random.Random, sizes: dict[str, int], dtype: torch.dtype) -> tuple[tuple, dict[str, Any]]:
    options = _options(rng, normalize=BOTH, reduction=("mean", "mean_nonzero", "sum", "none"))
    if rng.random() < 0.3:
        options |= {
            "ref_features": _tensor(rng, sizes, "R D", dtype),
            "ref_labels": _labels(rng, sizes, "R", 4),
        }
    scale = rng.choice(NUMBERS) if rng.random() < 0.1 else 5.0
    return (_tensor(rng, sizes, "N D", dtype), _labels(rng, sizes, "N", 4), scale), options


def _sigmoid_contrastive(
    rng: random.Random, sizes: dict[str, int], dtype: torch.dtype
) -> tuple[tuple, dict[str, Any]]:
    options = _options(rng, normalize=BOTH, reduction=("mean", "sum", "none"))
    if rng.random() < 0.4:
        options |= {"query_ids": _labels(rng, sizes, "N", 4), "key_ids": _labels(rng, sizes, "M", 4)}
    scale = rng.choice(NUMBERS) if rng.random() < 0.1 else rng.choice([10.0, torch.tensor(3.0)])
    bias = rng.choice(NUMBERS) if rng.random() < 0.1 else rng.choice([-10.0, torch.tensor(3.0)])
    return (_tensor(rng, sizes, "N D", dtype), _tensor(rng, sizes, "M D", dtype), scale, bias), options


def _kmeans(rng: random.Random, sizes: dict[str, int], dtype: torch.dtype) -> tuple[tuple, dict[str, Any]]:
    shape = rng.choice(["N D", "B D H W"])
    options = _options(rng, metric=("l2", "cosine"), normalize=BOTH)
    return (_tensor(rng, sizes, shape, dtype), _tensor(rng, sizes, "K D", dtype)), options


def _correlation(
    rng: random.Random, sizes: dict[str, int], dtype: torch.dtype
) -> tuple[tuple, dict[str, Any]]:
    shape = rng.choice(["B C H W", "B C T H W"])
    options = _options(rng, levels=(1, 2, 3), norm=("cosine", "softmax", "none"))
    return (_tensor(rng, sizes, shape, dtype), _tensor(rng, sizes, "B C", dtype)), options


def _attention(rng: random.Random, sizes: dict[str, int], dtype: torch.dtype) -> tuple[tuple, dict[str, Any]]:
    tensors = tuple(_tensor(rng, sizes, shape, dtype) for shape in ("B N D", "B M D", "B M E"))
    return tensors, _options(rng, scale=(1.0, 0.3))


def _channel_gate(
    rng: random.Random, sizes: dict[str, int], dtype: torch.dtype
) -> tuple[tuple, dict[str, Any]]:
    shape = rng.choice(["B C P", "B C H W"])
    options = _options(rng, maximum=BOTH)
    if rng.random() < 0.4:
        options["residual"] = _tensor(rng, sizes, shape, dtype)
    tensors = tuple(_tensor(rng, sizes, letters, dtype) for letters in (shape, "J C", "C J", "J", "C"))
    return tensors, options


def _pool(rng: random.Random, sizes: dict[str, int], dtype: torch.dtype) -> tuple[tuple, dict[str, Any]]:
    return (_tensor(rng, sizes, rng.choice(["B C P", "B C H W"]), dtype),), {}


def _position_gate(
    rng: random.Random, sizes: dict[str, int], dtype: torch.dtype
) -> tuple[tuple, dict[str, Any]]:
    shape = rng.choice(["B C P", "B C H W"])
    sizes["1"] = 1
    options = {"residual": _tensor(rng, sizes, shape, dtype)} if rng.random() < 0.4 else {}
    return (_tensor(rng, sizes, shape, dtype), _tensor(rng, sizes, shape.replace("C", "1"), dtype)), options


def _sparse_code(
    rng: random.Random, sizes: dict[str, int], dtype: torch.dtype
) -> tuple[tuple, dict[str, Any]]:
    arguments = _tensor(rng, sizes, "N C", dtype), _tensor(rng, sizes, "C A", dtype)
    return arguments, _options(rng, steps=(0, 1, 5), lam=(0.0, 0.1), step_size=(0.01,))


def _frames(rng: random.Random, sizes: dict[str, int], dtype: torch.dtype) -> tuple[tuple, dict[str, Any]]:
    sizes |= {"2": 2, "3": 3, "4": 4}
    frames, boxes, jitter = (_tensor(rng, sizes, shape, dtype) for shape in ("B T 3 H W", "B 4", "B 3"))
    if isinstance(frames, Tensor) and frames.dtype == dtype:
        frames = (128 + 40 * frames.float()).nan_to_num(0).clamp(0, 255).byte()
    if isinstance(boxes, Tensor) and boxes.is_floating_point():
        boxes[..., 2:] = boxes[..., 2:].abs() * 10
    options = _options(
        rng, size=(1, 4, 33, (5, 17)), mean=(0.0, 0.45, (0.4, 0.5, 0.6)), std=(1.0, 0.2, (0.2, 0.3, 0.4)),
        channels_last=BOTH, dtype=(torch.float32, torch.bfloat16, torch.float16),
    )  # fmt: skip
    if rng.random() < 0.5:
        floating = isinstance(jitter, Tensor) and jitter.is_floating_point()
        options["jitter"] = jitter.abs() if floating else jitter
    if rng.random() < 0.3:
        extents = _labels(rng, sizes, "B 2", 4)
        options["image_sizes"] = extents.abs() + 1 if isinstance(extents, Tensor) else extents
    return (frames, boxes), {"size": 8} | options


def _cluster_loss(
    rng: random.Random, sizes: dict[str, int], dtype: torch.dtype
) -> tuple[tuple, dict[str, Any]]:
    options = _options(rng, normalize=BOTH, reduction=("mean", "sum", "none"))
    if rng.random() < 0.5:
        options["target"] = _labels(rng, sizes, "N", sizes.get("K", 1))
    return (_tensor(rng, sizes, "N D", dtype), _tensor(rng, sizes, "K D", dtype)), options


def _band_spectrogram(
    rng: random.Random, sizes: dict[str, int], dtype: torch.dtype
) -> tuple[tuple, dict[str, Any]]:
    n_fft = rng.choice([2, 16, 30, 64, 256])
    sizes |= {
        "S": rng.choice([0, 1, 40, 700]),
        "L": rng.choice([1, n_fft // 2 + 1, n_fft]),
        "F": n_fft // 2 + 1,
    }
    kinds = _options(
        rng, ends=("cut", "zeros", "reflected"), preemphasis=(0.0, 0.97), remove_mean=BOTH,
        logarithm=("none", "decibels", "natural"), floor=(0.0, 1e-6),
    )  # fmt: skip
    arguments = tuple(_tensor(rng, sizes, shape, dtype) for shape in ("B S", "L", "K F"))
    return arguments, {"n_fft": n_fft, "hop": rng.choice([1, 7, 100]), **kinds}


def _warp_and_mask(
    rng: random.Random, sizes: dict[str, int], dtype: torch.dtype
) -> tuple[tuple, dict[str, Any]]:
    x = _tensor(rng, sizes, "B F T", dtype)
    hidden = (torch.rand(sizes.get("B", 2), sizes.get(letter, 3)) < 0.3 for letter in "FT")
    return (x, 4 * _tensor(rng, sizes, "B T", dtype), *hidden), {}


MAKERS: dict[str, Callable[..., tuple[tuple, dict[str, Any]]]] = {
    "info_nce": _info_nce,
    "supcon": _supcon,
    "sigmoid_contrastive": _sigmoid_contrastive,
    "kmeans_step": _kmeans,
    "kmeans_assign": _kmeans,
    "pyramid_correlation": _correlation,
    "attention": _attention,
    "channel_gate": _channel_gate,
    "pool_channels": _pool,
    "position_gate": _position_gate,
    "prepare_frames": _frames,
    "sparse_code": _sparse_code,
    "cluster_cross_entropy": _cluster_loss,
    "band_spectrogram": _band_spectrogram,
    "warp_and_mask": _warp_and_mask,
}


def _tensors(answer: Any) -> list[Tensor]:
    return [answer] if isinstance(answer, Tensor) else [part for part in answer if isinstance(part, Tensor)]


def _differ(answer: Tensor, truth: Tensor, dtype: torch.dtype) -> bool:
    if answer.shape != truth.shape or answer.dtype != truth.dtype:
        return True
    if not answer.is_floating_point():
        return False  # labels may differ where distances tie; distances are compared
    coarse = 5e-2 if dtype in (torch.bfloat16, torch.float16) else 2e-3
    finite = truth.isfinite()
    if not answer[finite].isfinite().all() and truth[finite].abs().max() < 1e6:
        return True
    # A number where the truth is NaN would be believed; infinities may be NaN.
    if (truth.isnan() & answer.isfinite()).any():
        return True
    if (answer.isnan() & truth.isfinite() & (truth.abs() < 1e6)).any():
        return True
    a, b = answer[finite].double(), truth[finite].double()
    return bool(a.numel() and b.abs().max() < 1e6 and (a - b).norm() > coarse * (b.norm() + 1))


def _try(name: str, seed: int) -> None:
    rng = random.Random(seed)
    operator, dtype = getattr(ops, name), rng.choice(DTYPES)
    arguments, options = MAKERS[name](rng, {}, dtype)
    known = inspect.signature(operator).parameters
    options = {option: value for option, value in options.items() if option in known}
    read = [
        a for a in arguments[1:] if isinstance(a, Tensor) and a.is_floating_point() and a.device.type == "cpu"
    ]
    if any(bool(tensor.isinf().any()) for tensor in read):
        return  # 0 times infinity: NaN or not is the order of the operations
    answer = operator(*arguments, **options)
    truth = operator(*arguments, **options, impl="reference")
    if any(tensor.device.type == "meta" for tensor in _tensors(answer)):
        return
    pairs = list(zip(_tensors(answer), _tensors(truth), strict=True))
    if name == "kmeans_step":
        pairs = pairs[3:]  # sums follow labels, which may differ where distances tie
    if options.get("reduction") == "mean_nonzero":
        pairs = []  # a loss just above 0 is 0 in the reference, and not counted
    for one, other in pairs:
        if _differ(one, other, dtype):
            shapes = [getattr(argument, "shape", argument) for argument in arguments]
            raise Wrong(f"{name} {shapes} {dtype} {options}: {one} against {other}")


def _attempt(name: str) -> Callable[[int], None]:
    return lambda seed: _try(name, seed)


#: Tries by name, as functions of a seed; they raise the operator's error, or Wrong.
OPERATORS: dict[str, Callable[[int], None]] = {name: _attempt(name) for name in MAKERS}
