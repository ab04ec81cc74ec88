"""The numbers of Sound2Scene's alignment in two presets: the paper's, and one for two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cmx_fast.train.presets import Presets
from cmx_fast.train.settings import Amount, Count, OneOf, Range, Several, ShareBelowOne, Size, require

#: "l2": eq. 1 in both directions. "l2 one way": from sounds to pictures alone [O]. "cosine" and "regression": L_nce and
#: L_2 of Table 2.
LOSSES = ("l2", "l2 one way", "cosine", "regression")


@dataclass(frozen=True)
class Sound2SceneRecipe(Presets):
    """Every number of ``cmx train sound2scene``, given a generator and its picture encoder.

    The defaults are the "paper" preset. [P]: stated by the paper. [R]: its public code. [O]: ours.
    """

    DEMO: ClassVar[dict[str, object]] = {
        "framing": "crop",
        "moments": 4,
        "seconds": 3.0,
        "around": False,
        "cache": True,
        "width": 16,
        "cosine": True,
        "epochs": 40,
        "validation": 0.0,
        "capped": False,
    }

    # Data
    framing: Annotated[str, OneOf("stretch", "crop")] = (
        "stretch"  # [R] whole frames with another aspect ratio; or the largest square in their middle
    )
    moments: Count = 1  # [P] pictures of each video: the selection's best, or the middle one
    seconds: Annotated[float, Range(0.1)] = (
        10.0  # [P] length of the encoder's input; shorter sound is repeated
    )
    heard: Amount = (
        0.0  # [O] seconds of a recording that are used, in the ablation 1 and 5; 0: as many as seconds
    )
    around: bool = True  # [O] these seconds are those around the picture's moment; or the first
    cache: bool = False  # [O] keep all pictures and sounds in memory
    backend: str = "auto"  # [O] the decoder; "dali": on the GPU if there is one, or "pyav", "torchcodec"

    # Sound encoder: ResNet-18
    width: Annotated[int, Range(8)] = 64  # [R] channels of the first stage
    positive: bool = True  # [R] ends in a ReLU; the paper in the linear layer

    # Training
    loss: Annotated[str, OneOf(*LOSSES)] = (
        "l2"  # [P]; "cosine" and "regression": the ablations of Table 2 [P]; "l2 one way" [O]
    )
    lr: Amount = 1e-3  # [R] of Adam
    cosine: bool = False  # [R] a constant rate; else a short warm-up and a cosine to zero [O]
    weight_decay: Amount = 1e-5  # [R]
    epochs: Count = 50  # [P] at most
    batch: Several = 64  # [R]
    validation: ShareBelowOne = (
        0.1  # [O] share of the training videos whose loss chooses the best weights [R], where
    )
    # the set has no part of its own for it; 0: none, the last weights count
    patience: Size = 5  # [O] epochs without a lower validation loss after which training stops [P]; 0: never

    # Training on labelled sounds first, --sounds
    sound_epochs: Count = 30  # [O] on them, at lr with a warm-up and a cosine
    fixed: bool = False  # [O] only the last layer learns after it; or everything

    # Evaluation
    capped: bool = True  # [P] row C of Table 1 has as many training pictures as fit in the generator's memory

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.heard <= self.seconds, self, "heard", f"in [0, seconds = {self.seconds}]")
