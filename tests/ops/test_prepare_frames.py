"""``prepare_frames`` against its reference in float64, torchvision, and the contract of every operator."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from operator_contract import FLOOR, vector_error

from cmx_fast.ops import prepare_frames

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.cmx_fast, "prepare_frames"),
    reason="the C++ extension is not built (CMX_NO_EXTENSION)",
)

COLOURS = {"mean": (0.4, 0.45, 0.5), "std": (0.2, 0.225, 0.25)}
# Frames (B, T, h, w) and views: tables of shuffles that reach and that don't, tails of vectors, single pixels (of
# enough clips that luck in rounding evens out).
SHAPES = [
    ((90, 1, 1, 1), 1),
    ((90, 1, 1, 1), (3, 5)),
    ((20, 2, 7, 1), (4, 3)),
    ((1, 2, 3, 2), (8, 9)),
    ((3, 2, 40, 60), 33),
    ((2, 3, 90, 213), (128, 112)),
    ((2, 1, 341, 256), (17, 300)),
    ((1, 1, 4096, 16), (60, 16)),
    ((1, 1, 16, 4096), (16, 60)),
    ((1, 1, 70, 800), (3, 100)),
]


def clips(b, t, h, w, least=0.3):
    """Frames, boxes inside them, the clips' sizes, which are flipped, and factors of their colours."""
    frames = torch.randint(256, (b, t, 3, h, w), dtype=torch.uint8)
    sides = torch.tensor([w, h]) * (least + (1 - least) * torch.rand(b, 2))
    boxes = torch.cat([torch.rand(b, 2) * (torch.tensor([w, h]) - sides), sides], 1)
    image_sizes = torch.stack([torch.randint((end + 1) // 2, end + 1, (b,)) for end in (h, w)], 1)
    return frames, boxes, image_sizes, torch.arange(b) % 2 == 0, 0.6 + 0.8 * torch.rand(b, 3)


def assert_as_exact_as_eager(frames, boxes, dtype=torch.float32, **options):
    """Of at most 1.5 times eager's error against float64, or nearer than the result's own rounding."""
    truth, eager = (
        prepare_frames(frames, boxes, dtype=of, impl="reference", **options) for of in (torch.float64, dtype)
    )
    actual = prepare_frames(frames, boxes, dtype=dtype, impl="cpp", **options)
    lies = torch.channels_last_3d if options.get("channels_last") else torch.contiguous_format
    assert actual.dtype == dtype and actual.shape == truth.shape and actual.is_contiguous(memory_format=lies)
    assert vector_error(actual, truth) <= 1.5 * max(vector_error(eager, truth), FLOOR[dtype])
    return actual


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_error_is_at_most_eagers(shape, size, dtype):
    frames, boxes, image_sizes, flip, jitter = clips(*shape)
    for channels_last in (False, True):
        assert_as_exact_as_eager(
            frames, boxes, dtype, size=size, image_sizes=image_sizes, flip=flip, channels_last=channels_last
        )
        assert_as_exact_as_eager(
            frames, boxes, dtype, size=size, jitter=jitter, channels_last=channels_last, **COLOURS
        )


def test_it_is_interpolate_of_what_is_cut_out():
    frames = clips(2, 3, 40, 60)[0]
    boxes = torch.tensor([[20.0, 3.0, 36.0, 30.0], [0.0, 0.0, 60.0, 40.0]])
    actual = prepare_frames(frames, boxes, size=(15, 20))
    for clip, own, (left, top, width, height) in zip(actual, frames, boxes.int().tolist(), strict=True):
        cut = own[..., top : top + height, left : left + width].float()
        expected = F.interpolate(cut, (15, 20), mode="bilinear").transpose(0, 1) / 255
        torch.testing.assert_close(clip, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("jittered", [False, True])
def test_it_is_torchvision(jittered):
    tv = pytest.importorskip("torchvision.transforms.v2.functional", reason="needs the train extra")
    frames, _, _, flip, jitter = clips(3, 2, 90, 120)
    boxes = torch.tensor([[10.0, 20.0, 64.0, 64.0], [0.0, 0.0, 120.0, 90.0], [50.0, 1.0, 70.0, 88.0]])
    actual = prepare_frames(frames, boxes, size=48, flip=flip, jitter=jitter if jittered else None, **COLOURS)
    for row, (left, top, width, height) in enumerate(boxes.int().tolist()):
        # uint8 rounds once resized, and after each change of colours.
        for exact in (True, False):
            x = tv.to_dtype(frames[row], torch.float32, scale=True) if exact else frames[row]
            x = tv.resized_crop(x, top, left, height, width, [48, 48], antialias=False)
            if flip[row]:
                x = tv.horizontal_flip(x)
            if jittered:
                brightness, contrast, saturation = jitter[row].tolist()
                x = tv.adjust_contrast(tv.adjust_brightness(x, brightness), contrast)
                x = tv.adjust_saturation(x, saturation)
            x = tv.normalize(tv.to_dtype(x, torch.float32, scale=True), *map(list, COLOURS.values()))
            levels = (
                (actual[row].transpose(0, 1) - x).abs() * 255 * torch.tensor(COLOURS["std"])[:, None, None]
            )
            assert levels.max() < (0.01 if exact else 8 if jittered else 1.01)


@pytest.mark.parametrize("rubbish", [0, 255, None])
def test_what_lies_beyond_a_clip_is_never_seen(rubbish):
    frames, boxes, image_sizes, flip, jitter = clips(4, 2, 30, 90)
    spoilt = torch.randint(256, frames.shape, dtype=torch.uint8) if rubbish is None else frames * 0 + rubbish
    for frame, own, (height, width) in zip(spoilt, frames, image_sizes.tolist(), strict=True):
        frame[..., :height, :width] = own[..., :height, :width]
    boxes[0] = torch.tensor([-5.0, -3.0, 200.0, 100.0])  # beyond the frames
    for impl in ("cpp", "reference"):
        options = {"size": 40, "image_sizes": image_sizes, "flip": flip, "jitter": jitter, "impl": impl}
        actual, expected = (prepare_frames(x, boxes, **options) for x in (spoilt, frames))
        # grid_sample's positions round: a hair of what lies beyond may weigh in.
        torch.testing.assert_close(actual, expected, atol=0 if impl == "cpp" else 1e-5, rtol=0)


def test_boxes_at_borders_and_beyond():
    frames = clips(5, 1, 33, 47)[0]
    boxes = [[0, 0, 10, 10], [37, 23, 10, 10], [0, 0, 47, 33], [-20, -20, 10, 10], [40, 30, 90, 90]]
    actual = assert_as_exact_as_eager(frames, torch.tensor(boxes).float(), size=21)
    torch.testing.assert_close(
        actual[3], (frames[3, :, :, 0, 0].T / 255)[..., None, None].expand_as(actual[3])
    )


def test_flip_turns_left_to_right():
    frames, boxes, *_ = clips(2, 2, 40, 50)
    plain, turned = (
        prepare_frames(frames, boxes, size=(20, 27), flip=torch.full((2,), flag)) for flag in (False, True)
    )
    torch.testing.assert_close(turned, plain.flip(4), atol=1e-5, rtol=0)
    assert plain.equal(prepare_frames(frames, boxes, size=(20, 27)))


def test_every_frame_has_its_own_contrast():
    frames, boxes, _, _, jitter = clips(2, 3, 30, 30)
    together = prepare_frames(frames, boxes, size=16, jitter=jitter)
    for t in range(3):
        alone = prepare_frames(frames[:, t : t + 1], boxes, size=16, jitter=jitter)
        assert together[:, :, t : t + 1].equal(alone)


@pytest.mark.parametrize("dims", [(0, 1, 2, 3, 4), (1, 0, 2, 4, 3), (3, 4, 0, 1, 2)])
def test_any_strides(dims):
    frames, boxes, image_sizes, flip, jitter = clips(3, 2, 41, 70)
    lying = frames.permute(dims).contiguous().permute([dims.index(i) for i in range(5)])
    options = {"size": 24, "image_sizes": image_sizes, "flip": flip, "jitter": jitter}
    assert prepare_frames(lying, boxes, **options).equal(prepare_frames(frames, boxes, **options))
    wider = torch.cat([frames, frames], 4)[..., :70]
    apart = torch.stack([boxes, boxes], 2)[..., 0]
    assert prepare_frames(wider, apart, **options).equal(prepare_frames(frames, boxes, **options))
    same = frames[:, :1].expand(-1, 4, -1, -1, -1)
    actual = prepare_frames(same, boxes, size=24)
    assert actual[:, :, 3].equal(actual[:, :, 0])


def test_channels_last_is_the_same_numbers():
    frames, boxes, _, _, jitter = clips(2, 3, 40, 50)
    for dtype in (torch.float32, torch.bfloat16):
        options = {"size": (13, 21), "jitter": jitter, "dtype": dtype}
        actual = prepare_frames(frames, boxes, channels_last=True, **options)
        assert actual.is_contiguous(memory_format=torch.channels_last_3d)
        assert actual.equal(prepare_frames(frames, boxes, **options))


@pytest.mark.parametrize(("b", "t"), [(0, 2), (2, 0)])
def test_empty_sizes(b, t):
    frames, boxes, image_sizes, flip, jitter = clips(b, t, 8, 9)
    for impl in ("cpp", "reference"):
        actual = prepare_frames(
            frames, boxes, size=5, image_sizes=image_sizes, flip=flip, jitter=jitter, impl=impl
        )
        assert actual.shape == (b, 3, t, 5, 5)


def test_same_bits_on_any_number_of_threads():
    frames, boxes, image_sizes, flip, jitter = clips(4, 3, 60, 90)
    options = {"size": 50, "image_sizes": image_sizes, "flip": flip, "jitter": jitter}
    first = prepare_frames(frames, boxes, **options)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert prepare_frames(frames, boxes, **options).equal(first)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(dtype, channels_last):
    frames, boxes, image_sizes, flip, jitter = clips(2, 2, 9, 11)
    rest = ([5, 6], [0.4] * 3, [0.2] * 3, dtype, channels_last)
    operator = torch.ops.cmx_fast.prepare_frames
    torch.library.opcheck(operator, (frames, boxes, image_sizes.int(), flip, jitter, *rest))
    torch.library.opcheck(operator, (frames, boxes, None, None, None, *rest))


def test_compiles_without_a_graph_break():
    frames, boxes, image_sizes, flip, jitter = clips(2, 2, 20, 30)

    def both(frames, boxes, jitter):
        options = {"size": 12, "image_sizes": image_sizes, "flip": flip, "channels_last": True}
        return prepare_frames(frames, boxes + 1, jitter=jitter, **options) * 2

    compiled = torch.compile(both, fullgraph=True)
    torch.testing.assert_close(compiled(frames, boxes, jitter), both(frames, boxes, jitter))


FRAMES, BOXES = torch.zeros(2, 1, 3, 8, 9, dtype=torch.uint8), torch.tensor([[0.0, 0.0, 9.0, 8.0]] * 2)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"frames": FRAMES.float()}, TypeError, "frames must be a uint8 tensor .*, got torch.float32"),
        ({"frames": 3}, TypeError, "frames must be a uint8 tensor .*, got int"),
        ({"frames": FRAMES[0]}, ValueError, r"frames must have shape \(B, T, 3, h, w\) with pixels"),
        ({"frames": FRAMES[..., :0]}, ValueError, r"with pixels, got \(2, 1, 3, 8, 0\)"),
        ({"boxes": None}, TypeError, r"boxes must be a tensor of shape \(B, 4\), got NoneType"),
        ({"boxes": BOXES.int()}, TypeError, "boxes must be float32"),
        ({"boxes": BOXES[:1]}, ValueError, r"boxes must have shape \(2, 4\), got \(1, 4\)"),
        ({"boxes": BOXES.to("meta")}, ValueError, "boxes is on meta but frames is on cpu"),
        ({"boxes": BOXES.clone().requires_grad_()}, ValueError, r"use boxes.detach\(\)"),
        ({"boxes": BOXES * float("inf")}, ValueError, "boxes must be finite with positive"),
        ({"boxes": -BOXES}, ValueError, r"positive width and height, got \[-0.0, -0.0, -9.0, -8.0\]"),
        ({"size": 0}, ValueError, "size must be at least 1 pixel, got 0"),
        ({"size": 2.5}, TypeError, "size must be an integer or two"),
        ({"size": (1, 2, 3)}, TypeError, "size must be an integer or two"),
        ({"image_sizes": BOXES[:, :2]}, TypeError, r"a tensor of integers .*; use image_sizes.int\(\)"),
        ({"image_sizes": torch.ones(2, 3).int()}, ValueError, r"image_sizes must have shape \(2, 2\), got \(2, 3\)"),
        ({"image_sizes": torch.tensor([[8, 9], [9, 9]])}, ValueError, r"to the frames' \(8, 9\), got \(9, 9\)"),
        ({"flip": torch.ones(2)}, TypeError, "flip must be a bool tensor .*, got torch.float32"),
        ({"flip": torch.ones(3).bool()}, ValueError, r"flip must have shape \(2,\), got \(3,\)"),
        ({"jitter": torch.ones(2, 4)}, ValueError, r"jitter must have shape \(2, 3\), got \(2, 4\)"),
        ({"jitter": -torch.ones(2, 3)}, ValueError, "jitter must be finite and at least 0"),
        ({"mean": "x"}, TypeError, "mean must be a number or three, got 'x'"),
        ({"mean": (1.0, 2.0)}, ValueError, "mean must be one finite number or three"),
        ({"std": 0}, ValueError, "std must not be 0, got 0"),
        ({"dtype": torch.int8}, TypeError, "dtype must be torch.float32, .* got torch.int8"),
        ({"dtype": torch.float64}, TypeError, "torch.float64 with impl='reference'"),
        ({"channels_last": 1}, TypeError, "channels_last must be True or False"),
        ({"impl": "triton"}, ValueError, "prepare_frames: impl='triton' can't run here"),
    ],
)  # fmt: skip
def test_refuses(changed, error, message):
    arguments = {"frames": FRAMES, "boxes": BOXES, "size": 4} | changed
    with pytest.raises(error, match=message):
        prepare_frames(arguments.pop("frames"), arguments.pop("boxes"), **arguments)
