"""Measures generated pictures: Fréchet distance and Inception Score, retrieval of class names, right classes."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast._extras import require
from cmx_fast.evaluate.frame_classifier import FrameClassifier
from cmx_fast.networks.clip_weights import check_model, weights_only

#: Pictures per batch.
BATCH = 64
#: Parts that an Inception Score is the mean of (torchmetrics' default), where each then has at least 50 pictures.
SPLITS, LEAST_PER_SPLIT = 10, 50

Pictures = Tensor  # (N, 3, H, W), uint8 or float in [0, 1]


def as_float(pictures: Pictures) -> Tensor:
    """Pictures as float32 in [0, 1]."""
    return pictures / 255 if pictures.dtype == torch.uint8 else pictures.float()


@dataclass(frozen=True)
class Networks:
    """Networks by which pictures are compared: float pictures in [0, 1] to features (B, width), to logits (B, K)."""

    name: str
    features: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    width: int


def classifier_networks(classifier: FrameClassifier) -> Networks:
    """Compare by a classifier of the data's own frames: the figures are comparable on that data alone."""
    return Networks("classifier of real frames", classifier.features, classifier, 128)


def inception_networks(weights: Path) -> Networks:
    """Compare by FID's own Inception-v3 from a local file, ``pt_inception-2015-12-05-6726825d.pth`` of torch-fidelity.

    Raises:
        FileNotFoundError: no such file.
        MissingExtraError: torch-fidelity is not installed.
        ValueError: weights of another network.
    """
    inception = require("torch_fidelity.feature_extractor_inceptionv3", "generation")
    if not weights.is_file():
        raise FileNotFoundError(f"there are no Inception weights {weights}")
    try:
        torch.load(
            weights, map_location="cpu", weights_only=True
        )  # torch-fidelity would run what the file holds
        network = inception.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError) as error:
        raise ValueError(f"{weights} does not fit torch-fidelity's Inception: {error}") from error

    def output(pictures: Tensor, number: int) -> Tensor:
        return network((255 * pictures).round().byte())[number]

    return Networks("Inception-v3", lambda p: output(p, 0), lambda p: output(p, 1), 2048)


class _Extractor(nn.Module):
    """Wraps a function as torchmetrics takes a feature extractor."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int):
        super().__init__()
        self.function, self.num_features = function, width

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        return self.function(as_float(pictures))


def frechet_distance(networks: Networks, real: Pictures, generated: Pictures) -> float:
    """FID of Heusel et al. 2017 between two sets of pictures; with few pictures it is biased upwards."""
    fid = require("torchmetrics.image.fid", "generation")
    metric = fid.FrechetInceptionDistance(_Extractor(networks.features, networks.width))
    for pictures, is_real in ((real, True), (generated, False)):
        for part in pictures.split(BATCH):
            metric.update(part, real=is_real)
    return float(metric.compute())


def inception_score(networks: Networks, generated: Pictures) -> float:
    """Inception Score of Salimans et al. 2016: exp of the mean divergence of each picture's classes from all pictures'.

    From 1 to the number of classes.
    """
    inception = require("torchmetrics.image.inception", "generation")
    splits = max(1, min(SPLITS, len(generated) // LEAST_PER_SPLIT))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # it keeps all logits: these are few
        torch.manual_seed(0)  # torchmetrics shuffles
        metric = inception.InceptionScore(_Extractor(networks.logits, networks.width), splits=splits)
        for part in generated.split(BATCH):
            metric.update(part)
        mean, _ = metric.compute()
    return float(mean)


class ClipJudge:
    """Compares pictures with class names by CLIP: OpenCLIP's models with weights from a local file.

    Args:
        model: OpenCLIP's name, e.g. "ViT-B-32".
        weights: its file.
        class_names: each in "a photo of ..."; underscores count as spaces.

    Raises:
        FileNotFoundError: no such file.
        MissingExtraError: open_clip_torch is not installed.
        ValueError: OpenCLIP knows no such model, the weights do not fit it, or they are OpenAI's, whose activation is
            not the model's. Of weights that could be OpenAI's a message says which model they would need.
    """

    def __init__(self, model: str, weights: Path, class_names: Sequence[str]):
        open_clip = check_model(model, weights)
        try:
            self.clip, _, _ = open_clip.create_model_and_transforms(
                model, pretrained=str(weights), weights_only=weights_only(weights)
            )
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{weights} does not fit OpenCLIP's {model}: {error}") from error
        self.clip.eval()
        self.size = open_clip.get_model_preprocess_cfg(self.clip)
        tokens = open_clip.get_tokenizer(model)([f"a photo of {n.replace('_', ' ')}" for n in class_names])
        with torch.no_grad():
            self.names = F.normalize(self.clip.encode_text(tokens), dim=1)

    @torch.no_grad()
    def scores(self, pictures: Pictures) -> Tensor:
        """Cosines with the class names, float32 (N, classes)."""
        size = self.size["size"]
        side = size if isinstance(size, int) else size[0]
        mean, std = (torch.tensor(self.size[name])[:, None, None] for name in ("mean", "std"))
        cosines = []
        for part in pictures.split(BATCH):
            resized = F.interpolate(as_float(part), (side, side), mode="bicubic", antialias=True).clamp(0, 1)
            cosines.append(F.normalize(self.clip.encode_image((resized - mean) / std), dim=1) @ self.names.T)
        return torch.cat(cosines).float()


def recall(scores: Tensor, labels: Tensor, k: int) -> float:
    """The share of pictures whose class is among the k highest scores (N, classes)."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return float((best == labels[:, None]).any(1).double().mean())
