"""EncNet: features softly assigned to codewords weigh the channels and predict the classes of a picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Encoding(nn.Module):
    """Residuals of features to codewords, softly assigned and summed: (B, D, *) to (B, K, D).

    .. math:: e_k = \\sum_i a_{ik} (x_i - c_k), \\qquad a_{ik} = softmax_k(s_k \\lVert x_i - c_k \\rVert^2)

    Zhang et al., "Deep TEN", CVPR 2017, eqs. 1 and 2, and "Context Encoding", CVPR 2018. The (N, K, D) residuals are
    never in memory: distances are |x|^2 - 2 x.c + |c|^2, where |x|^2 s_k matters since s_k differs by codeword, and the
    sum is sum a x - c sum a. Distances are in float32 at least. Parameter names are those of PyTorch-Encoding.
    """

    def __init__(self, channels: int, codewords: int = 32):
        super().__init__()
        bound = (channels * codewords) ** -0.5
        self.codewords = nn.Parameter(torch.empty(codewords, channels).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(codewords).uniform_(-1, 0))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 3 or x.shape[1] != self.codewords.shape[1]:
            raise ValueError(f"x must have shape (B, {self.codewords.shape[1]}, *), got {tuple(x.shape)}")
        flat = x.flatten(2)
        wide = flat.to(torch.promote_types(flat.dtype, torch.float32))
        codewords = self.codewords.to(wide.dtype)
        squares = wide.square().sum(1, keepdim=True) + codewords.square().sum(1)[:, None]
        # Products of half the size: x, |x|^2 and 1 against the codewords, with K first.
        distances = squares - 2 * (codewords @ wide)
        weights = torch.softmax(self.scale.to(wide.dtype)[:, None] * distances, dim=1)
        total = weights @ wide.transpose(1, 2) - weights.sum(2, keepdim=True) * codewords
        return total.to(x.dtype)


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class ContextEncoding(nn.Module):
    """EncNet's module: (B, C, H, W) to the same, and logits (B, classes) of the classes in the picture.

    The encoding's mean over codewords, after a norm and a ReLU, gives a factor per channel: relu(x + x * gamma). The
    logits are for the SE-loss, :func:`presence_loss` with weight 0.2 (the paper's).

    Args:
        channels: C (512 in the networks, after a 3 x 3 convolution). classes. codewords: K (32).
        se_loss: True: with the logits; False: the second result is None.
    """

    def __init__(self, channels: int, classes: int, codewords: int = 32, se_loss: bool = True):
        super().__init__()
        self.encoding = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            Encoding(channels, codewords),
            nn.BatchNorm1d(codewords),
            nn.ReLU(inplace=True),
            _Mean(),
        )
        self.fc = nn.Sequential(nn.Linear(channels, channels), nn.Sigmoid())
        self.selayer = nn.Linear(channels, classes) if se_loss else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        context = self.encoding(x)
        gamma = self.fc(context)[:, :, None, None]
        return F.relu(x + x * gamma), None if self.selayer is None else self.selayer(context)


def presence_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of logits (B, classes) against the presence of classes in labels (B, H, W), 0-d.

    Labels outside [0, classes), such as those to ignore, do not count.
    """
    classes = logits.shape[1]
    known = labels.flatten(1).clamp(-1, classes)
    known = torch.where(known < 0, classes, known)
    there = logits.new_zeros(labels.shape[0], classes + 1).scatter_(1, known, 1.0)[:, :classes]
    return F.binary_cross_entropy_with_logits(logits, there)
