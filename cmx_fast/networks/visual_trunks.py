"""The networks behind visual encoders: torchvision's, timm's and OpenCLIP's, each giving maps and a pooled vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Trunk(nn.Module):
    """A network of standardised pictures: ``trunk(x)`` gives its maps, ``trunk(x, pooled=True)`` one vector each.

    ``trunk(x, last=n)`` gives the first n of the maps that are kept, and computes no layer behind them.

    Attributes:
        kept: numbers of the maps that are given; None: all that the network has.
        any_size: False if positions or windows hold the network to the side that it was trained at.
    """

    kept: tuple[int, ...] | None = None
    any_size = True

    def forward(self, x: Tensor, pooled: bool = False, last: int | None = None) -> Any:
        """Maps, a list of (B, C, h, w), or the pooled vectors (B, D)."""
        raise NotImplementedError

    def wanted(self, last: int | None) -> tuple[int, ...] | None:
        """The numbers of the first ``last`` maps that are kept, or of all; None: all that the network has."""
        return self.kept if self.kept is None else self.kept[:last]


class SequentialTrunk(Trunk):
    """A torchvision classifier: its modules up to the pooling, one after the other; pooled, all but the last layer.

    ResNets, VGGs, DenseNets, MobileNets, EfficientNets, ConvNeXts, RegNets, ShuffleNets and MNASNets are built so.
    """

    ENDS = ("avgpool", "fc", "classifier", "head", "AuxLogits", "aux1")

    def __init__(self, model: nn.Module):
        super().__init__()
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ValueError(f"{type(model).__name__} can't be an encoder: no linear layer ends it")
        #: Name of the layer that gives the classes' logits; the pooled vectors are its input.
        self.classifier = linear[-1]
        model.set_submodule(self.classifier, nn.Identity())
        self.model = model

    def steps(self) -> list[nn.Module]:
        """The modules that pictures go through before they are pooled."""
        features = getattr(self.model, "features", None)
        parent = features if isinstance(features, nn.Sequential) else self.model
        steps: list[nn.Module] = []
        for name, child in parent.named_children():
            if parent is self.model and name in self.ENDS:
                break
            steps += child.children() if isinstance(child, nn.Sequential) else [child]
        return steps

    def forward(self, x: Tensor, pooled: bool = False, last: int | None = None) -> Any:
        if pooled:
            return self.model(x)
        maps, wanted = [], self.wanted(last)
        for number, step in enumerate(self.steps()):
            x = step(x)
            if wanted is None or number in wanted:
                maps.append(x)
            if wanted is not None and number == wanted[-1]:
                break
        return maps


class TimmTrunk(Trunk):
    """A timm model without classifier; a ViT's map is the last block's patches after the final norm."""

    def __init__(self, model: Any, any_size: bool):
        super().__init__()
        self.model, self.any_size = model, any_size

    def forward(self, x: Tensor, pooled: bool = False, last: int | None = None) -> Any:
        if pooled:
            return self.model(x)
        wanted = self.wanted(last)
        indices = None if wanted is None else list(wanted)
        return self.model.forward_intermediates(
            x, indices=indices, norm=isotropic(self), stop_early=True, intermediates_only=True
        )


class ClipTrunk(Trunk):
    """OpenCLIP's visual tower; pooled, its embedding in the space of texts."""

    def __init__(self, tower: Any, any_size: bool):
        super().__init__()
        self.model, self.any_size = tower, any_size

    def forward(self, x: Tensor, pooled: bool = False, last: int | None = None) -> Any:
        if pooled:
            return self.model(x)
        wanted = self.wanted(last)
        return self.model.forward_intermediates(
            x,
            indices=None if wanted is None else list(wanted),
            normalize_intermediates=isotropic(self),
            stop_early=True,
            intermediates_only=True,
        )["image_intermediates"]


def isotropic(trunk: Trunk) -> bool:
    """True once a single map is kept: of a ViT's blocks, which all have one stride."""
    return trunk.kept is not None and len(trunk.kept) == 1


@dataclass(frozen=True)
class Measures:
    """The sizes of what a trunk gives: strides of its maps, finest first, their channels, and the pooled width."""

    strides: tuple[int, ...]
    channels: tuple[int, ...]
    width: int


def measure(trunk: Trunk, side: int) -> Measures:
    """Keep the last map of each stride of pictures of this side, and measure it.

    Raises:
        ValueError: the maps' sides do not divide the pictures', or the network can't be taken apart.
    """
    trunk.kept = None
    maps, width = _shapes(trunk, side)
    by_side = {m.shape[2]: n for n, m in enumerate(maps) if _is_map(m)}
    if not _is_map(maps[-1]):
        raise ValueError(f"its last map's shape is {tuple(maps[-1].shape)}, not (B, C, h, w)")
    if any(side % s for s in by_side):
        raise ValueError(f"its maps' sides are {[*by_side]}, which do not divide pictures of {side} pixels")
    trunk.kept = tuple(by_side.values())
    if trunk.any_size:
        doubled, _ = _shapes(trunk, 2 * side)
        if [m.shape[2] for m in doubled] != [2 * s for s in by_side]:
            raise ValueError(f"its maps do not tile pictures of {side} pixels")
    return Measures(tuple(side // s for s in by_side), tuple(maps[n].shape[1] for n in trunk.kept), width)


def _is_map(values: Tensor) -> bool:
    """True for (B, C, h, h), which channels-last maps and tokens are not."""
    return values.dim() == 4 and values.shape[2] == values.shape[3] > 1


def _shapes(trunk: Trunk, side: int) -> tuple[list[Tensor], int]:
    """The maps, without contents, of a picture of this side, and the pooled width.

    The network runs on the meta device, where nothing is computed.
    """
    tensors = [*trunk.named_parameters(remove_duplicate=False), *trunk.named_buffers(remove_duplicate=False)]
    shapes = {name: torch.empty_like(value, device="meta") for name, value in tensors}
    picture = torch.empty(1, 3, side, side, device="meta")
    with torch.no_grad():
        try:
            maps = functional_call(trunk, shapes, (picture,))
            pooled = functional_call(trunk, shapes, (picture,), {"pooled": True})
        except (RuntimeError, TypeError, AttributeError, AssertionError, ValueError) as error:
            raise ValueError(f"its maps can't be read off: {str(error).splitlines()[0]}") from error
    return maps, pooled.shape[1]
