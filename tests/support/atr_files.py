"""A few pictures in ATR's layout: three flat regions of noisy colours, and the indexed masks of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

#: Label numbers of ATR in the picture's regions: background, upper clothes, pants.
REGIONS = (0, 4, 6)


def write_pictures(root: Path, pictures: dict[str, int], size: int = 40) -> Path:
    """``pictures``: how many of each split. Every picture is a square above a square on its own background."""
    rng = np.random.default_rng(0)
    base = root / "humanparsing"
    for folder in ("JPEGImages", "SegmentationClassAug"):
        (base / folder).mkdir(parents=True)
    number = 0
    for split, count in pictures.items():
        names = []
        for _ in range(count):
            mask = np.zeros((size, size), np.uint8)
            left, top = rng.integers(4, 16, 2)
            mask[top : top + 10, left : left + 18] = 1
            mask[top + 10 : top + 22, left : left + 18] = 2
            colours = np.array([[60, 60, 60], [200, 60, 40], [40, 60, 200]]) + rng.integers(-20, 20, (3, 3))
            pixels = colours[mask] + rng.integers(-12, 12, (size, size, 3))
            names.append(f"{number}_1")
            Image.fromarray(pixels.astype(np.uint8)).save(
                base / "JPEGImages" / f"{names[-1]}.jpg", quality=92
            )
            indexed = Image.fromarray(np.array(REGIONS, np.uint8)[mask], mode="P")
            indexed.putpalette([v for i in range(18) for v in (10 * i, 255 - 10 * i, 128)])
            indexed.save(base / "SegmentationClassAug" / f"{names[-1]}.png")
            number += 1
        (root / f"{split}_id.txt").write_text("\n".join(names) + "\n")
    return root
