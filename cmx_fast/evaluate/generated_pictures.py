"""Measures generated pictures: Fréchet distance and Inception Score, retrieval of class names, right classes."""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast._extras import require
from cmx_fast.evaluate.frame_classifier import FrameClassifier
from cmx_fast.networks.clip_weights import check_model, default_model, weights_only
from cmx_fast.networks.weights import digest, load, save

#: Pictures per batch.
BATCH = 64
#: Parts that an Inception Score is the mean of (torchmetrics' default), where each then has at least 50 pictures.
SPLITS, LEAST_PER_SPLIT = 10, 50
#: The text for CLIP that is a class's name and nothing else.
BARE_NAME = "{}"

Pictures = Tensor  # (N, 3, H, W), uint8 or float in [0, 1]


def as_float(pictures: Pictures) -> Tensor:
    """Pictures as float32 in [0, 1]."""
    return pictures / 255 if pictures.dtype == torch.uint8 else pictures.float()


@dataclass(frozen=True)
class Networks:
    """Networks by which pictures are compared: float pictures in [0, 1] to features (B, width), to logits (B, K).

    Both are given on the CPU, whatever device the networks are on. ``fingerprint`` is a hash of their weights.
    """

    name: str
    features: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    width: int
    fingerprint: str


def classifier_networks(classifier: FrameClassifier) -> Networks:
    """Compare by a classifier of the data's own frames: the figures are comparable on that data alone."""
    device = next(classifier.parameters()).device
    return Networks(
        "classifier of real frames",
        lambda pictures: classifier.features(pictures.to(device)).cpu(),
        lambda pictures: classifier(pictures.to(device)).cpu(),
        128,
        digest(classifier.state_dict()),
    )


def inception_networks(weights: Path, device: torch.device | str = "cpu") -> Networks:
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

    network.to(device)

    def output(pictures: Tensor, number: int) -> Tensor:
        return network((255 * pictures).round().byte().to(device))[number].cpu()

    return Networks(
        "Inception-v3", lambda p: output(p, 0), lambda p: output(p, 1), 2048, digest(network.state_dict())
    )


class _Extractor(nn.Module):
    """Wraps a function as torchmetrics takes a feature extractor."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int):
        super().__init__()
        self.function, self.num_features = function, width

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        return self.function(as_float(pictures))


@dataclass(frozen=True)
class Statistics:
    """Sums over the features of pictures: of the features (D,) and of their outer products (D, D), float64."""

    total: Tensor
    outer: Tensor
    count: int


def statistics(networks: Networks, pictures: Pictures, file: Path | None = None) -> Statistics:
    """The statistics of real pictures, for :func:`frechet_distance`: computed once, and kept in ``file``.

    The file is taken if it holds those of these networks and of these very pictures; else it is written anew.
    """
    key = digest([networks.fingerprint, pictures])
    if file is not None and file.is_file():
        try:
            stored = load(file)
        except ValueError as error:
            print(f"{error}; computing it anew", file=sys.stderr)
        else:
            if stored["key"] == key:
                return Statistics(stored["total"], stored["outer"], stored["count"])
    metric = _frechet(networks)
    for part in pictures.split(BATCH):
        metric.update(part, real=True)
    result = Statistics(
        metric.real_features_sum, metric.real_features_cov_sum, int(metric.real_features_num_samples)
    )
    if file is not None:
        save(file, {"key": key, "total": result.total, "outer": result.outer, "count": result.count})
    return result


def frechet_distance(networks: Networks, real: Statistics, generated: Pictures) -> float:
    """FID of Heusel et al. 2017 of pictures from real ones; with few pictures it is biased upwards."""
    metric = _frechet(networks)
    metric.real_features_sum, metric.real_features_cov_sum = real.total, real.outer
    metric.real_features_num_samples = torch.tensor(real.count)
    for part in generated.split(BATCH):
        metric.update(part, real=False)
    return float(metric.compute())


def _frechet(networks: Networks) -> Any:
    fid = require("torchmetrics.image.fid", "generation")
    return fid.FrechetInceptionDistance(_Extractor(networks.features, networks.width))


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


def check_prompt(prompt: str) -> None:
    """Raise ValueError unless a text has one place for a class's name."""
    if prompt.count("{}") != 1:
        raise ValueError(f"the prompt must hold {{}} once, where the class's name goes; got {prompt!r}")


class ClipJudge:
    """Compares pictures with class names by CLIP: OpenCLIP's models with weights from a local file.

    Args:
        model: OpenCLIP's name, e.g. "ViT-B-32"; None: that of OpenAI's ViT-B/32 for weights that are OpenAI's, else
            "ViT-B-32".
        weights: its file.
        class_names: underscores count as spaces.
        prompt: the text in which a name takes the place of "{}": the bare name [O], as the paper names no text.

    Raises:
        FileNotFoundError: no such file.
        MissingExtraError: open_clip_torch is not installed.
        ValueError: a prompt without one "{}", OpenCLIP knows no such model, the weights do not fit it, or they are
            OpenAI's, whose activation is not the model's. Of weights that could be OpenAI's a message says which model
            they would need.
    """

    def __init__(
        self,
        model: str | None,
        weights: Path,
        class_names: Sequence[str],
        *,
        prompt: str = BARE_NAME,
        device: torch.device | str = "cpu",
    ):
        check_prompt(prompt)
        model = model or default_model(weights)
        open_clip = check_model(model, weights)
        try:
            self.clip, _, _ = open_clip.create_model_and_transforms(
                model, pretrained=str(weights), weights_only=weights_only(weights)
            )
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{weights} does not fit OpenCLIP's {model}: {error}") from error
        self.clip.eval().to(device)
        self.device = device
        self.size = open_clip.get_model_preprocess_cfg(self.clip)
        texts = [prompt.replace("{}", name.replace("_", " ")) for name in class_names]
        with torch.no_grad():
            tokens = open_clip.get_tokenizer(model)(texts).to(device)
            self.names = F.normalize(self.clip.encode_text(tokens), dim=1)

    @torch.no_grad()
    def scores(self, pictures: Pictures) -> Tensor:
        """Cosines with the class names, float32 (N, classes)."""
        size = self.size["size"]
        side = size if isinstance(size, int) else size[0]
        mean, std = (torch.tensor(self.size[n], device=self.device)[:, None, None] for n in ("mean", "std"))
        cosines = []
        for part in pictures.split(BATCH):
            own = as_float(part.to(self.device))
            resized = F.interpolate(own, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
            cosines.append(F.normalize(self.clip.encode_image((resized - mean) / std), dim=1) @ self.names.T)
        return torch.cat(cosines).float().cpu()


def recall(scores: Tensor, labels: Tensor, k: int) -> float:
    """The share of pictures whose class is among the k highest scores (N, classes)."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return float((best == labels[:, None]).any(1).double().mean())
