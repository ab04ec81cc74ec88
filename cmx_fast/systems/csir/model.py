"""CSIR brings image and speech of the same room together by supervised contrastive learning.

Qian et al., "Bi-directional Image-Speech Retrieval Through Geometric Consistency". A photograph and a
reverberant sentence are mapped to 64 numbers each; the cosine between them ranks one by the other. Training has
three stages: the speech encoder (section 2.1); the image encoder, where no Places365 weights are at hand; both
together (section 2.3). The paper leaves the networks' sizes open; each docstring says where a size comes from.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from cmx_fast.networks.fpn import IMAGENET_MEAN, IMAGENET_STD
from cmx_fast.networks.resnet import AttentiveResNet, gate_weights
from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.ops import supcon
from cmx_fast.systems.csir.recipe import IMAGE_ENCODERS, CSIRRecipe
from cmx_fast.train.trainable import Batch

#: Places365 has 365 categories; the image feature e^v is the vector of their logits (d_v = 365 in the paper).
PLACES_CATEGORIES = 365


class SpeechEncoder(nn.Module):
    """Log-mel to e^s: a CNN and a Transformer side by side, outputs concatenated (section 2.1, figure 2b).

    (B, n_mels, frames) float -> (B, dim) float; dim = 64 * (n_mels // 32) * (frames // 32) + n_mels, which is
    2432 for the paper's 128 x 301. The paper names the branches, the average over time and the flattening;
    layers and sizes are those of the public emotion-recognition network with the same two branches (with one
    CNN, as the paper says): 3 x [3x3 convolution, batch norm, ReLU, max pool 2/4/4, dropout] of 16, 32,
    64 channels, flattened; max pool over 4 frames, then 4 post-norm layers of width n_mels, 4 heads, 512
    hidden, dropout 0.4, no positions, averaged. The input is standardised per mel band with the training
    set's statistics (ours), kept as buffers.

    Cost: 0.13 GMAC per utterance at 128 x 301.
    """

    mel_mean: Tensor
    mel_std: Tensor

    def __init__(
        self, n_mels: int = 128, frames: int = 301, cnn_dropout: float = 0.0, transformer_dropout: float = 0.4
    ):
        super().__init__()
        if n_mels % 32 or frames < 32:
            raise ValueError(
                f"n_mels must be a multiple of 32 and frames at least 32; got {n_mels} and {frames}"
            )
        self.n_mels, self.frames = n_mels, frames
        self.register_buffer("mel_mean", torch.zeros(n_mels, 1))
        self.register_buffer("mel_std", torch.ones(n_mels, 1))
        blocks: list[nn.Module] = []
        for channels, width, pool in ((1, 16, 2), (16, 32, 4), (32, 64, 4)):
            # Pooling before the ReLU gives the same numbers and leaves it 4 to 16 times less to do.
            blocks += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.MaxPool2d(pool),
                nn.ReLU(inplace=True),
                nn.Dropout(cnn_dropout),
            ]
        self.cnn = nn.Sequential(*blocks, nn.Flatten()).to(memory_format=torch.channels_last)
        layer = nn.TransformerEncoderLayer(
            n_mels, nhead=4, dim_feedforward=512, dropout=transformer_dropout, batch_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)
        self.dim = 64 * (n_mels // 32) * (frames // 2 // 4 // 4) + n_mels

    @classmethod
    def of(cls, recipe: CSIRRecipe) -> SpeechEncoder:
        """An encoder of the recipe's size."""
        return cls(recipe.n_mels, recipe.frames, recipe.cnn_dropout, recipe.transformer_dropout)

    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """Set the training set's per-band mean and standard deviation in dB, (n_mels,) each."""
        self.mel_mean.copy_(mean[:, None])
        self.mel_std.copy_(std[:, None].clamp_min(1e-3))

    def forward(self, logmel: Tensor) -> Tensor:
        if logmel.dim() != 3 or logmel.shape[1:] != (self.n_mels, self.frames):
            raise ValueError(
                f"logmel must have shape (B, {self.n_mels}, {self.frames}), got {tuple(logmel.shape)}"
            )
        x = (logmel - self.mel_mean) / self.mel_std
        tokens = F.max_pool1d(x, 4).transpose(1, 2)  # (B, frames // 4, n_mels)
        image = x[:, None].contiguous(memory_format=torch.channels_last)
        return torch.cat([self.cnn(image), self.transformer(tokens).mean(1)], dim=1)


def image_encoder(name: str = "resnet50", attention: str = "") -> AttentiveResNet:
    """torchvision's ResNet with 365 outputs, (B, 3, S, S) ImageNet-normalised -> (B, 365) logits = e^v.

    "resnet50" is the paper's; "resnet18" and "resnet10" (one block per stage) are for small machines. ``attention``: a
    name of :mod:`cmx_fast.networks.resnet`; the paper has none.
    """
    if name not in IMAGE_ENCODERS:
        raise ValueError(f"image_encoder must be one of {', '.join(IMAGE_ENCODERS)}; got {name!r}")
    return AttentiveResNet(name, attention, PLACES_CATEGORIES)


class FrozenImageEncoder(nn.Module):
    """A pretrained encoder that is never trained: (B, 3, S, S) ImageNet-normalised -> (B, width) = e^v.

    The encoder is no submodule: its weights are in no checkpoint of the run, which finds them again by name.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: VisualEncoder):
        super().__init__()
        self.width = encoder.width
        self._frozen = (encoder,)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> FrozenImageEncoder:
        self._frozen[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        return self._frozen[0]((image * self.std + self.mean).clamp(0, 1))

    @property
    def encoder(self) -> VisualEncoder:
        """The pretrained encoder."""
        return self._frozen[0]

    def fingerprint(self) -> str:
        """The encoder's."""
        return self.encoder.fingerprint()


def load_places365(encoder: ResNet, path: Path | str) -> None:
    """Load a Places365 checkpoint (the project's ``resnet50_places365.pth.tar``) into an image encoder.

    The file is a dictionary with ``state_dict``, whose names begin with ``module.``. Nothing is downloaded.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of that form, or of another architecture; says which names or shapes
        differ.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no Places365 weights at {path}; the Places365 project offers resnet50_places365.pth.tar"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a readable PyTorch checkpoint: {error}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        keys = (
            ", ".join(map(str, list(checkpoint)[:5]))
            if isinstance(checkpoint, dict)
            else type(checkpoint).__name__
        )
        raise ValueError(
            f"{path} has no 'state_dict' (found: {keys}); expected the Places365 project's own file"
        )
    weights = checkpoint["state_dict"]
    bare = [name for name in weights if not name.startswith("module.")]
    if bare:
        raise ValueError(
            f"{path}: the names of its weights should begin with 'module.', but {bare[0]!r} does not"
        )
    try:
        stored = {name.removeprefix("module."): value for name, value in weights.items()}
        encoder.load_state_dict({**gate_weights(encoder), **stored})
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit this image encoder (is it of another architecture?): {error}"
        ) from error


class RT60Scale(nn.Module):
    """RT60 as networks learn it: the logarithm, standardised over the training set (ours).

    Reverberation times are heard, and their errors are reported, as ratios. Times below 50 ms count as 50 ms.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def fit(self, seconds: Tensor) -> None:
        """Set mean and standard deviation of the known ones among the training set's RT60."""
        known = _log_seconds(seconds[~seconds.isnan()])
        if len(known):
            self.mean.copy_(known.mean())
            self.std.copy_(known.std(correction=min(1, len(known) - 1)).clamp_min(1e-3))

    def seconds(self, value: Tensor) -> Tensor:
        """RT60 in seconds of a network's output."""
        return (value * self.std + self.mean).exp()

    def squared_error(self, value: Tensor, seconds: Tensor) -> Tensor:
        """The mean squared error of a network's output (B,) over those whose RT60 is not NaN; 0 if there are none."""
        known = ~seconds.isnan()
        target = torch.where(known, (_log_seconds(seconds) - self.mean) / self.std, 0.0)
        error = torch.where(known, value, 0.0) - target
        return error.square().sum() / known.sum().clamp_min(1)


def _log_seconds(seconds: Tensor) -> Tensor:
    return seconds.clamp_min(0.05).log()


class SpeechPretraining(nn.Module):
    """The speech encoder's own training: space, RT60 and supervised contrast (section 2.1).

    L = CE(space) + w_r * RT60's squared error + w_c * SupCon(normalised projection). The paper names the three terms;
    equal weights, the squared error of the standardised logarithm and the linear heads are ours.
    """

    def __init__(self, recipe: CSIRRecipe, spaces: int):
        super().__init__()
        self.recipe = recipe
        self.encoder = SpeechEncoder.of(recipe)
        self.scale = RT60Scale()
        self.space_head = nn.Linear(self.encoder.dim, spaces)
        self.rt60_head = nn.Linear(self.encoder.dim, 1)
        self.projector = nn.Linear(self.encoder.dim, recipe.pretrain_dim)

    def estimate_rt60(self, logmel: Tensor) -> Tensor:
        """RT60 in seconds by ear: (B, n_mels, frames) -> (B,)."""
        return self.scale.seconds(self.rt60_head(self.encoder(logmel)).squeeze(1))

    def forward(self, batch: Batch) -> Batch:
        features = self.encoder(batch["logmel"])
        return {
            "space": self.space_head(features),
            "rt60": self.rt60_head(features).squeeze(1),
            "projection": self.projector(features),
        }

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        """Loss, its three parts and the accuracy; the batch has "space" (B,) int64 and "rt60" (B,) seconds or NaN."""
        recipe, space = self.recipe, batch["space"]
        ce = F.cross_entropy(outputs["space"], space)
        rt60 = self.scale.squared_error(outputs["rt60"], batch["rt60"])
        contrast = supcon(
            outputs["projection"],
            space,
            1 / recipe.temperature,
            normalize=True,
            reduction=recipe.supcon_reduction,
        )
        return {
            "loss": ce + recipe.rt60_weight * rt60 + recipe.contrast_weight * contrast,
            "ce": ce,
            "rt60": rt60,
            "supcon": contrast,
            "accuracy": accuracy(outputs["space"], space),
        }


class ImagePretraining(nn.Module):
    """The image encoder's own training where there are no Places365 weights: names the space of a picture (ours).

    e^v stays the 365 outputs; a linear head on them names the space, and is thrown away afterwards.
    """

    def __init__(self, recipe: CSIRRecipe, spaces: int):
        super().__init__()
        self.encoder = image_encoder(recipe.image_encoder, recipe.attention)
        self.space_head = nn.Linear(PLACES_CATEGORIES, spaces)

    def forward(self, batch: Batch) -> Batch:
        return {"space": self.space_head(self.encoder(batch["image"]))}

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        ce = F.cross_entropy(outputs["space"], batch["space"])
        return {"loss": ce, "accuracy": accuracy(outputs["space"], batch["space"])}


ImageEncoder: TypeAlias = ResNet | FrozenImageEncoder


class TwoTowers(nn.Module):
    """Base of CSIR and its baselines: two pre-trained encoders whose features e^v and e^s are brought to one scale.

    The features are standardised over the batch (batch norm without parameters, ours). The image's are logits and the
    speech's rectified averages: not standardised, the methods spend their first thousand steps on the features' means.
    ``recipe.standardise`` off leaves the projections as the paper prints them.
    """

    spaces: int

    def __init__(self, recipe: CSIRRecipe, image: ImageEncoder, speech: SpeechEncoder):
        super().__init__()
        self.recipe = recipe
        self.image_encoder, self.speech_encoder = image, speech
        self.image_width = image.width if isinstance(image, FrozenImageEncoder) else PLACES_CATEGORIES
        self.image_norm, self.speech_norm = (
            nn.BatchNorm1d(width, affine=False) if recipe.standardise else nn.Identity()
            for width in (self.image_width, speech.dim)
        )

    def encoders(self) -> list[nn.Parameter]:
        """The parameters that come pre-trained."""
        return [*self.image_encoder.parameters(), *self.speech_encoder.parameters()]

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """e^v (B, d_v) and e^s (B, d_s), from "image" and "logmel" or given as "image_features", "speech_features"."""
        if "speech_features" in batch:
            return self.image_features(batch), batch["speech_features"]
        return self.image_features(batch), self.speech_encoder(batch["logmel"])

    def image_features(self, batch: Batch) -> Tensor:
        """e^v (B, d_v), from "image" or given."""
        return batch["image_features"] if "image_features" in batch else self.image_encoder(batch["image"])

    def project_image(self, features: Tensor) -> Tensor:
        """Map e^v (B, d_v) to the common space (B, D), not normalised."""
        raise NotImplementedError

    def project_speech(self, features: Tensor) -> Tensor:
        """Map e^s (B, d_s) to the common space (B, D), not normalised."""
        raise NotImplementedError

    def encode_image(self, image: Tensor) -> Tensor:
        """Map pictures (B, 3, S, S) to the common space (B, D), not normalised."""
        return self.project_image(self.image_encoder(image))

    def encode_speech(self, logmel: Tensor) -> Tensor:
        """Map log-mels (B, n_mels, frames) to the common space (B, D), not normalised."""
        return self.project_speech(self.speech_encoder(logmel))


class CSIR(TwoTowers):
    """The cross-modal stage (section 2.3): L = alpha * CE(space from both) + (1 - alpha) * SupCon(z^v, z^s).

    z^v = FC_v(e^v) and z^s = FC_s(e^s) are linear to 64 numbers (eqs. 2, 3). The classifier on [z^v, z^s] is
    128 -> 128 -> spaces (ours: the paper says MLP) on z as it is; the contrast and the retrieval take z / ||z||.
    Eq. 7 mixes s and v with indices to 2N: it is read as SupCon over the stacked rows, or, with
    ``recipe.contrast = "cross"``, speech rows against image columns only.
    """

    def __init__(self, recipe: CSIRRecipe, spaces: int, image: ImageEncoder, speech: SpeechEncoder):
        super().__init__(recipe, image, speech)
        self.spaces = spaces
        self.image_projector = nn.Linear(self.image_width, recipe.embed_dim)
        self.speech_projector = nn.Linear(speech.dim, recipe.embed_dim)
        width = 2 * recipe.embed_dim
        self.classifier = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, spaces)
        )

    def project_image(self, features: Tensor) -> Tensor:
        return self.image_projector(self.image_norm(features))

    def project_speech(self, features: Tensor) -> Tensor:
        return self.speech_projector(self.speech_norm(features))

    def forward(self, batch: Batch) -> Batch:
        image_features, speech_features = self.features(batch)
        image, speech = self.project_image(image_features), self.project_speech(speech_features)
        return {
            "image": image,
            "speech": speech,
            "space": self.classifier(torch.cat([image, speech], dim=1)),
        }

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        """Loss, its two parts and the classifier's accuracy; the batch has "space" (B,) int64."""
        recipe, space = self.recipe, batch["space"]
        ce = F.cross_entropy(outputs["space"], space)
        image, speech, scale = outputs["image"], outputs["speech"], 1 / recipe.temperature
        if recipe.contrast == "joint":
            contrast = supcon(
                torch.cat([image, speech]),
                torch.cat([space, space]),
                scale,
                normalize=True,
                reduction=recipe.supcon_reduction,
            )
        else:
            contrast = supcon(
                speech,
                space,
                scale,
                ref_features=image,
                ref_labels=space,
                normalize=True,
                reduction=recipe.supcon_reduction,
            )
        return {
            "loss": recipe.alpha * ce + (1 - recipe.alpha) * contrast,
            "ce": ce,
            "supcon": contrast,
            "accuracy": accuracy(outputs["space"], space),
        }


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of rows whose largest logit is the label's."""
    return (logits.argmax(1) == labels).float().mean()
