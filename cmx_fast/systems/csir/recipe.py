"""The numbers of a CSIR run in two presets: the paper's, and one for two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cmx_fast.networks.names import ATTENTIONS
from cmx_fast.train.presets import Presets
from cmx_fast.train.settings import (
    Amount,
    Count,
    OneOf,
    Positive,
    Several,
    Share,
    ShareBelowOne,
    Size,
    require,
)

IMAGE_ENCODERS = ("resnet10", "resnet18", "resnet50")


#: The stages of a training, each with its own batch.
STAGES = ("speech", "image", "head", "cross")


@dataclass(frozen=True)
class CSIRRecipe(Presets):
    """Every number of a CSIR run.

    The defaults are the "paper" preset. [P]: stated by the paper. [R]: the public code that the part follows
    (SupContrast for the loss; the parallel CNN and Transformer of speech emotion recognition for the
    encoder). [O]: ours, because neither says. The paper gives no optimiser, learning rate, batch size or
    length of training.
    """

    #: Smaller pictures, a shallower ResNet, half the mel bands, higher rates for fewer and smaller steps. So short a
    #: training underfits (training and held-out accuracy stay together), and dropout would only slow it. The method is
    #: the same.
    DEMO: ClassVar[dict[str, object]] = {
        "sentences_per_air": 8,
        "n_mels": 64,
        "cache": True,
        "image_size": 64,
        "image_encoder": "resnet10",
        "gradcam_layer": "layer3",
        "transformer_dropout": 0.0,
        "speech_steps": 500,
        "speech_batch": 16,
        "speech_lr": 2e-3,
        "image_steps": 160,
        "image_batch": 16,
        "head_steps": 400,
        "head_batch": 96,
        "cross_steps": 40,
        "cross_batch": 48,
        "cross_lr": 1e-3,
        "encoder_lr": 5e-4,
        "samples_per_class": 2,
        "zoom": 0.2,
        "evaluations": 4,
    }

    # Data
    sample_rate: Count = 22050  # [P] Hz
    seconds: Positive = 6.0  # [P] length of an utterance
    sentences_per_air: Count = 5  # [P] dry sentences convolved with each acoustic impulse response
    image_size: Count = 224  # [P] pixels
    n_fft: Count = 2048  # [P] samples, Hann window
    hop: Count = 441  # [P] samples
    n_mels: Count = 128  # [P]
    range_db: Positive = 80.0  # [O] mels further below an utterance's loudest are raised to this distance
    cache: bool = False  # [O] keep every image and log-mel of the data set in memory
    backend: str = "auto"  # [O] the decoder; "dali": on the GPU if there is one

    # Networks
    image_encoder: Annotated[str, OneOf(*IMAGE_ENCODERS, "pretrained")] = (
        "resnet50"  # [P] torchvision's; "resnet18", or "resnet10" with one block per stage [O]; "pretrained": --encoder
    )
    attention: Annotated[str, OneOf(*ATTENTIONS)] = (
        ""  # [O] in the image encoder: "se", "cbam" or "non-local"
    )
    gradcam_layer: Annotated[str, OneOf("layer1", "layer2", "layer3", "layer4")] = "layer4"  # [P]
    crop_seconds: Positive = (
        6.0  # [O] length of the speech encoder's input; the paper's is the whole utterance
    )
    #: [O] The reference's 0.3 lifts the maxima of the pools behind it while training, so that batch norm's running
    #: statistics fit no evaluation: RT60 by ear comes out too long, by a half with 0.1.
    cnn_dropout: ShareBelowOne = 0.0
    transformer_dropout: ShareBelowOne = 0.4  # [R]
    standardise: bool = True  # [O] batch norm without parameters before the projections; the paper has none
    embed_dim: Count = 64  # [P] common space
    pretrain_dim: Count = 64  # [O] contrastive head in the speech encoder's pre-training

    # Losses
    alpha: Share = 0.6  # [P] cross-entropy; 1 - alpha is the contrastive loss
    temperature: Positive = 0.07  # [R]
    contrast: Annotated[str, OneOf("joint", "cross")] = (
        "joint"  # [O] eq. 7 on the stacked 2N rows; "cross": speech rows against image columns only
    )
    supcon_reduction: Annotated[str, OneOf("mean", "sum")] = "mean"  # [R]; eq. 7 as printed is "sum"
    rt60_weight: Amount = 1.0  # [O] squared error of RT60's standardised logarithm
    contrast_weight: Amount = 1.0  # [O] contrastive loss in the speech encoder's pre-training

    # Training: Adam, linear warm-up over 5 % of the steps, then a cosine to zero
    speech_steps: Count = 24000  # [O] about 30 epochs of 51,035 utterances
    speech_batch: Count = 64  # [O]
    speech_lr: Amount = 1e-3  # [O]
    image_steps: Count = 4800  # [O] only where no Places365 weights are given
    image_batch: Count = 64  # [O]
    image_lr: Amount = 1e-3  # [O]
    head_steps: Size = 0  # [O] of the cross-modal stage before the encoders move, on their features
    head_batch: Count = 128  # [O]
    head_lr: Amount = 1e-3  # [O]
    cross_steps: Count = 20000  # [O] about 50 epochs
    cross_batch: Count = 128  # [O] pairs
    cross_lr: Amount = 1e-4  # [O] projectors and classifiers
    encoder_lr: Amount = 1e-5  # [O] the two pre-trained encoders in the cross-modal stage
    weight_decay: Amount = 1e-4  # [O]
    samples_per_class: Several = 4  # [O] utterances of one space in a class-balanced batch
    gain_db: Amount = 0.0  # [O] random gain of the log-mel, plus or minus
    damping: ShareBelowOne = (
        0.0  # [O] responses damped to between this share less of their RT60 and all of it
    )
    zoom: ShareBelowOne = 0.0  # [O] random crop of the image, up to this fraction, and a left-right flip

    # Baseline
    dscmr_hidden: Count = 2048  # [R] DSCMR's first layer
    dscmr_dim: Count = 1024  # [R] DSCMR's common space
    dscmr_alpha: Amount = 1e-3  # [R] discrimination in the common space
    dscmr_beta: Amount = 1e-1  # [R] modality invariance

    # Evaluation
    eval_crops: Count = 1  # [O] evenly spaced crops of an utterance whose embeddings are averaged
    evaluations: Count = (
        5  # [O] on held-out pairs during the cross-modal stage; no weights are selected by them
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.crop_seconds <= self.seconds, self, "crop_seconds", f"in (0, seconds = {self.seconds}]")
        for stage in STAGES:
            require(
                getattr(self, f"{stage}_batch") % self.samples_per_class == 0,
                self,
                f"{stage}_batch",
                f"a multiple of samples_per_class = {self.samples_per_class}",
            )

    @property
    def frames(self) -> int:
        """Log-mel frames that the speech encoder sees: centred frames, so one more than whole hops."""
        return 1 + int(self.crop_seconds * self.sample_rate) // self.hop
