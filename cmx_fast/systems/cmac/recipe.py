"""The numbers of a CMAC run in presets: the paper's, its ablations', and one for two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cmx_fast.data.transforms.window import check_window
from cmx_fast.train.presets import Presets
from cmx_fast.train.settings import (
    Amount,
    Checked,
    Count,
    OneOf,
    Positive,
    Range,
    Several,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    Size,
    require,
)

HEADS = ("mlp", "linear", "shared")
OPTIMIZERS = ("sgd", "adamw")
NORMS = ("cosine", "softmax", "none")


@dataclass(frozen=True)
class CMACRecipe(Presets):
    """Every number of a run of CMAC or of a row of its ablations.

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

    #: "speaker": a talking face before a still background, and a fixed pretrained encoder, --encoder, on two CPU cores.
    #: Chosen on the validation part of a set of one speaker. The maps less their mean over the clip are what moves: the
    #: face and the room, alike in all clips, are gone. Moments are compared one by one, as words follow each other.
    SPEAKER: ClassVar[dict[str, object]] = {
        **DEMO,
        "size": 128,
        "short_side": 144,
        "frames": 16,
        "fps": 12.5,
        "seconds": 1.28,
        "frame_stride": 16,
        "frame_motion": True,
        "compare": "moments",
        "clips": 10,
        "width": 8,
        "audio_width": 8,
        "volume": 0.0,
        "freq_width": 0,
        "time_width": 0,
        "time_warp": 0,
        "lr": 4e-3,
        "batch": 64,
        "epochs": 60,
    }

    #: "ablation": the runs of the paper's Tables 1 to 3 [P].
    MORE: ClassVar[dict[str, dict[str, object]]] = {
        "ablation": {"epochs": 50, "batch": 64, "jitter": 0.0},
        "speaker": SPEAKER,
    }

    # Data
    size: Count = 128  # [P] pixels of a view
    short_side: Count = 160  # [R] pixels of the shorter side before cropping; at least size
    smallest_crop: ShareAboveZero = 0.8  # [R] of the shorter side
    #: Left, top, width and height of the part of the frame that is seen, as shares of it [O]; empty: all [P].
    window: tuple[Share, ...] = ()
    frames: Count = 32  # [P]
    fps: Positive = 30.0  # [R]
    seconds: Positive = 1.0  # [P] length of the sound
    sample_rate: Count = 24000  # [R]
    cache: bool = False  # [O] decode every recording once and keep it in memory, as bytes
    backend: str = "auto"  # [O] the decoder; "dali": on the GPU if there is one, or "pyav", "torchcodec"
    jitter: Share = (
        0.4  # [R] brightness, contrast and saturation change by up to this share; the ablations: 0
    )

    # Log filterbank of the sound: 257 filters [P], the rest as GDT's code; its normalisation and masks
    audio_mean: float = 1.93  # [R]
    audio_std: Positive = 17.89  # [R]
    volume: Share = 0.1  # [R] the loudness changes by up to this share
    freq_width: Size = 3  # [R] most filters that a mask covers
    time_width: Size = 6  # [R] most frames that a mask covers
    time_warp: Size = 5  # [O] most frames that the middle moves; the paper has time warping and no number

    # Networks
    blocks: Count = 2  # [P] per stage: 2 is R(2+1)D-18
    attention: Annotated[str, OneOf("", "se", "non-local")] = ""  # [O] in both encoders: "se" or "non-local"
    width: Count = 64  # [P] channels of the video encoder's first stage, an eighth of its last
    audio_width: Count = 64  # [P] of ResNet-9
    #: Stride of the video encoder's last stage [P]; 1 gives a map of twice the height and width.
    last_stride: Annotated[int, OneOf(1, 2)] = 2
    #: Channels of the maps of --encoder [O]: temporal convolutions on them are the video encoder then; 0: none.
    frame_channels: Size = 0
    frame_stride: Size = 0  # [O] of the maps of --encoder; 0: its coarsest
    frame_motion: bool = (
        False  # [O] the maps of --encoder less their mean over the clip: what moves alone is seen
    )
    filters: Count = 512  # [P] channels of g and of the filters
    embedding: Count = 256  # [P]
    #: "mlp": GDT's head, one per modality [R]. "linear": one layer each. "shared": one layer for both [O]; embeddings
    #: that agree behind it then agree before it too, where the filters meet the features.
    head: Annotated[str, OneOf(*HEADS)] = "mlp"
    dropout: ShareBelowOne = 0.3  # [R] of the "mlp" head

    # Pyramid correlation and its consistency loss
    levels: Annotated[int, Range(1, 3)] = 2  # [P]
    norm: Annotated[str, OneOf(*NORMS)] = "cosine"  # [P]
    consistency: Amount = 1.5  # [P] lambda of eq. 8
    teach_features: bool = False  # [O] the map is a pseudo-label, so it gets no gradient

    # Contrast
    temperature: Positive = 0.07  # [P]
    bank: Size = 15000  # [P] keys per modality; 0: the other samples of the batch instead
    momentum: ShareBelowOne = 0.999  # [P] of the key encoders
    #: With banks, the other samples of the batch are negatives, too, as m != n of eq. 7 has it [O]. Without them the
    #: positive is the only key of the newest weights, and a model learns to tell old keys from new ones instead.
    bank_batch: bool = True
    #: Parts of the batch, in an order drawn anew, each with its own statistics in the key encoders' batch norms: no key
    #: can then be told by statistics that it shares with its query. MoCo's shuffle [R], which has 8, its GPUs; 1 [O].
    key_splits: Count = 1
    within_negatives: bool = True  # [P] keys of the own modality are negatives too (Table 3)
    within_positives: bool = False  # [P] a second clip of the recording is a positive (Table 3, AVID)

    # Training
    optimizer: Annotated[str, OneOf(*OPTIMIZERS)] = "sgd"  # [P] with momentum 0.9; "adamw" for short runs [O]
    lr: Amount = 0.01  # [P]
    weight_decay: Amount = 1e-5  # [P]
    warmup_epochs: Size = 10  # [P]
    cosine: bool = False  # [R] a constant rate after the warm-up; else a cosine to zero [O]
    epochs: Count = 200  # [P]; the ablations 50
    batch: Several = 128  # [P]; the ablations 64

    # Evaluation
    clips: Count = 10  # [P] evenly spaced clips of each recording, averaged
    #: Retrieval compares the mean embedding of the clips [P], or clip by clip, "moments", and averages the cosines [O]:
    #: that tells apart recordings with the same things at other times.
    compare: Annotated[str, OneOf("mean", "moments")] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.frame_channels:
            require(self.size >= 32 and self.size % 16 == 0, self, "size", "a multiple of 16, at least 32")
        require(self.short_side >= self.size, self, "short_side", f"at least size = {self.size}")
        fewest = f"at most {self.batch // 2}, so that a part of the batch of {self.batch} has two samples"
        require(2 * self.key_splits <= self.batch, self, "key_splits", fewest)
        check_window(self.window)


@dataclass(frozen=True)
class FinetuneRecipe(Checked):
    """The numbers of fine-tuning. [P]: stated by the paper. [R]: GDT's code. [O]: ours."""

    epochs: Count = 12  # [P]
    clips: Count = 10  # [P] random clips of each video per epoch
    batch: Count = 16  # [P]
    lr: Amount = 0.005  # [P]
    weight_decay: Amount = 5e-3  # [P]
    momentum: ShareBelowOne = 0.9  # [P]
    warmup_epochs: Size = 2  # [R]
    milestones: tuple[Size, ...] = (6, 10)  # [R] epochs at which the rate falls
    decay: Share = 0.05  # [R] the factor by which it then falls
    jitter: Share = 0.4  # [R] colours; the ablations: 0 [P]
    dropout: ShareBelowOne = 0.3  # [O]

    def rate(self, step: int, steps: int) -> float:
        """The factor on the learning rate."""
        epoch = step * self.epochs / steps
        rising = min(1.0, (epoch + 1 / steps) / self.warmup_epochs) if self.warmup_epochs else 1.0
        return rising * self.decay ** sum(epoch >= milestone for milestone in self.milestones)
