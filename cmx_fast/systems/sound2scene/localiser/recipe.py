"""The numbers of a sound localiser's training in two presets: LVS's, and one for two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cmx_fast.train.presets import Presets
from cmx_fast.train.settings import Amount, Count, Positive, Range, Several, require


@dataclass(frozen=True)
class LocaliserRecipe(Presets):
    """Every number of ``cmx train localiser``. [P]: LVS's paper; [R]: its code. [O]: ours."""

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

    size: Annotated[int, Range(32)] = 224  # [R] pixels
    seconds: Annotated[float, Range(0.1)] = 10.0  # [R] length of the sound
    moments: Count = 1  # [R] the middle frame of each video; more: one of them at random [O]
    cache: bool = False  # [O] keep all pictures and sounds in memory
    backend: str = "auto"  # [O] the decoder; "dali": on the GPU if there is one, or "pyav", "torchcodec"

    width: Annotated[int, Range(8)] = 64  # [R] channels of the first stage of both ResNet-18
    positive: Annotated[float, Range(-1, 1)] = 0.65  # [R] cosines above it count as the sounding object
    negative: Annotated[float, Range(-1, 1)] = 0.4  # [R] cosines below it count as background
    softness: Positive = 0.03  # [R] of both thresholds
    temperature: Positive = 0.07  # [R]

    lr: Amount = 1e-4  # [P] of Adam
    weight_decay: Amount = 1e-4  # [O]
    batch: Several = 256  # [P]
    epochs: Count = 80  # [O]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.negative <= self.positive, self, "negative", f"at most positive = {self.positive}")
