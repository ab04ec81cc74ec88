"""The numbers of a C2L run in three presets: the paper's, one for simulated people, and one for photographs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cmx_fast.networks.names import ATTENTIONS, BACKBONES
from cmx_fast.train.presets import Presets
from cmx_fast.train.settings import (
    Amount,
    Count,
    Hue,
    OneOf,
    Positive,
    Range,
    Several,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    require,
)


@dataclass(frozen=True)
class C2LRecipe(Presets):
    """Every number of a run of C2L, its ablations, PiCIE or DFF.

    The defaults are the "paper" preset. [P]: stated by the paper. [R]: the public code of PiCIE or DFF, on which the
    paper builds. [O]: ours, because neither says. The paper leaves open the number of clusters and parts, the heads,
    the sparse code's size, steps and penalty, the learning rate and the length of training.
    """

    #: Small pictures and batches, and a shallower ResNet. From random weights a network tells little but colour: hence
    #: weak colour changes, as many clusters as classes, and fewer atoms. K-means batches are small, so that one pass
    #: brings batch norm's running statistics to those of the pictures.
    DEMO: ClassVar[dict[str, object]] = {
        "size": 96,
        "cache": True,
        "jitter": 0.05,
        "hue": 0.02,
        "backbone": "resnet10",
        "atoms": 16,
        "clusters": 3,
        "test_clusters": 3,
        "cluster_batch": 8,
        "init_batches": 16,
        "epochs": 3,
        "batch": 16,
        "lr": 3e-4,
        "evaluations": 6,
    }

    #: For photographs and a fixed pretrained encoder, --encoder, on two CPU cores. Chosen on the validation part of a
    #: set of street photographs. The part contrast counts little: its sum over ten or twenty parts dwarfs the other
    #: losses.
    PHOTOS: ClassVar[dict[str, object]] = {
        "size": 192,
        "cache": True,
        "smallest_crop": 0.8,
        "suppressed": 0.7,
        "part": "assignment",
        "part_weight": 0.02,
        "clusters": 40,
        "test_clusters": 40,
        "cluster_batch": 32,
        "init": "k-means++",
        "init_pixels": 200_000,
        "map_stride": 16,
        "attention_stride": 2,
        "kept_views": 2,
        "width": 256,
        "epochs": 1,
        "batch": 16,
        "evaluations": 1,
    }
    MORE: ClassVar[dict[str, dict[str, object]]] = {"photos": PHOTOS}

    # Data
    size: Count = 320  # [P] pixels; a multiple of 32
    cache: bool = False  # [O] keep every picture of the data set in memory, as bytes
    backend: str = "auto"  # [O] the decoder; "dali": on the GPU if there is one

    # Views, drawn anew in every epoch
    jitter: Share = 0.3  # [R] brightness, contrast and saturation change by up to this share
    hue: Hue = 0.1  # [R] of the circle
    smallest_crop: ShareAboveZero = 0.5  # [R] of the side

    # Networks
    backbone: Annotated[str, OneOf(*BACKBONES)] = "resnet18"  # [P]; "resnet10" has one block per stage [O]
    attention: Annotated[str, OneOf(*ATTENTIONS)] = ""  # [O] in the ResNet: "se", "cbam" or "non-local"
    #: The ResNet sees the brightness's gradients beside the picture: PiCIE's additional input for random weights [R].
    gradients: bool = False
    map_stride: Count = 8  # [O] finest stride of the maps of --encoder that are used
    grid_stride: Count = (
        8  # [O] stride of the grid that is clustered; coarser maps of --encoder are enlarged to it
    )
    kept_views: Count = 4  # [O] draws of the views whose maps by --encoder are kept; epochs take turns
    width: Count = 128  # [P] channels of the pyramid, of the attention and of the clustered features
    part_width: Count = 32  # [O] numbers per part vector
    heads: Count = 4  # [O]
    attention_stride: Count = 1  # [O] keys and values are averages of stride x stride cells; 1: all of them
    mlp_ratio: Count = 2  # [O] hidden width of the plain feed-forward (Table 1, row 3), in multiples of width
    atoms: Count = 64  # [O] columns of the dictionary; the paper says fewer than width
    code_steps: Count = 10  # [O] unrolled ISTA steps
    #: Share of each picture's pixels, those most like its border, that the pixel consistent module sets to zero [O].
    suppressed: ShareBelowOne = 0.0
    code_penalty: Amount = 0.1  # [O] lambda of eqs. 2 and 4

    # Losses
    part_weight: Amount = 0.5  # [P] alpha of eq. 8
    code_weight: Amount = 0.3  # [P] beta of eq. 8
    temperature: Positive = 0.07  # [O] tau of eq. 1, as in the work that the paper cites for it
    #: The clustering objective of every row of Table 1: PiCIE's own, with terms across the views [R], which Table 2's
    #: alpha = 0 has, being PiCIE's figure; false: the terms within the views alone, as eq. 7 is printed [P].
    cross_view: bool = True
    part: Annotated[str, OneOf("group", "assignment")] = "group"  # [P]; "assignment": parts by content [O]
    proportional_weights: bool = (
        True  # [R] a cluster's weight in the cross-entropy is its share of the points
    )

    # Clustering, anew in every epoch
    clusters: Several = 18  # [O] ATR's labels; also the number of parts, as the paper suggests
    test_clusters: Several = 18  # [R] clusters of the clustering after training, which is evaluated
    cluster_batch: Count = 192  # [P] pictures per mini-batch of k-means
    init_batches: Count = 20  # [R] mini-batches behind the first centroids
    init_iterations: Count = 20  # [R] Lloyd iterations on them
    init_pixels: Count = (
        2_000_000  # [O] of them, drawn evenly; 1 GB at width 128, where all of them are 12.6 GB [R]
    )
    init: Annotated[str, OneOf("random", "k-means++")] = (
        "random"  # [R] pixels that the first centroids start at
    )
    cluster_in_train_mode: bool = (
        True  # [R] batch norm uses, and updates, batch statistics in the centroid pass
    )

    # Training by Adam
    epochs: Count = 10  # [R]
    batch: Count = 96  # [P]
    lr: Amount = 1e-4  # [R]
    cosine: bool = False  # [R] a constant rate; else warm-up over 5 % of the steps and a cosine to zero [O]

    # Baseline
    dff_stage: Annotated[int, Range(1, 4)] = 4  # [R] the one of the ResNet's four stages that DFF factorises
    dff_iterations: Count = 200  # [R]
    dff_tolerance: Amount = 1e-4  # [R] stop where the relative error falls by less

    # Evaluation
    evaluations: Count = 5  # [O] on held-out pictures during training; no weights are selected by them

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.size % 32 == 0, self, "size", "a positive multiple of 32")
        require(self.width % self.heads == 0, self, "heads", f"a divisor of width = {self.width}")
        require(
            self.size // 4 % self.attention_stride == 0,
            self,
            "attention_stride",
            f"a divisor of size / 4 = {self.size // 4}",
        )
