"""LVS: where in a picture a sound comes from, learnt from videos alone; Sound2Scene picks its pairs by such a model.

Chen et al., "Localizing Visual Sounds the Hard Way", CVPR 2021, eqs. 3 to 6, with what only its code says marked [R].
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

#: Of the spectrogram [R]: samples that windows share, and what its logarithm is divided by.
OVERLAP, SCALE = 274, 12.0


class Localiser(nn.Module):
    """Pictures (B, 3, S, S) in [0, 1] and waves (B, samples) at 16 kHz to maps of cosines, S / 16 a side.

    Two ResNet-18: a picture's last stage keeps its size, so its map has 14 x 14 places at 224 pixels; a sound's map is
    pooled to its maximum. 22.3 M parameters.
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

    def look(self, picture: Tensor) -> Tensor:
        """Unit features at each place (B, D, h, w)."""
        return F.normalize(self.picture_net.maps((picture - self.mean) / self.std), dim=1)

    def listen(self, wave: Tensor) -> Tensor:
        """Unit features (B, D)."""
        with torch.no_grad():
            level = torch.log(self.spectrogram(lasting(wave, self.recipe.seconds)) + LOG_FLOOR) / SCALE
        return F.normalize(self.sound_net.maps(level[:, None]).amax((2, 3)), dim=1)

    def forward(self, batch: Batch) -> Batch:
        """Of a batch's "picture" and "wave": "look" (B, D, h, w) and "sound" (B, D)."""
        return {"look": self.look(batch["picture"]), "sound": self.listen(batch["wave"])}

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        return {"loss": localisation_loss(outputs["look"], outputs["sound"], self.recipe)}

    def agreement(self, look: Tensor, sound: Tensor) -> Tensor:
        """How well each picture's sounding places agree with its sound: (B, D, h, w), (B, D) to cosines (B,)."""
        return foreground(torch.einsum("bdhw,bd->bhw", look, sound).flatten(1), self.recipe)


def foreground(cosines: Tensor, recipe: LocaliserRecipe) -> Tensor:
    """The mean of cosines (*, places) over where they are high, softly: (*)."""
    weight = torch.sigmoid((cosines - recipe.positive) / recipe.softness)
    return (weight * cosines).sum(-1) / weight.sum(-1)


def localisation_loss(look: Tensor, sound: Tensor, recipe: LocaliserRecipe) -> Tensor:
    """Eq. 6: each picture's sounding places against every other sound, and against its own background; 0-d.

    One B x B x h w tensor of cosines. Unlike the code, which multiplies a picture's own sound among the others by -99,
    it is left out.

    Args:
        look: (B, D, h, w), sound: (B, D), of unit length, float32.
    """
    cosines = torch.einsum("idhw,jd->ijhw", look, sound).flatten(2)
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
