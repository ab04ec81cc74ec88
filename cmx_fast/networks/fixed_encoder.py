"""The base of pretrained encoders: fixed until they are unfrozen."""

from __future__ import annotations

from torch import nn
from typing_extensions import Self


class FixedEncoder(nn.Module):
    """A pretrained network whose parameters get no gradient and which stays in evaluation, until :meth:`unfreeze`.

    Gradients go through to inputs that ask for them.
    """

    fixed = True

    def fix(self) -> None:
        """Take the gradients off all parameters; for the end of a subclass's ``__init__``."""
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation, whatever ``mode`` is, while the network is fixed."""
        return super().train(mode and not self.fixed)

    def unfreeze(self) -> Self:
        """Let the network be trained from now on; gives the encoder itself."""
        self.fixed = False
        return self.requires_grad_(True).train()
