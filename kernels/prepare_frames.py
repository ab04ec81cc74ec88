"""Frames to a network's input on the GPU, from one read.

Tile and owner: a program owns COLS pixels of one view, (COLS,), in all three channels, and computes each from four
pixels of its frame, which neighbouring programs find in the cache. Where contrast changes, a kernel before it makes the
same pixels for the views' mean greys: a program owns PART pixels of a view and writes one sum. The second read finds
the frames in the cache.

Why it is right: positions are clamped to the outermost pixel centres before they are addresses, and a NaN becomes 0, so
no read leaves the frame. Interpolation and colours are float32; the parts of a mean are added in one fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.arguments import contiguous, on_own_device
from cmx_fast.kernels.common.grids import ceil_div, next_power_of_2

__all__ = ["prepare_frames"]

COLS = 512  # pixels of a view at a time
PART = 8 * COLS  # pixels of a sum of greys


@triton.jit
def place(start, length, along, end):
    """(COLS,) first pixel, step to the second (0 or 1) and share of the second, at the places ``along`` of a window."""
    # A NaN is 0 and not an address.
    x = tl.minimum(tl.maximum(start + length * along - 0.5, 0.0), end - 1.0)
    first = tl.minimum(x.to(tl.int32), tl.maximum(end - 2, 0))
    return first.to(tl.int64), (end > 1).to(tl.int64), x - first.to(tl.float32)


@triton.jit
def sample(address, step_x, step_y, share_x, share_y, inside):
    """(COLS,) bilinear samples of one channel, in 0 to 255."""
    # (COLS,) each
    a = tl.load(address, mask=inside, other=0).to(tl.float32)
    b = tl.load(address + step_x, mask=inside, other=0).to(tl.float32)
    c = tl.load(address + step_y, mask=inside, other=0).to(tl.float32)
    d = tl.load(address + step_x + step_y, mask=inside, other=0).to(tl.float32)
    upper = a + share_x * (b - a)
    return upper + share_y * (c + share_x * (d - c) - upper)


@triton.jit
def pixels_of(
    frames_ptr,  # uint8, the frame's first
    windows_ptr,  # (B, 4)
    sizes_ptr,  # (B, 2) or None
    mirrored_ptr,  # (B,) or None
    b,
    p,  # (COLS,) of the view, row by row
    h,
    w,
    H,
    W,
    stride_channel,
    stride_row,
    stride_column,
):
    """Red, green and blue (COLS,) in 0 to 255."""
    inside = p < H * W
    high, wide = h, w
    if sizes_ptr is not None:
        high = tl.minimum(tl.maximum(tl.load(sizes_ptr + 2 * b), 1), h)
        wide = tl.minimum(tl.maximum(tl.load(sizes_ptr + 2 * b + 1), 1), w)
    across = ((p % W).to(tl.float32) + 0.5) / W
    if mirrored_ptr is not None:
        across = tl.where(tl.load(mirrored_ptr + b) != 0, 1 - across, across)
    down = ((p // W).to(tl.float32) + 0.5) / H
    window = windows_ptr + 4 * b
    x, step_x, share_x = place(tl.load(window), tl.load(window + 2), across, wide)
    y, step_y, share_y = place(tl.load(window + 1), tl.load(window + 3), down, high)
    address = frames_ptr + y * stride_row + x * stride_column
    step_x, step_y = step_x * stride_column, step_y * stride_row
    red = sample(address, step_x, step_y, share_x, share_y, inside)
    green = sample(address + stride_channel, step_x, step_y, share_x, share_y, inside)
    blue = sample(address + 2 * stride_channel, step_x, step_y, share_x, share_y, inside)
    return red, green, blue


@triton.jit
def unit(v):
    """Clamp to [0, 1]; a NaN stays."""
    return tl.where(v < 0, 0.0, tl.where(v > 1, 1.0, v))


@triton.jit
def luma(red, green, blue):
    """Grey of a colour, by ITU-R BT.601's weights."""
    return 0.299 * red + 0.587 * green + 0.114 * blue


@triton.jit
def prepare_frames_grey_kernel(
    frames_ptr,
    windows_ptr,
    sizes_ptr,
    mirrored_ptr,
    factors_ptr,  # (B, 3)
    grey_ptr,  # out, (B * T, parts): sums of the views' greys
    T,
    h,
    w,
    H,
    W,
    stride_clip,
    stride_frame,
    stride_channel,
    stride_row,
    stride_column,
    COLS: tl.constexpr,
    PART: tl.constexpr,
):
    frame = tl.program_id(0).to(tl.int64)
    b, t = frame // T, frame % T
    gain = tl.load(factors_ptr + 3 * b) / 255
    total = tl.zeros((COLS,), tl.float32)
    for p0 in range(0, PART, COLS):
        p = tl.program_id(1) * PART + p0 + tl.arange(0, COLS)
        red, green, blue = pixels_of(
            frames_ptr + b * stride_clip + t * stride_frame, windows_ptr, sizes_ptr, mirrored_ptr, b, p, h, w, H, W,
            stride_channel, stride_row, stride_column,
        )  # fmt: skip
        total += tl.where(p < H * W, luma(unit(red * gain), unit(green * gain), unit(blue * gain)), 0.0)
    tl.store(grey_ptr + frame * tl.num_programs(1) + tl.program_id(1), tl.sum(total, 0))


@triton.jit
def prepare_frames_view_kernel(
    frames_ptr,
    windows_ptr,
    sizes_ptr,
    mirrored_ptr,
    factors_ptr,  # (B, 3) or None
    grey_ptr,  # (B * T, PARTS), with factors
    out_ptr,  # out, (B, 3, T, H, W), with LAST (B, T, H, W, 3)
    T,
    h,
    w,
    H,
    W,
    stride_clip,
    stride_frame,
    stride_channel,
    stride_row,
    stride_column,
    mean_red,
    mean_green,
    mean_blue,
    scale_red,
    scale_green,
    scale_blue,
    COLS: tl.constexpr,
    PARTS: tl.constexpr,
    LAST: tl.constexpr,
):
    frame = tl.program_id(0).to(tl.int64)
    b, t = frame // T, frame % T
    p = tl.program_id(1) * COLS + tl.arange(0, COLS)
    red, green, blue = pixels_of(
        frames_ptr + b * stride_clip + t * stride_frame, windows_ptr, sizes_ptr, mirrored_ptr, b, p, h, w, H, W,
        stride_channel, stride_row, stride_column,
    )  # fmt: skip
    if factors_ptr is not None:
        gain = tl.load(factors_ptr + 3 * b) / 255
        contrast, saturation = tl.load(factors_ptr + 3 * b + 1), tl.load(factors_ptr + 3 * b + 2)
        mean = tl.sum(tl.load(grey_ptr + frame * PARTS + tl.arange(0, PARTS)), 0) / (H * W)
        red = unit(mean + contrast * (unit(red * gain) - mean))
        green = unit(mean + contrast * (unit(green * gain) - mean))
        blue = unit(mean + contrast * (unit(blue * gain) - mean))
        grey = luma(red, green, blue)
        red = unit(grey + saturation * (red - grey))
        green = unit(grey + saturation * (green - grey))
        blue = unit(grey + saturation * (blue - grey))
    P = H * W
    inside = p < P
    if LAST:
        address, stride_out = out_ptr + (frame * P + p) * 3, 1
    else:
        address, stride_out = out_ptr + (b * 3 * T + t) * P + p, tl.cast(T, tl.int64) * P
    # (COLS,) each
    tl.store(address, (red - mean_red) * scale_red, mask=inside)
    tl.store(address + stride_out, (green - mean_green) * scale_green, mask=inside)
    tl.store(address + 2 * stride_out, (blue - mean_blue) * scale_blue, mask=inside)


@on_own_device
def prepare_frames(
    frames: Tensor,
    windows: Tensor,
    sizes: Tensor | None,
    mirrored: Tensor | None,
    factors: Tensor | None,
    size: list[int],
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """(B, 3, T, H, W) of ``dtype``, with ``channels_last`` (B, T, H, W, 3)."""
    windows, sizes, mirrored, factors = contiguous(windows, sizes, mirrored, factors)
    mirrored = None if mirrored is None else mirrored.view(torch.uint8)
    clips, count, _, *source = frames.shape
    shape = (clips, count, *size, 3) if channels_last else (clips, 3, count, *size)
    out = frames.new_empty(shape, dtype=dtype)
    if not out.numel():
        return out
    pixels = size[0] * size[1]
    parts = next_power_of_2(ceil_div(pixels, PART))
    clip_arguments = (frames, windows, sizes, mirrored, factors)
    layout = (count, *source, *size, *frames.stride())
    grey = None
    if factors is not None:
        grey = factors.new_empty(clips * count, parts)
        prepare_frames_grey_kernel[clips * count, parts](*clip_arguments, grey, *layout, COLS=COLS, PART=PART)
    white = 255 if factors is None else 1  # the last step's input lies in 0 to white
    colours = (*(white * value for value in mean), *(1 / (white * value) for value in std))
    grid = (clips * count, ceil_div(pixels, COLS))
    prepare_frames_view_kernel[grid](
        *clip_arguments, grey, out, *layout, *colours, COLS=COLS, PARTS=parts, LAST=channels_last
    )
    return out
