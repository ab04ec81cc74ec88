"""A few pictures in the layouts of labelled and masked pictures: squares of a class's colour on noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = np.array([[70, 70, 70], [210, 60, 50], [50, 70, 210]])
CLASSES = ("nothing", "red", "blue")


def squares(count: int, size: int = 48) -> Iterator[tuple[Image.Image, np.ndarray, int, tuple[int, ...]]]:
    """Pictures with a red or a blue square: picture, mask of labels, class, and the box."""
    rng = np.random.default_rng(count)
    for number in range(count):
        kind = 1 + number % 2
        left, top = (int(v) for v in rng.integers(2, size // 2 - 2, 2))
        side = size // 2
        mask = np.zeros((size, size), np.uint8)
        mask[top : top + side, left : left + side] = kind
        pixels = COLOURS[mask] + rng.integers(-20, 20, (size, size, 3))
        yield Image.fromarray(pixels.astype(np.uint8)), mask, kind, (left, top, side, side)


def write_masked(root: Path, pictures: dict[str, int]) -> Path:
    """A plain folder of pictures and masks; the last column of every mask does not count."""
    root.mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for split, count in pictures.items():
        for folder in ("pictures", "masks"):
            (root / split / folder).mkdir(parents=True)
        for number, (picture, mask, _, _) in enumerate(squares(count)):
            mask[:, -1] = 255
            picture.save(root / split / "pictures" / f"{number}.jpg", quality=95)
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
    return root


def write_voc(root: Path, pictures: dict[str, int]) -> Path:
    """VOC's segmentation: the squares are bicycles and birds, with a border of 255."""
    lists = root / "ImageSets" / "Segmentation"
    for folder in (lists, root / "JPEGImages", root / "SegmentationClass"):
        folder.mkdir(parents=True)
    for split, count in pictures.items():
        names = []
        for number, (picture, mask, kind, (left, top, side, _)) in enumerate(squares(count)):
            mask[mask > 0] = kind + 1
            mask[top, left : left + side] = 255
            names.append(f"2007_{split}{number:03d}")
            picture.save(root / "JPEGImages" / f"{names[-1]}.jpg", quality=95)
            indexed = Image.fromarray(mask, mode="P")
            indexed.putpalette([v for i in range(256) for v in (i, 255 - i, 128)])
            indexed.save(root / "SegmentationClass" / f"{names[-1]}.png")
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def write_voc_objects(root: Path, pictures: dict[str, int]) -> Path:
    """VOC's detection: every square is a bicycle or a bird; each picture also has a difficult car in a corner."""
    for folder in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (root / folder).mkdir(parents=True)
    for split, count in pictures.items():
        names = []
        for number, (picture, _, kind, (left, top, side, _)) in enumerate(squares(count)):
            names.append(f"2007_{split}{number:03d}")
            picture.save(root / "JPEGImages" / f"{names[-1]}.jpg", quality=95)
            things = [("bicycle" if kind == 1 else "bird", 0, left, top, side), ("car", 1, 0, 0, 4)]
            objects = "".join(
                f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x + 1}</xmin>"
                f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + w}</ymax></bndbox></object>"
                for name, difficult, x, y, w in things
            )
            size = f"<size><width>{picture.width}</width><height>{picture.height}</height></size>"
            (root / "Annotations" / f"{names[-1]}.xml").write_text(
                f"<annotation>{size}{objects}</annotation>"
            )
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def write_classes(root: Path, pictures: dict[str, int]) -> Path:
    """Class folders."""
    for split, count in pictures.items():
        for number, (picture, _, kind, _) in enumerate(squares(count)):
            folder = root / split / CLASSES[kind]
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{number}.jpg", quality=95)
    return root


def write_cub(root: Path, train: int, test: int) -> Path:
    """CUB-200-2011 with two kinds of birds."""
    names = ["001.Red_Bird", "002.Blue_Bird"]
    lines: dict[str, list[str]] = {
        name: [] for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes")
    }
    for number, (picture, _, kind, box) in enumerate(squares(train + test), 1):
        file = f"{names[kind - 1]}/Bird_{number:04d}.jpg"
        path = root / "images" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=95)
        lines["images"].append(f"{number} {file}")
        lines["image_class_labels"].append(f"{number} {kind}")
        lines["train_test_split"].append(f"{number} {int(number <= train)}")
        lines["bounding_boxes"].append(f"{number} " + " ".join(f"{float(v)}" for v in box))
    lines["classes"] = [f"{number} {name}" for number, name in enumerate(names, 1)]
    for name, rows in lines.items():
        (root / f"{name}.txt").write_text("\n".join(rows) + "\n")
    return root
