"""ResNets with attention by name: gates in every block, or a non-local block after the third stage."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.video.resnet import BasicBlock as ClipBlock

from cmx_fast.networks.names import ATTENTIONS
from cmx_fast.nn.attention import CBAM, NonLocal, SqueezeExcite
from cmx_fast.nn.attention.gates import SpatialGate

BLOCKS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], list[int]]] = {
    "resnet10": (BasicBlock, [1, 1, 1, 1]),
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
}


class _Gated:
    """A residual block whose branch is gated before the addition; the gate is called ``se`` or ``cbam``."""

    kind = ""

    def __init__(self, inner: int, outer: int, *more: Any, **options: Any):
        super().__init__(inner, outer, *more, **options)  # type: ignore[call-arg]
        channels = outer * self.expansion  # type: ignore[attr-defined]
        reduction = min(16, channels)
        gate = SqueezeExcite(channels, reduction) if self.kind == "se" else CBAM(channels, reduction)
        self.add_module(self.kind, gate)  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        block: Any = self
        residual = x if block.downsample is None else block.downsample(x)
        return getattr(block, block.kind)(_branch(block, x), residual)


def _branch(block: Any, x: Tensor) -> Tensor:
    """The branch that a block adds to its input."""
    if isinstance(block, ClipBlock):
        return block.conv2(block.conv1(x))
    y = F.relu(block.bn1(block.conv1(x)))
    y = block.bn2(block.conv2(y))
    return block.bn3(block.conv3(F.relu(y))) if isinstance(block, Bottleneck) else y


def gated(block: type, attention: str) -> Any:
    """The block's class with gates where ``attention`` is "se" or "cbam", else the class itself.

    Raises:
        ValueError: an unknown name, or "cbam" for clips.
    """
    if attention not in ATTENTIONS:
        names = ", ".join(map(repr, ATTENTIONS))
        raise ValueError(f"attention must be one of {names}; got {attention!r}")
    if attention == "cbam" and issubclass(block, ClipBlock):
        raise ValueError("attention = 'cbam' is for pictures; clips take 'se' or 'non-local'")
    if attention in ("", "non-local"):
        return block
    return type(f"{attention}{block.__name__}", (_Gated, block), {"kind": attention})


def initialise_gates(network: nn.Module) -> None:
    """Set the spatial gates' norms to 0, as CBAM's authors do, so that every position begins at a half."""
    for module in network.modules():
        if isinstance(module, SpatialGate):
            nn.init.zeros_(module.spatial.bn.weight)


def channels_last(network: nn.Module, attention: str = "") -> None:
    """Lay the convolutions' weights out channels last, which their maps then follow: what oneDNN and cuDNN compute in.

    With gates they stay as they are, as the gates' kernels read maps channel by channel.
    """
    if attention in ("", "non-local"):
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            elif isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def after_third_stage(attention: str, channels: int, dimensions: int = 2) -> nn.Module:
    """The non-local block after the third stage, or an identity."""
    return NonLocal(channels, dimensions) if attention == "non-local" else nn.Identity()


class AttentiveResNet(ResNet):
    """torchvision's ResNet with attention; its parameter names, and those of senet.pytorch's and CBAM's ResNets.

    Pictures (B, 3, H, W) to logits (B, classes). A non-local block is called ``non_local``, and starts as the identity.
    """

    def __init__(self, name: str, attention: str = "", classes: int = 1000):
        if name not in BLOCKS:
            raise ValueError(f"name must be one of {', '.join(BLOCKS)}; got {name!r}")
        block, layers = BLOCKS[name]
        super().__init__(gated(block, attention), layers, num_classes=classes)
        if attention == "non-local":
            self.non_local = NonLocal(256 * block.expansion)
        initialise_gates(self)
        channels_last(self, attention)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        if hasattr(self, "non_local"):
            x = self.non_local(x)
        return self.fc(self.avgpool(self.layer4(x)).flatten(1))


def gate_weights(network: nn.Module) -> dict[str, Tensor]:
    """The attention's entries of a network's state dict, which the weights of a plain ResNet lack."""
    parts = {*ATTENTIONS[1:3], "non_local"}
    return {name: value for name, value in network.state_dict().items() if parts & set(name.split("."))}


def resnet18(attention: str = "", classes: int = 1000) -> AttentiveResNet:
    """ResNet-18 with "se", "cbam" or "non-local" attention, or none."""
    return AttentiveResNet("resnet18", attention, classes)


def resnet50(attention: str = "", classes: int = 1000) -> AttentiveResNet:
    """ResNet-50 with "se", "cbam" or "non-local" attention, or none."""
    return AttentiveResNet("resnet50", attention, classes)


def resnet101(attention: str = "", classes: int = 1000) -> AttentiveResNet:
    """ResNet-101 with "se", "cbam" or "non-local" attention, or none."""
    return AttentiveResNet("resnet101", attention, classes)
