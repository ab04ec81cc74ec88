"""RAM: a network that sees a picture through a few small glimpses, whose places it learns by reward."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal


class GlimpseSequence(NamedTuple):
    """The record of a recurrent attention model's T glimpses of B pictures.

    Attributes:
        log_probabilities: (B, classes) after the last glimpse.
        locations: (T + 1, B, 2), x and y in [-1, 1] of each glimpse, the last one not taken.
        baselines: (T, B) expected rewards. log_policy: (T, B) log density of the location chosen after each glimpse.
    """

    log_probabilities: Tensor
    locations: Tensor
    baselines: Tensor
    log_policy: Tensor


def glimpses(picture: Tensor, location: Tensor, size: int, scales: int = 1, factor: int = 2) -> Tensor:
    """Square patches around ``location``, each ``factor`` times as wide as the one before, averaged to ``size``.

    Pictures (B, C, H, W) and locations (B, 2), x and y in [-1, 1], to (B, scales, C, size, size). Outside the picture
    there are zeros.
    """
    height, width = picture.shape[2:]
    patches = []
    for scale in range(scales):
        side = size * factor**scale
        half = side // 2
        padded = F.pad(picture, [half, half + side % 2] * 2)
        steps = torch.arange(side, device=picture.device)
        x, y = (
            ((0.5 * (location[:, i, None] + 1) * limit).long() + steps).clamp(max=limit + side - 1)
            for i, limit in ((0, width), (1, height))
        )
        batch = torch.arange(picture.shape[0], device=picture.device)[:, None, None]
        patch = padded[batch, :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
        patches.append(F.avg_pool2d(patch, factor**scale))
    return torch.stack(patches, 1)


class _GlimpseNetwork(nn.Module):
    """The glimpse network f_g of section 3.1: a patch and its location as one vector."""

    def __init__(self, pixels: int, patch_width: int, location_width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(pixels, patch_width), nn.Linear(2, location_width)
        self.fc3, self.fc4 = (
            nn.Linear(width, patch_width + location_width) for width in (patch_width, location_width)
        )

    def forward(self, patch: Tensor, location: Tensor) -> Tensor:
        seen = self.fc3(F.relu(self.fc1(patch)))
        return F.relu(seen + self.fc4(F.relu(self.fc2(location))))


class _CoreNetwork(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.i2h, self.h2h = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, glimpse: Tensor, hidden: Tensor) -> Tensor:
        return F.relu(self.i2h(glimpse) + self.h2h(hidden))


class _Locator(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc, self.fc_lt = nn.Linear(width, width // 2), nn.Linear(width // 2, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.fc_lt(F.relu(self.fc(hidden.detach()))))


class _Layer(nn.Module):
    """One linear layer under the name that recurrent-visual-attention gives it."""

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.fc = nn.Linear(inner, outer)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class RecurrentAttention(nn.Module):
    """Mnih et al., "Recurrent Models of Visual Attention", NeurIPS 2014; names of recurrent-visual-attention.

    Args:
        classes. channels: of the pictures. size, scales, factor: of :func:`glimpses` (8, 1, 1: the common code's).
        steps: glimpses (6). deviation: of the Gaussian that locations are drawn from in training (0.05); evaluation
            takes its mean. patch_width, location_width: widths whose sum is the state's (128 and 128).
    """

    def __init__(
        self,
        classes: int,
        channels: int = 1,
        *,
        size: int = 8,
        scales: int = 1,
        factor: int = 1,
        steps: int = 6,
        deviation: float = 0.05,
        patch_width: int = 128,
        location_width: int = 128,
    ):
        super().__init__()
        if min(steps, size, scales, factor) < 1 or deviation <= 0:
            raise ValueError("steps, size, scales and factor must be at least 1, and deviation positive")
        self.size, self.scales, self.factor = size, scales, factor
        self.steps, self.deviation, self.width = steps, deviation, patch_width + location_width
        self.sensor = _GlimpseNetwork(scales * channels * size * size, patch_width, location_width)
        self.rnn = _CoreNetwork(self.width)
        self.locator = _Locator(self.width)
        self.classifier, self.baseliner = _Layer(self.width, classes), _Layer(self.width, 1)

    def forward(self, picture: Tensor, first: Tensor | None = None) -> GlimpseSequence:
        """Take ``steps`` glimpses of pictures (B, C, H, W).

        ``first``: (B, 2), the first location; by default uniformly random, in evaluation the middle.
        """
        b = picture.shape[0]
        if first is None:
            first = picture.new_empty(b, 2).uniform_(-1, 1) if self.training else picture.new_zeros(b, 2)
        hidden = picture.new_zeros(b, self.width)
        locations, baselines, policy = [first], [], []
        for _ in range(self.steps):
            patch = glimpses(picture, locations[-1], self.size, self.scales, self.factor)
            hidden = self.rnn(self.sensor(patch.flatten(1), locations[-1]), hidden)
            mean = self.locator(hidden)
            # Checking its arguments would wait for the GPU.
            drawn = Normal(mean, self.deviation, validate_args=False)
            chosen = drawn.sample() if self.training else mean.detach()
            policy.append(drawn.log_prob(chosen).sum(1))
            baselines.append(self.baseliner(hidden.detach())[:, 0])
            locations.append(chosen.clamp(-1, 1))
        return GlimpseSequence(
            F.log_softmax(self.classifier(hidden), 1),
            torch.stack(locations),
            torch.stack(baselines),
            torch.stack(policy),
        )


def recurrent_attention_loss(sequence: GlimpseSequence, labels: Tensor, weight: float = 0.01) -> Tensor:
    """The sum of negative log-likelihood, the baseline's squared error, and ``weight`` times REINFORCE; 0-d.

    The reward is 1 for a right answer, at every step; its advantage over the baseline gets no gradient. REINFORCE's
    terms are summed over the glimpses and averaged over the batch [the common code].
    """
    reward = (
        (sequence.log_probabilities.argmax(1) == labels)
        .to(sequence.baselines.dtype)
        .expand_as(sequence.baselines)
    )
    advantage = (reward - sequence.baselines).detach()
    reinforce = -(sequence.log_policy * advantage).sum(0).mean()
    return (
        F.nll_loss(sequence.log_probabilities, labels)
        + F.mse_loss(sequence.baselines, reward)
        + weight * reinforce
    )
