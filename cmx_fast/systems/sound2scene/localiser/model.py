"""LVS locates a sound's source in a picture, learnt from videos alone; Sound2Scene picks its pairs by such a model.

Chen et al., "Localizing Visual Sounds the Hard Way", CVPR 2021, eqs. 3 to 6; [R] marks what only its code says.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.networks.audio_video import ResNet18
from cmx_fast.networks.fpn import IMAGENET_MEAN, IMAGENET_STD
from cmx_fast.nn import PowerSpectrogram
from cmx_fast.nn.power_spectrogram import LOG_FLOOR, lasting
from cmx_fast.systems.sound2scene.localiser.recipe import LocaliserRecipe
from cmx_fast.train.trainable import Batch

#: Samples that the spectrogram's windows share, and the divisor of its logarithm [R].
OVERLAP, SCALE = 274, 12.0


class Localiser(nn.Module):
    """Maps pictures (B, 3, S, S) in [0, 1] and waves (B, samples) at 16 kHz to cosines, S / 16 a side.

    Each has a ResNet-18. The pictures' last stage keeps its size, so 224 pixels give a map of 14 x 14 places; the
    sounds' map is pooled to its maximum. 22.3 M parameters.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, recipe: LocaliserRecipe):
        super().__init__()
        self.recipe = recipe
        self.picture_net = ResNet18(1, channels=3, width=recipe.width, last_stride=1)
        self.sound_net = ResNet18(1, channels=1, width=recipe.width)
        for network in (self.picture_net, self.sound_net):
            network.fc = nn.Identity()  # type: ignore[assignment]
        self.spectrogram = PowerSpectrogram(noverlap=OVERLAP)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def encode_picture(self, picture: Tensor) -> Tensor:
        """Unit features of pictures at each place (B, D, h, w)."""
        return F.normalize(self.picture_net.maps((picture - self.mean) / self.std), dim=1)

    def encode_sound(self, wave: Tensor) -> Tensor:
        """Unit features of waves (B, D)."""
        with torch.no_grad():
            level = torch.log(self.spectrogram(lasting(wave, self.recipe.seconds)) + LOG_FLOOR) / SCALE
        return F.normalize(self.sound_net.maps(level[:, None]).amax((2, 3)), dim=1)

    def forward(self, batch: Batch) -> Batch:
        """Features "picture" (B, D, h, w) and "sound" (B, D) of a batch's "picture" and "wave"."""
        return {"picture": self.encode_picture(batch["picture"]), "sound": self.encode_sound(batch["wave"])}

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        return {"loss": localisation_loss(outputs["picture"], outputs["sound"], self.recipe)}

    def agreement(self, picture: Tensor, sound: Tensor) -> Tensor:
        """The mean cosine of each picture's sounding places with its sound: (B, D, h, w), (B, D) to (B,)."""
        return foreground(torch.einsum("bdhw,bd->bhw", picture, sound).flatten(1), self.recipe)


def foreground(cosines: Tensor, recipe: LocaliserRecipe) -> Tensor:
    """The mean of cosines (*, places), weighted softly towards places where they are high: (*)."""
    weight = torch.sigmoid((cosines - recipe.positive) / recipe.softness)
    return (weight * cosines).sum(-1) / weight.sum(-1)


def localisation_loss(picture: Tensor, sound: Tensor, recipe: LocaliserRecipe) -> Tensor:
    """Eq. 6: each picture's sounding places against every other sound and against its own background; 0-d.

    Takes B x B x h w cosines. A picture's own sound is left out of the others; the code multiplies it by -99.

    Args:
        picture: (B, D, h, w), unit vectors, float32.
        sound: (B, D), unit vectors, float32.
    """
    cosines = torch.einsum("idhw,jd->ijhw", picture, sound).flatten(2)
    own = cosines.diagonal().T  # (B, places)
    background = 1 - torch.sigmoid((own - recipe.negative) / recipe.softness)
    others = foreground(cosines, recipe).masked_fill(
        torch.eye(len(sound), dtype=torch.bool, device=sound.device), -torch.inf
    )
    logits = torch.cat(
        [
            foreground(own, recipe)[:, None],
            others,
            ((background * own).sum(1) / background.sum(1))[:, None],
        ],
        1,
    )
    return -F.log_softmax(logits / recipe.temperature, dim=1)[:, 0].mean()


def load_imagenet_resnet18(localiser: Localiser, path: Path | str) -> None:
    """Start the pictures' network from torchvision's ImageNet weights, ``resnet18-f37072fd.pth``, as LVS does.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a checkpoint, or a narrower network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no ResNet-18 weights {path}")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        localiser.picture_net.load_state_dict({n: v for n, v in stored.items() if not n.startswith("fc.")})
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} does not fit ResNet-18: {error}") from error
