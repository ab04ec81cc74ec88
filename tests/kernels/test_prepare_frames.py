"""The launcher of the frames' preparation against float64 truth."""

from __future__ import annotations

import pytest
import torch

from cmx_fast import reference

pytest.importorskip("triton")
from cmx_fast.kernels.prepare_frames import prepare_frames

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
MEAN, STD = [0.4, 0.45, 0.5], [0.2, 0.225, 0.25]


def inputs(b, t, h, w):
    sides = torch.tensor([w, h]) * (0.4 + 0.5 * torch.rand(b, 2))
    windows = torch.cat([torch.rand(b, 2) * (torch.tensor([w, h]) - sides), sides], 1)
    sizes = torch.stack([torch.randint(1, end + 1, (b,)) for end in (h, w)], 1).int()
    frames = torch.randint(256, (b, t, 3, h, w), dtype=torch.uint8)
    return frames, windows, sizes, torch.arange(b) % 2 == 0, 0.6 + 0.8 * torch.rand(b, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "size"), [((2, 2, 9, 14), (5, 7)), ((1, 1, 1, 1), (3, 2)), ((3, 1, 40, 31), (70, 66))]
)
@pytest.mark.parametrize("recoloured", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_prepare_frames(device, shape, size, dtype, recoloured, channels_last):
    frames, windows, sizes, mirrored, factors = inputs(*shape)
    for own, turned in ((None, None), (sizes, mirrored)):
        colours = factors if recoloured else None
        truth = reference.prepare_frames(
            frames, windows, size=size, image_sizes=own, flip=turned, jitter=colours, mean=MEAN, std=STD,
            dtype=torch.float64,
        )  # fmt: skip
        on_device = [None if x is None else x.to(device) for x in (frames, windows, own, turned, colours)]
        actual = prepare_frames(*on_device, list(size), MEAN, STD, dtype, channels_last)
        assert actual.dtype == dtype and actual.is_contiguous()
        if channels_last:
            actual = actual.permute(0, 4, 1, 2, 3)
        assert (actual.cpu().double() - truth).norm() <= TOLERANCE[dtype] * truth.norm()


def test_strides(device):
    frames, windows, *_ = inputs(2, 2, 12, 10)
    twisted = frames.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)[..., 2:].to(device)
    rest = (windows.to(device), None, None, None, [6, 5], MEAN, STD, torch.float32, False)
    assert prepare_frames(twisted, *rest).equal(prepare_frames(twisted.contiguous(), *rest))


def test_launches(device, count_launches):
    frames, windows, _, _, factors = (x.to(device) for x in inputs(2, 2, 12, 10))
    for colours, launches in ((None, 1), (factors, 2)):
        with count_launches() as count:
            prepare_frames(frames, windows, None, None, colours, [6, 5], MEAN, STD, torch.float32, False)
        assert count.launches == launches


def test_what_is_not_a_number_is_no_address_and_shows_in_colours(device):
    frames, windows, _, _, factors = (x.to(device) for x in inputs(2, 1, 12, 10))
    windows[0], factors[1] = float("nan"), float("nan")
    actual = prepare_frames(frames, windows, None, None, factors, [6, 5], MEAN, STD, torch.float32, False)
    assert actual[0].isfinite().all() and actual[1].isnan().all()


@pytest.mark.parametrize("shape", [(0, 2), (2, 0)])
def test_empty_sizes(device, shape):
    frames = torch.zeros(*shape, 3, 4, 4, dtype=torch.uint8, device=device)
    windows = torch.ones(shape[0], 4, device=device)
    actual = prepare_frames(frames, windows, None, None, None, [6, 5], MEAN, STD, torch.float32, False)
    assert actual.shape == (shape[0], 3, shape[1], 6, 5)
