"""Draws the pictures of docs/attention.md: ``python docs/draw_attention.py``.

Of soft attention: how much one position of the output (the cross) depends on each position of the input, by the
gradient, in a module with random weights. Of hard attention: what it picks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from cmx_fast.nn.attention import (
    CBAM,
    ChannelAttention,
    ContextEncoding,
    DefaultBoxes,
    MultiHeadSelfAttention,
    NonLocal,
    ObjectContext,
    PartAttention,
    PositionAttention,
    RecurrentAttentionCrop,
    RegionProposals,
    ResidualAttention,
    SpatialTransformer,
    SqueezeAttention,
    SqueezeExcite,
    ThinPlateTransformer,
    TwoLevelAttention,
    nms,
)

FOLDER = Path(__file__).parent / "attention"
CHANNELS, SIZE, PLACE = 16, 24, (8, 15)
SOFT: dict[str, Callable[[], nn.Module]] = {
    "squeeze_excite": lambda: SqueezeExcite(CHANNELS, 2),
    "cbam": lambda: CBAM(CHANNELS, 2),
    "non_local": lambda: NonLocal(CHANNELS),
    "multi_head": lambda: MultiHeadSelfAttention(CHANNELS, 2, extent=SIZE),
    "residual_attention": lambda: ResidualAttention(CHANNELS, 2),
    "object_context": lambda: ObjectContext(CHANNELS, CHANNELS),
    "object_context_pyramid": lambda: ObjectContext(CHANNELS, CHANNELS, "pyramid", grids=(2,)),
    "position_attention": lambda: PositionAttention(CHANNELS),
    "channel_attention": ChannelAttention,
    "context_encoding": lambda: ContextEncoding(CHANNELS, 3, 8),
    "squeeze_attention": lambda: SqueezeAttention(CHANNELS),
}


def scene() -> Tensor:
    """Features (1, C, S, S): two objects of one kind and one of another on noise."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(2, CHANNELS, generator=generator)
    x = 0.3 * torch.randn(1, CHANNELS, SIZE, SIZE, generator=generator)
    for kind, (top, left) in ((0, (5, 12)), (0, (15, 3)), (1, (15, 15))):
        x[0, :, top : top + 6, left : left + 6] += 1.5 * kinds[kind][:, None, None]
    return x


def influence(module: nn.Module, x: Tensor) -> Tensor:
    """(S, S): the size of the gradient of one output position by each input position, its largest 1."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(
                torch.randn_like(value) * (2 / max(1, value[0].numel())) ** 0.5 if value.dim() > 1 else 0.5
            )
    module.eval()
    x = x.clone().requires_grad_()
    y = module(x)
    y = y[0] if isinstance(y, tuple) else y
    y[0, :, PLACE[0], PLACE[1]].sum().backward()
    size = x.grad[0].norm(dim=0)
    return size / size.max()


def heat(name: str, values: Tensor, x: Tensor) -> None:
    figure = Figure(figsize=(4.2, 2.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(x[0, :3].permute(1, 2, 0).sub(x[0, :3].min()).div(x[0, :3].max() - x[0, :3].min()))
    right.imshow(values.clamp_min(1e-4), cmap="magma", norm=matplotlib.colors.LogNorm(1e-4, 1))
    for axes in (left, right):
        axes.plot(PLACE[1], PLACE[0], "+", color="#38e1ff", ms=10, mew=2)
        axes.set_axis_off()
    figure.savefig(FOLDER / f"{name}.png", dpi=90)


def boxes(name: str, picture: Tensor, found: list[tuple[float, float, float, float]], colour: str) -> None:
    figure = Figure(figsize=(2.1, 2.1), layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture)
    for left, top, right, bottom in found:
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour, lw=1.2))
    axes.set_axis_off()
    figure.savefig(FOLDER / f"{name}.png", dpi=90)


def picture(size: int = 96) -> Tensor:
    """(S, S, 3) in [0, 1]: a disc and a square on grey."""
    steps = torch.arange(size)
    image = torch.full((size, size, 3), 0.25)
    image[(steps[None] - 60) ** 2 + (steps[:, None] - 38) ** 2 < 18**2] = torch.tensor([0.95, 0.55, 0.2])
    image[62:82, 14:34] = torch.tensor([0.3, 0.7, 0.9])
    return image


class _Orange(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        share = ((x[:, 0] - x[:, 2]) > 0.4).float().mean((1, 2))
        return torch.stack([0.5 - share, share - 0.2], 1) * 20


def hard() -> None:
    image = picture()
    batch = image.permute(2, 0, 1)[None]
    path, half = [(20, 20), (44, 30), (60, 38), (66, 44)], 10
    boxes(
        "recurrent_attention", image, [(x - half, y - half, x + half, y + half) for x, y in path], "#38e1ff"
    )
    transformer = SpatialTransformer(nn.Flatten(), batch.numel(), size=(96, 96))
    with torch.no_grad():
        transformer.affine.bias.copy_(torch.tensor([0.42, -0.15, 0.25, 0.15, 0.42, -0.2]))
        seen = transformer(batch)[0].permute(1, 2, 0)
    boxes("spatial_transformer", seen, [], "#38e1ff")
    plate = ThinPlateTransformer(nn.Flatten(), batch.numel(), points=3, size=(96, 96))
    with torch.no_grad():
        bend = torch.tensor([[0.0, 0.35], [0.25, 0.1], [0.0, -0.35], [0.3, 0.0]])
        plate.control.bias.view(9, 2)[[0, 1, 2, 4]] += bend
        seen = plate(batch)[0].permute(1, 2, 0)
    boxes("thin_plate_transformer", seen, [], "#38e1ff")
    parts = PartAttention(3, 2, size=1, hidden=2)
    with torch.no_grad():
        for attend, colour in zip(parts.attend, ((1.0, 0.0, -1.0), (-1.0, 0.0, 1.0)), strict=True):
            for layer in (attend[0], attend[2]):
                layer.weight.zero_()
                layer.bias.zero_()
            attend[0].weight[0, :, 1, 1] = torch.tensor(colour)
            attend[2].weight[0, 0] = 1.0
        smooth = nn.functional.avg_pool2d(batch, 21, 1, 10)
        rows, columns = parts.eval()(smooth).locations[:, 0].T.tolist()
    places = zip(columns, rows, strict=True)
    boxes("part_attention", image, [(x - half, y - half, x + half, y + half) for x, y in places], "#38e1ff")
    crop = RecurrentAttentionCrop(96, least=0.1)
    with torch.no_grad():
        window = torch.tensor([[60 / 96, 38 / 96, 0.22]])
        mask = crop.mask(window, 96, 96)[0, 0, :, :, None]
    boxes("recurrent_attention_crop", image * (0.35 + 0.65 * mask), [(39, 17, 81, 59)], "#38e1ff")
    patches = torch.stack([batch[0, :, y : y + 32, x : x + 32] for y in (0, 32, 64) for x in (0, 32, 64)])[
        None
    ]
    chosen = TwoLevelAttention(_Orange(), _Orange(), [1]).selected(patches)[0]
    corners = [(x, y, x + 31, y + 31) for y in (0, 32, 64) for x in (0, 32, 64)]
    boxes("two_level", image, [c for c, there in zip(corners, chosen, strict=True) if there], "#38e1ff")
    default = DefaultBoxes()
    objects = torch.tensor([[42, 20, 78, 56], [14, 62, 34, 82]]) / 96
    matched = default.match(objects, torch.tensor([1, 2]))
    boxes("default_boxes", image, (96 * default.boxes[matched.labels > 0]).tolist(), "#ffd34d")
    regions = RegionProposals(4, stride=8, sizes=(20, 40), width=8)
    anchors = regions.anchors(12, 12)
    scores = -(anchors - torch.tensor([42.0, 20, 78, 56])).abs().sum(1)
    kept = nms(anchors, scores, 0.7, 6)
    boxes("region_proposals", image, anchors[kept].tolist(), "#ffd34d")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    x = scene()
    for name, make in SOFT.items():
        heat(name, influence(make(), x), x)
    hard()


if __name__ == "__main__":
    main()
