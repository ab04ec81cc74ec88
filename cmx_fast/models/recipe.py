"""The numbers of a CSIR run in two presets: the paper's, and one for two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cmx_fast.models.attentive import ATTENTIONS
from cmx_fast.models.presets import Presets, require

IMAGE_ENCODERS = ("resnet10", "resnet18", "resnet50")


@dataclass(frozen=True)
class Recipe(Presets):
    """Everything that decides what a CSIR run computes.

    The defaults are the "paper" preset. [P]: stated by the paper. [R]: the public code that the part follows
    (SupContrast for the loss; the parallel CNN and Transformer of speech emotion recognition for the
    encoder). [O]: ours, because neither says. The paper gives no optimiser, learning rate, batch size or
    length of training.
    """

    #: Smaller pictures, a shallower ResNet, half the mel bands, higher rates for fewer and smaller steps. So short a
    #: training underfits (train and held-out accuracy stay together), so dropout only slows it. The method is the same.
    DEMO: ClassVar[dict[str, object]] = {
        "sentences_per_air": 8,
        "n_mels": 64,
        "cache": True,
        "image_size": 64,
        "image_encoder": "resnet10",
        "gradcam_layer": "layer3",
        "cnn_dropout": 0.0,
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
    sample_rate: int = 22050  # [P] Hz
    seconds: float = 6.0  # [P] length of an utterance
    sentences_per_air: int = 5  # [P] dry sentences convolved with each acoustic impulse response
    image_size: int = 224  # [P] pixels
    n_fft: int = 2048  # [P] samples, Hann window
    hop: int = 441  # [P] samples
    n_mels: int = 128  # [P]
    range_db: float = 80.0  # [O] what lies further below an utterance's loudest mel is cut off there
    cache: bool = False  # [O] keep every image and log-mel of the data set in memory
    backend: str = "auto"  # [O] what decodes; "dali": on the GPU if there is one

    # Networks
    image_encoder: str = (
        "resnet50"  # [P] torchvision's; "resnet18", or "resnet10" with one block per stage [O]
    )
    attention: str = ""  # [O] in the image encoder: "se", "cbam" or "non-local"
    gradcam_layer: str = "layer4"  # [P]
    crop_seconds: float = 6.0  # [O] what the speech encoder sees at once; the paper's is the whole utterance
    cnn_dropout: float = 0.3  # [R]
    transformer_dropout: float = 0.4  # [R]
    embed_dim: int = 64  # [P] common space
    pretrain_dim: int = 64  # [O] contrastive head in the speech encoder's pre-training

    # Losses
    alpha: float = 0.6  # [P] cross-entropy; 1 - alpha is the contrastive loss
    temperature: float = 0.07  # [R]
    contrast: str = (
        "joint"  # [O] eq. 7 on the stacked 2N rows; "cross": speech rows against image columns only
    )
    supcon_reduction: str = "mean"  # [R]; eq. 7 as printed is "sum"
    rt60_weight: float = 1.0  # [O] squared error of the standardised RT60
    contrast_weight: float = 1.0  # [O] contrastive loss in the speech encoder's pre-training

    # Training: Adam, linear warm-up over 5 % of the steps, then a cosine to zero
    speech_steps: int = 24000  # [O] about 30 epochs of 51,035 utterances
    speech_batch: int = 64  # [O]
    speech_lr: float = 1e-3  # [O]
    image_steps: int = 4800  # [O] only where no Places365 weights are given
    image_batch: int = 64  # [O]
    image_lr: float = 1e-3  # [O]
    head_steps: int = 0  # [O] of the cross-modal stage with both encoders still, on their features
    head_batch: int = 128  # [O]
    head_lr: float = 1e-3  # [O]
    cross_steps: int = 20000  # [O] about 50 epochs
    cross_batch: int = 128  # [O] pairs
    cross_lr: float = 1e-4  # [O] projectors and classifiers
    encoder_lr: float = 1e-5  # [O] the two pre-trained encoders in the cross-modal stage
    weight_decay: float = 1e-4  # [O]
    samples_per_class: int = 4  # [O] of one space in a class-balanced batch
    gain_db: float = 0.0  # [O] random gain of the log-mel, plus or minus
    zoom: float = 0.0  # [O] random crop of the image, up to this fraction, and a left-right flip

    # Baseline
    dscmr_hidden: int = 2048  # [R] DSCMR's first layer
    dscmr_dim: int = 1024  # [R] DSCMR's common space
    dscmr_alpha: float = 1e-3  # [R] discrimination in the common space
    dscmr_beta: float = 1e-1  # [R] modality invariance

    # Evaluation
    eval_crops: int = 1  # [O] evenly spaced crops of an utterance whose embeddings are averaged
    evaluations: int = (
        5  # [O] looks at the held-out pairs during the cross-modal stage; no weights are selected by them
    )

    def __post_init__(self) -> None:
        require(
            self.image_encoder in IMAGE_ENCODERS, self, "image_encoder", f"one of {', '.join(IMAGE_ENCODERS)}"
        )
        require(self.attention in ATTENTIONS, self, "attention", f"one of {', '.join(map(repr, ATTENTIONS))}")
        require(self.contrast in ("joint", "cross"), self, "contrast", "'joint' or 'cross'")
        require(self.supcon_reduction in ("mean", "sum"), self, "supcon_reduction", "'mean' or 'sum'")
        require(0 <= self.alpha <= 1, self, "alpha", "between 0 and 1")
        require(self.temperature > 0, self, "temperature", "above 0")
        require(
            0 < self.crop_seconds <= self.seconds, self, "crop_seconds", f"in (0, seconds = {self.seconds}]"
        )
        require(
            self.samples_per_class >= 2, self, "samples_per_class", "at least 2, or SupCon has no positives"
        )
        for stage in ("speech", "image", "head", "cross"):
            least = 0 if stage == "head" else 1
            require(getattr(self, f"{stage}_steps") >= least, self, f"{stage}_steps", f"at least {least}")
            batch = getattr(self, f"{stage}_batch")
            require(
                batch > 0 and batch % self.samples_per_class == 0,
                self,
                f"{stage}_batch",
                f"a multiple of samples_per_class = {self.samples_per_class}",
            )

    @property
    def frames(self) -> int:
        """Log-mel frames that the speech encoder sees: centred frames, so one more than whole hops."""
        return 1 + int(self.crop_seconds * self.sample_rate) // self.hop
