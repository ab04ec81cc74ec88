"""Pictures as cameras and programs write them: every reader gives the same pixels, upright, or names the file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from atr_files import write_pictures
from PIL import Image, ImageOps

from cmx_fast.data.media.decode import unavailable
from cmx_fast.data.media.files import BrokenFileError, picture_problem, read_picture, stretched
from cmx_fast.data.media.picture_formats import cut_short
from cmx_fast.data.sets.atr import ATR, load_merge
from cmx_fast.systems.c2l.data import Pictures

DALI = pytest.mark.skipif(unavailable("dali") is not None, reason="needs the dali extra")
ORIENTATION = 0x0112
SUFFIXES = ("jpg", "png", "webp", "tif")


def clouds(width: int = 75, height: int = 45) -> Image.Image:
    cells = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def told(number: object) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = number
    return exif


def png16(pixels: np.ndarray, kind: int) -> bytes:
    """A PNG of 16 bits: Pillow writes none but grey."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write_formats(folder: Path) -> dict[str, tuple[Path, np.ndarray]]:
    """Write a file of each kind; returns its path, and its RGB as exactly as can be known beforehand."""
    base, other = clouds(), Image.new("RGB", (75, 45))
    colour, grey = np.asarray(base), np.asarray(base.convert("L"))
    as_rgb = np.repeat(grey[..., None], 3, 2)
    deep = grey.astype(np.uint16) * 256 + 77
    files: dict[str, tuple[Path, np.ndarray]] = {}

    def add(name: str, content: Image.Image | bytes, expected: np.ndarray | None = None, **options: object):
        path = folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path, **options)
        if expected is None:
            with Image.open(path) as image:
                expected = np.asarray(image.convert("RGB"))
        files[name] = path, expected

    several = {"save_all": True, "append_images": [other]}
    add("grey of 16 bits.png", Image.fromarray(deep), as_rgb)
    add("grey of 16 bits.tif", Image.fromarray(deep), as_rgb)
    add("colour of 16 bits.png", png16(colour.astype(np.uint16) * 256 + 77, 2), colour)
    add("grey and alpha of 16 bits.png", png16(np.stack([deep, deep], -1), 4), as_rgb)
    add("grey and alpha.png", base.convert("LA"), as_rgb)
    add("alpha.png", Image.fromarray(np.dstack([colour, grey])), colour)
    add("palette.png", base.convert("P"), np.asarray(base.convert("P").convert("RGB")))
    add("clear palette.png", base.convert("P"), np.asarray(base.convert("P").convert("RGB")), transparency=3)
    add("one bit.png", base.convert("1"), np.asarray(base.convert("1").convert("RGB")))
    add("profile.png", base, colour, icc_profile=b"not sRGB" * 20)
    add("moving.png", base, colour, **several)
    add("moving.gif", base, **several)
    add("moving.webp", base, colour, lossless=True, **several)
    add("progressive.jpg", base, progressive=True)
    add("grey.jpg", base.convert("L"))
    add("cmyk.jpg", base.convert("CMYK"))
    add("several.jpg", base, format="MPO", **several)
    content = bytearray((folder / "cmyk.jpg").read_bytes())
    content[content.index(b"Adobe") + 11] = 2
    add("ycck.jpg", bytes(content))
    add("cmyk.tif", base.convert("CMYK"))
    add("lab.tif", base.convert("LAB"))
    add("plain.bmp", base, colour)
    for suffix in SUFFIXES:
        for number in range(1, 9):
            options = {"lossless": True} if suffix == "webp" else {}
            base.save(path := folder / f"{number}.{suffix}", exif=told(number), **options)
            with Image.open(path) as image:
                upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            files[path.name] = path, upright
    return files


NAMES = [
    "grey of 16 bits.png", "grey of 16 bits.tif", "colour of 16 bits.png", "grey and alpha of 16 bits.png",
    "grey and alpha.png", "alpha.png", "palette.png", "clear palette.png", "one bit.png", "profile.png", "moving.png",
    "moving.gif", "moving.webp", "progressive.jpg", "grey.jpg", "cmyk.jpg", "several.jpg", "ycck.jpg", "cmyk.tif",
    "lab.tif", "plain.bmp", *(f"{number}.{suffix}" for suffix in SUFFIXES for number in range(1, 9)),
]  # fmt: skip


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    return write_formats(tmp_path_factory.mktemp("formats"))


def planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.tensor(pixels).permute(2, 0, 1)


def test_the_names_are_all(formats):
    assert sorted(NAMES) == sorted(formats)


@pytest.mark.parametrize("name", NAMES)
def test_pillows_pixels(formats, name):
    path, expected = formats[name]
    assert picture_problem(path) is None
    assert torch.equal(stretched(path, lambda _, width, height: (width, height)), planes(expected))
    assert read_picture(path, 45, shorter=45).shape == (3, 45, 45)


@DALI
@pytest.mark.parametrize("name", NAMES)
def test_dalis_pixels(formats, name):
    from cmx_fast.data.media import decode_dali_files

    path, expected = formats[name]
    short = min(expected.shape[:2])
    (picture,) = decode_dali_files.read_pictures([path], short, shorter=short)
    pillows = read_picture(path, short, shorter=short)
    assert (picture.cpu().int() - pillows.int()).abs().max() <= 1


@pytest.mark.parametrize("number", range(1, 9))
def test_a_resized_picture_is_turned_too(formats, tmp_path, number):
    """Larger pictures take the way by a JPEG's half size."""
    big, path = clouds(600, 360), tmp_path / "big.jpg"
    big.save(path, exif=told(number), quality=95)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
    upright.save(tmp_path / "upright.png")
    expected, actual = read_picture(tmp_path / "upright.png", 64), read_picture(path, 64)
    assert (expected.float() - actual.float()).abs().mean() < 2


@pytest.mark.parametrize("content", [b"", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\xff\xff\xff\xff", b"rubbish"])
def test_damaged_exif_does_not_damage_the_picture(tmp_path, content):
    clouds().save(tmp_path / "a.jpg", exif=b"Exif\0\0" + content)
    clouds().save(tmp_path / "b.jpg")
    assert torch.equal(*(read_picture(tmp_path / name, 32) for name in ("a.jpg", "b.jpg")))


@pytest.mark.parametrize("exif", [{}, {"exif": told(6)}])
def test_damaged_pixels_of_a_png_are_named_and_not_blank(tmp_path, exif):
    path = tmp_path / "a.png"
    clouds().save(path, **exif)
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT") + 4
    content[start : start + 100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(BrokenFileError, match=r"a.png: can't be decoded"):
        read_picture(path, 32)


@pytest.mark.parametrize("number", [0, 9, 65535])
def test_an_orientation_that_is_none_is_upright(tmp_path, number):
    clouds().save(tmp_path / "a.png", exif=told(number))
    assert torch.equal(stretched(tmp_path / "a.png", lambda _, w, h: (w, h)), planes(np.asarray(clouds())))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused_by_name(tmp_path, dtype):
    path = tmp_path / "deep.tif"
    Image.fromarray(np.ones((8, 8), dtype)).save(path)
    with pytest.raises(BrokenFileError, match=r"deep.tif: .*32 bits.*store it with 8 or 16 bits"):
        read_picture(path, 8)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("behind", [1, 1023, 1024, 5000])
def test_bytes_behind_the_end_are_no_truncation(tmp_path, suffix, behind):
    path = tmp_path / f"a.{suffix}"
    exif = told(6)
    clouds(300, 200).save(path, exif=exif)
    whole = path.read_bytes()
    expected = read_picture(path, 64)
    path.write_bytes(whole + b"\x12" * behind)
    assert picture_problem(path) is None and torch.equal(read_picture(path, 64), expected)
    path.write_bytes(whole[: len(whole) // 2])
    assert picture_problem(path) == "truncated"


def test_a_thumbnails_end_is_not_the_pictures(tmp_path):
    """A camera's EXIF holds a whole JPEG, with an end of its own."""
    clouds(30, 20).save(tmp_path / "small.jpg")
    small = (tmp_path / "small.jpg").read_bytes()
    clouds(300, 200).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    segment = b"\xff\xe1" + struct.pack(">H", len(small) + 8) + b"Exif\0\0" + small
    path = tmp_path / "b.jpg"
    for content, cut in ((whole, False), (whole[: len(whole) // 2], True)):
        path.write_bytes(whole[:2] + segment + content[2:] + (b"" if cut else bytes(2000)))
        assert cut_short(path, "JPEG") is cut


def spoilt(root: Path, number: int, *, picture: bool, mask: bool) -> str:
    """Have the first picture of training stored so that it (and the mask) has to be turned; its name."""
    name = (root / "train_id.txt").read_text().split()[0]
    folder = root / "humanparsing"
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[number]  # the transposition that undoes it
    for path, tag in (
        (folder / "JPEGImages" / f"{name}.jpg", picture),
        (folder / "SegmentationClassAug" / f"{name}.png", mask),
    ):
        with Image.open(path) as opened:
            opened.load()
            image = opened.crop((0, 0, 40, 30))
        image = image if back is None else image.transpose(Image.Transpose(back))
        image.save(
            path,
            **({"exif": told(number)} if tag else {}),
            **({"quality": 98} if tag and path.suffix == ".jpg" else {}),
        )
    return name


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("own", [False, True])
def test_a_mask_is_turned_with_its_picture(tmp_path, number, own):
    sets = []
    for folder, turn in (("plain", 1), ("turned", number)):
        root = write_pictures(tmp_path / folder, {"train": 2, "val": 1, "test": 1}, size=40)
        spoilt(root, turn, picture=True, mask=own)
        sets.append(ATR(root, "train", size=24))
    plain, turned = (pictures[0] for pictures in sets)
    assert torch.equal(plain["mask"], turned["mask"])
    assert (plain["image"].float() - turned["image"].float()).abs().mean() < 6
    (_, images), *_ = Pictures(sets[1]).in_order()
    assert torch.equal(images[0] * 255, turned["image"].float())


def test_a_mask_drawn_on_the_upright_picture_stays(tmp_path):
    root = write_pictures(tmp_path / "atr", {"train": 2, "val": 1, "test": 1}, size=40)
    name = spoilt(root, 6, picture=True, mask=False)
    path = root / "humanparsing" / "SegmentationClassAug" / f"{name}.png"
    with Image.open(path) as stored:
        stored.transpose(Image.Transpose.ROTATE_270).save(path)
    reference = write_pictures(tmp_path / "plain", {"train": 2, "val": 1, "test": 1}, size=40)
    spoilt(reference, 1, picture=True, mask=False)
    assert torch.equal(ATR(root, "train", size=24)[0]["mask"], ATR(reference, "train", size=24)[0]["mask"])


def test_a_mask_in_grey_or_one_bit_holds_labels_and_one_in_colours_none(tmp_path):
    root = write_pictures(tmp_path / "atr", {"train": 2, "val": 1, "test": 1}, size=40)
    name = (root / "train_id.txt").read_text().split()[0]
    path = root / "humanparsing" / "SegmentationClassAug" / f"{name}.png"
    expected = ATR(root, "train", size=40)[0]["mask"]
    indices = np.asarray(Image.open(path))
    for stored in (indices, indices.astype(np.uint16)):
        Image.fromarray(stored).save(path)
        assert torch.equal(ATR(root, "train", size=40)[0]["mask"], expected)
    Image.fromarray(indices > 0).save(path)
    hat = load_merge()["upper body"].count(1)  # the label of one bit
    assert torch.equal(ATR(root, "train", size=40)[0]["mask"], hat * torch.tensor(indices > 0).long())
    Image.fromarray(indices, "L").convert("RGB").save(path)
    with pytest.raises(ValueError, match=rf"{name}.png can't be read as an image: holds colours \(RGB\)"):
        ATR(root, "train", size=40)


def test_a_reports_picture_is_upright(tmp_path):
    pytest.importorskip("matplotlib")
    import base64
    import io

    from cmx_fast.evaluate.figures import picture

    clouds().save(tmp_path / "a.png", exif=told(6))
    shown = Image.open(io.BytesIO(base64.b64decode(picture(tmp_path / "a.png", 45).split(",")[1])))
    upright = np.asarray(clouds().transpose(Image.Transpose.ROTATE_270).crop((0, 15, 45, 60))).astype(float)
    assert np.abs(np.asarray(shown).astype(float) - upright).mean() < 6
