"""The numbers of a sound localiser's training in two presets: LVS's, and one for two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cmx_fast.models.presets import Presets, require


@dataclass(frozen=True)
class LocaliserRecipe(Presets):
    """Everything that decides what ``cmx train localiser`` computes. [P]: LVS's paper; [R]: its code. [O]: ours."""

    DEMO: ClassVar[dict[str, object]] = {
        "size": 64,
        "seconds": 3.0,
        "moments": 4,
        "cache": True,
        "width": 16,
        "lr": 1e-3,
        "batch": 32,
        "epochs": 20,
    }

    size: int = 224  # [R] pixels
    seconds: float = 10.0  # [R] of sound
    moments: int = 1  # [R] the middle frame of each video; more: one of them at random [O]
    cache: bool = False  # [O] keep all pictures and sounds in memory
    backend: str = "auto"  # [O] what decodes; "dali": on the GPU if there is one, or "pyav", "torchcodec"

    width: int = 64  # [R] channels of the first stage of both ResNet-18
    positive: float = 0.65  # [R] where a cosine counts as the sounding object ...
    negative: float = 0.4  # [R] ... and below which as background
    softness: float = 0.03  # [R] of both thresholds
    temperature: float = 0.07  # [R]

    lr: float = 1e-4  # [P] of Adam
    weight_decay: float = 1e-4  # [O]
    batch: int = 256  # [P]
    epochs: int = 80  # [O]

    def __post_init__(self) -> None:
        require(self.size >= 32, self, "size", "at least 32")
        require(self.seconds >= 0.1, self, "seconds", "at least 0.1")
        require(self.width >= 8, self, "width", "at least 8")
        require(self.negative <= self.positive, self, "negative", f"at most positive = {self.positive}")
        for name in ("softness", "temperature"):
            require(getattr(self, name) > 0, self, name, "above 0")
        for name in ("moments", "epochs"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        require(self.batch >= 2, self, "batch", "at least 2 (negatives)")
