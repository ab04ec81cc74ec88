"""The numbers of a CMAC run in two presets: the paper's, and one for two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cmx_fast.models.presets import Presets, require

HEADS = ("mlp", "linear", "shared")
OPTIMIZERS = ("sgd", "adamw")
NORMS = ("cosine", "softmax", "none")


@dataclass(frozen=True)
class CMACRecipe(Presets):
    """Everything that decides what a run of CMAC or a row of its ablations computes.

    The defaults are the "paper" preset. [P]: stated by the paper. [R]: the public code of GDT, whose pipeline the paper
    follows, or of MoCo. [O]: ours, because neither says.
    """

    #: Small pictures, few frames and narrow encoders from random weights.
    DEMO: ClassVar[dict[str, object]] = {
        "size": 48,
        "short_side": 54,
        "frames": 8,
        "fps": 8.0,
        "cache": True,
        "jitter": 0.0,
        "blocks": 1,
        "width": 16,
        "audio_width": 16,
        "last_stride": 1,
        "filters": 128,
        "embedding": 64,
        "head": "shared",
        "bank": 0,
        "optimizer": "adamw",
        "lr": 2e-3,
        "cosine": True,
        "warmup_epochs": 2,
        "epochs": 24,
        "batch": 32,
        "clips": 3,
    }

    # Data
    size: int = 128  # [P] pixels of a view
    short_side: int = 160  # [R] pixels of the shorter side before cropping; at least size
    smallest_crop: float = 0.8  # [R] of the shorter side
    frames: int = 32  # [P]
    fps: float = 30.0  # [R]
    seconds: float = 1.0  # [P] of sound
    sample_rate: int = 24000  # [R]
    cache: bool = False  # [O] decode every recording once and keep it in memory, as bytes
    backend: str = "auto"  # [O] what decodes; "dali": on the GPU if there is one, or "pyav", "torchcodec"
    jitter: float = (
        0.4  # [R] brightness, contrast and saturation change by up to this share; the ablations: 0
    )

    # Log filterbank of the sound: 257 filters [P], the rest as GDT's code; its normalisation and masks
    audio_mean: float = 1.93  # [R]
    audio_std: float = 17.89  # [R]
    volume: float = 0.1  # [R] the loudness changes by up to this share
    freq_width: int = 3  # [R] most filters that a mask covers
    time_width: int = 6  # [R] most frames that a mask covers
    time_warp: int = 5  # [O] most frames that the middle moves; the paper has time warping and no number

    # Networks
    blocks: int = 2  # [P] per stage: 2 is R(2+1)D-18
    attention: str = ""  # [O] in both encoders: "se" or "non-local"
    width: int = 64  # [P] channels of the video encoder's first stage, an eighth of its last
    audio_width: int = 64  # [P] of ResNet-9
    last_stride: int = 2  # [P] of the video encoder's last stage; 1 gives a map of twice the height and width
    filters: int = 512  # [P] channels of g and of the filters
    embedding: int = 256  # [P]
    #: "mlp": GDT's head, one per modality [R]. "linear": one layer each. "shared": one layer for both, with which what
    #: agrees after it agrees before it, where the filters meet the features [O].
    head: str = "mlp"
    dropout: float = 0.3  # [R] of the "mlp" head

    # Pyramid correlation and its consistency loss
    levels: int = 2  # [P]
    norm: str = "cosine"  # [P]
    consistency: float = 1.5  # [P] lambda of eq. 8
    teach_features: bool = False  # [O] the map is a pseudo-label, so it gets no gradient

    # Contrast
    temperature: float = 0.07  # [P]
    bank: int = 15000  # [P] keys per modality; 0: the other samples of the batch instead
    momentum: float = 0.999  # [P] of the key encoders
    within_negatives: bool = True  # [P] keys of the own modality are negatives too (Table 3)
    within_positives: bool = False  # [P] a second clip of the recording is a positive (Table 3, AVID)

    # Training
    optimizer: str = "sgd"  # [P] with momentum 0.9; "adamw" for short runs [O]
    lr: float = 0.01  # [P]
    weight_decay: float = 1e-5  # [P]
    warmup_epochs: int = 10  # [P]
    cosine: bool = False  # [R] a constant rate after the warm-up; else a cosine to zero [O]
    epochs: int = 200  # [P]; the ablations 50
    batch: int = 128  # [P]; the ablations 64

    # Evaluation
    clips: int = 10  # [P] evenly spaced clips of each recording, averaged

    def __post_init__(self) -> None:
        require(self.head in HEADS, self, "head", f"one of {', '.join(HEADS)}")
        require(self.optimizer in OPTIMIZERS, self, "optimizer", f"one of {', '.join(OPTIMIZERS)}")
        require(self.size >= 32 and self.size % 16 == 0, self, "size", "a multiple of 16, at least 32")
        require(self.short_side >= self.size, self, "short_side", f"at least size = {self.size}")
        require(self.last_stride in (1, 2), self, "last_stride", "1 or 2")
        require(1 <= self.levels <= 3, self, "levels", "1 to 3")
        require(self.norm in NORMS, self, "norm", f"one of {', '.join(NORMS)}")
        require(self.bank >= 0, self, "bank", "at least 0")
        require(0 <= self.momentum < 1, self, "momentum", "in [0, 1)")
        require(self.temperature > 0, self, "temperature", "above 0")
        require(self.consistency >= 0, self, "consistency", "at least 0")
        require(self.warmup_epochs >= 0, self, "warmup_epochs", "at least 0")
        require(self.attention in ("", "se", "non-local"), self, "attention", "'', 'se' or 'non-local'")
        for name in ("frames", "blocks", "width", "audio_width", "filters", "embedding", "epochs", "clips"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        require(self.batch >= 2, self, "batch", "at least 2 (batch norm)")
