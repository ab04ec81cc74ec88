"""The numbers of a run of segmentation or classification in two presets: a fine-tuned network, and a fixed one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cmx_fast.train.presets import Presets
from cmx_fast.train.settings import (
    Amount,
    Count,
    Hue,
    OneOf,
    Positive,
    Range,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    require,
)


@dataclass(frozen=True)
class RecognitionRecipe(Presets):
    """Every number of a run, whatever its attention modules.

    The defaults are the "paper" preset. The survey has no numbers of its own: [P] is the paper of the module, [R] its
    authors' code or, where they have none, the common one, [O] ours.
    """

    #: For two CPU cores: the encoder stays as it is, so its maps are computed once and only what follows is trained.
    DEMO: ClassVar[dict[str, object]] = {
        "freeze": True,
        "size": 192,
        "width": 64,
        "epochs": 6,
        "lr": 4e-3,
    }

    # Pictures
    size: Count = 320  # [O] pixels of a side, a multiple of 32
    jitter: Share = (
        0.3  # [O] brightness, contrast and saturation change by up to this share; needs freeze = false
    )
    hue: Hue = 0.1  # [O] of the circle; needs freeze = false
    smallest_crop: ShareAboveZero = 0.5  # [O] of the side, mirrored half of the time; needs freeze = false

    # Networks
    freeze: bool = False  # [O] the encoder stays as it is
    finest: Annotated[int, OneOf(4, 8, 16, 32)] = 8  # [R] stride of the map that is segmented
    width: Count = 128  # [O] channels of the map that the attention sees; the authors' codes have 512
    dropout: ShareBelowOne = 0.1  # [R] before the last layer
    reduction: Count = 16  # [P] of SE and CBAM
    heads: Count = 8  # [P] of multi-head attention
    codewords: Count = 32  # [P] of EncNet
    presence_weight: Amount = 0.2  # [P] of EncNet's SE-loss
    parts: Count = 2  # [O] of FCAN
    part_size: Count = 3  # [O] places a side of a glimpse of FCAN
    part_weight: Amount = 0.1  # [O] of FCAN's REINFORCE
    glimpses: Count = 6  # [R] of recurrent attention
    glimpse_size: Count = 2  # [O] places a side, the finest of two scales
    glimpse_deviation: Positive = 0.05  # [R] of the places drawn, in half sides
    glimpse_weight: Amount = 0.01  # [R] of recurrent attention's REINFORCE
    scales: Annotated[int, Range(2)] = 3  # [P] of RA-CNN
    margin: Amount = 0.05  # [P] of RA-CNN's ranking
    proposal_width: Count = 1024  # [R] hidden numbers of RA-CNN's proposals
    proposal_epochs: Count = (
        2  # [O] in which the proposals learn the largest answers, before they learn by ranking
    )

    # Training by AdamW
    epochs: Count = 30  # [O]
    batch: Count = 16  # [R]
    lr: Amount = 1e-3  # [O] of what follows the encoder
    encoder_lr: Amount = 1e-4  # [O] of the encoder; needs freeze = false
    weight_decay: Amount = 1e-4  # [R]

    # Evaluation
    evaluations: Count = 6  # [O] on validation pictures during training; no weights are selected by them

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.size % 32 == 0, self, "size", "a positive multiple of 32")
        require(self.width % 8 == 0, self, "width", "a multiple of 8")
        require(self.width % self.heads == 0, self, "heads", f"a divisor of width = {self.width}")
        require(self.reduction <= self.width, self, "reduction", f"at most width = {self.width}")
        require(self.part_size % 2 == 1, self, "part_size", "odd")
