"""Every layer as a call of any size; see tests/support/sized_calls.py."""

from __future__ import annotations

import torch
from sized import Sized, layer, maps, of
from torch import Tensor, nn

from cmx_fast.nn import LogFilterbank, PowerSpectrogram, SparseCode, SpecAugment, attention, warp
from cmx_fast.nn.logmel import LogMel


def _boxes(count: int) -> Tensor:
    corner = 40 * torch.rand(count, 2)
    return torch.cat([corner, corner + 4 + 20 * torch.rand(count, 2)], 1)


def _matched(offsets: Tensor, logits: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    targets = [attention.Matched(*pair) for pair in zip(labels.unbind(), wanted.unbind(), strict=True)]
    return attention.multibox_loss(offsets, logits, targets)


def _two_scales() -> nn.Module:
    def pooled() -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())

    return attention.RecurrentAttentionCNN(
        [nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)],
        [nn.Sequential(pooled(), nn.Linear(16, 3)), nn.Sequential(pooled(), nn.Linear(16, 3))],
        [nn.Sequential(pooled(), attention.AttentionProposal(16, 6))],
        attention.RecurrentAttentionCrop(7, steepness=2.0),
    )


LAYERS: dict[str, Sized] = {
    "LogMel": Sized(
        "nn.logmel.LogMel",
        lambda: LogMel(8000, 64, 16, 10).eval(),
        lambda b, n: (torch.randn(b, 64 * n),),
    ),
    "LogFilterbank": Sized(
        "nn.LogFilterbank",
        lambda: LogFilterbank(8000, nfft=256, filters=12).eval(),
        lambda b, n: (torch.randn(b, 100 * n),),
    ),
    "PowerSpectrogram": Sized(
        "nn.PowerSpectrogram",
        lambda: PowerSpectrogram(8000, 64, 32).eval(),
        lambda b, n: (torch.randn(b, 64 * n),),
        0,
    ),
    "SpecAugment": Sized(
        "nn.SpecAugment", lambda: SpecAugment().train(), lambda b, n: (torch.randn(b, 12, 12 + n),)
    ),
    "SparseCode": Sized(
        "nn.SparseCode", lambda: SparseCode(8, 6, steps=3), lambda b, n: (torch.randn(b, n, 8),)
    ),
    "warp": Sized(
        "nn.warp",
        of(lambda x, theta: warp(x, theta)),
        lambda b, n: (torch.randn(b, 3, n, n), 0.5 * torch.randn(b, 2, 3)),
        2,
    ),
    "SqueezeExcite": Sized("nn.attention.SqueezeExcite", layer(lambda: attention.SqueezeExcite(16, 4)), maps(16, 16)),
    "CBAM": Sized("nn.attention.CBAM", layer(lambda: attention.CBAM(16, 4)), maps(16, 16)),
    **{
        f"NonLocal-{mode}": Sized(
            "nn.attention.NonLocal",
            layer(lambda mode=mode: attention.NonLocal(6, mode=mode, scale=True)),  # type: ignore[misc]
            maps(6, more=2),
        )
        for mode in ("embedded", "gaussian", "dot", "concatenate")
    },
    "NonLocal-video": Sized(
        "nn.attention.NonLocal",
        layer(lambda: attention.NonLocal(6, 3)),
        lambda b, n: (torch.randn(b, 6, 3, n, n + 1),),
    ),
    "PositionAttention": Sized(
        "nn.attention.PositionAttention", layer(lambda: attention.PositionAttention(8)), maps(8)
    ),
    "ChannelAttention": Sized(
        "nn.attention.ChannelAttention", layer(lambda: attention.ChannelAttention()), maps(8)
    ),
    "DualAttention": Sized(
        "nn.attention.DualAttention", layer(lambda: attention.DualAttention(16, 3, 8)), maps(16)
    ),
    "ObjectContext-base": Sized(
        "nn.attention.ObjectContext", layer(lambda: attention.ObjectContext(8, 6)), maps(8)
    ),
    "ObjectContext-pyramid": Sized(
        "nn.attention.ObjectContext",
        layer(lambda: attention.ObjectContext(8, 6, "pyramid", grids=(1, 2))),
        maps(8, more=1),
    ),
    "ObjectContext-asp": Sized(
        "nn.attention.ObjectContext", layer(lambda: attention.ObjectContext(8, 6, "asp")), maps(8, more=2)
    ),
    "Encoding": Sized("nn.attention.Encoding", layer(lambda: attention.Encoding(8, 5)), maps(8)),
    "ContextEncoding": Sized(
        "nn.attention.ContextEncoding", layer(lambda: attention.ContextEncoding(8, 3, 5)), maps(8)
    ),
    "presence_loss": Sized(
        "nn.attention.presence_loss",
        of(lambda logits, labels: attention.presence_loss(logits, labels)),
        lambda b, n: (torch.randn(b, 4), torch.randint(-1, 5, (b, n, n))),
    ),
    "SqueezeAttention": Sized(
        "nn.attention.SqueezeAttention", layer(lambda: attention.SqueezeAttention(8)), maps(8, more=1)
    ),
    "ResidualAttention": Sized(
        "nn.attention.ResidualAttention", layer(lambda: attention.ResidualAttention(8, 2)), maps(8, more=4)
    ),
    "ResidualAttentionNetwork": Sized(
        "nn.attention.ResidualAttentionNetwork",
        layer(lambda: attention.ResidualAttentionNetwork(3, (1,), 4)),
        lambda b, n: (torch.randn(b, 3, 16 + n, 20 + n),),
    ),
    "SpatialTransformer": Sized(
        "nn.attention.SpatialTransformer",
        layer(
            lambda: attention.SpatialTransformer(
                nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), width=12, size=(4, 5)
            )
        ),
        maps(3),
    ),
    "ThinPlateTransformer": Sized(
        "nn.attention.ThinPlateTransformer",
        layer(
            lambda: attention.ThinPlateTransformer(
                nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), width=12, points=3
            )
        ),
        maps(3),
    ),
    "MultiHeadSelfAttention": Sized(
        "nn.attention.MultiHeadSelfAttention",
        layer(lambda: attention.MultiHeadSelfAttention(8, 2, extent=40)),
        maps(8, more=1),
    ),
    "PartAttention": Sized(
        "nn.attention.PartAttention, nn.attention.PartSequence",
        layer(lambda: attention.PartAttention(8, 3, hidden=4)),
        maps(8, more=1),
    ),
    "part_attention_loss": Sized(
        "nn.attention.part_attention_loss",
        of(
            lambda scores, policy, labels: attention.part_attention_loss(
                attention.PartSequence(scores.log_softmax(2), scores, labels, policy), labels
            )
        ),
        lambda b, n: (torch.randn(n + 1, b, 4), torch.randn(n, b), torch.randint(4, (b,))),
        2,
    ),
    "RecurrentAttentionCNN": Sized(
        "nn.attention.RecurrentAttentionCNN, nn.attention.ScaleSequence",
        layer(_two_scales),
        lambda b, n: (torch.randn(b, 3, n, n + 2),),
    ),
    "peak_windows": Sized(
        "nn.attention.peak_windows", of(lambda x: attention.peak_windows(x)), maps(4, more=1), 0
    ),
    "AttentionProposal": Sized(
        "nn.attention.AttentionProposal",
        layer(lambda: attention.AttentionProposal(8 * 9, 6)),
        lambda b, n: (torch.randn(b, 8, 3, 3),),
    ),
    "RecurrentAttentionCrop": Sized(
        "nn.attention.RecurrentAttentionCrop",
        layer(lambda: attention.RecurrentAttentionCrop(5, steepness=2.0)),
        lambda b, n: (torch.randn(b, 3, n, n + 2), 0.2 + 0.4 * torch.rand(b, 3)),
        2,
    ),
    "ranking_loss": Sized(
        "nn.attention.ranking_loss",
        of(lambda one, two, labels: attention.ranking_loss([one, two], labels)),
        lambda b, n: (torch.randn(b, 4), torch.randn(b, 4), torch.randint(4, (b,))),
        2,
    ),
    "RecurrentAttention": Sized(
        "nn.attention.RecurrentAttention, nn.attention.GlimpseSequence, nn.attention.glimpses",
        layer(lambda: attention.RecurrentAttention(3, 2, size=4, steps=2, patch_width=8, location_width=8)),
        lambda b, n: (torch.randn(b, 2, 8 + n, 9 + n),),
    ),
    "recurrent_attention_loss": Sized(
        "nn.attention.recurrent_attention_loss",
        of(
            lambda scores, baselines, policy, labels: attention.recurrent_attention_loss(
                attention.GlimpseSequence(scores.log_softmax(1), baselines, baselines, policy), labels
            )
        ),
        lambda b, n: (torch.randn(b, 4), torch.randn(n, b), torch.randn(n, b), torch.randint(4, (b,))),
        3,
    ),
    "RegionProposals": Sized(
        "nn.attention.RegionProposals, nn.attention.Proposed",
        layer(lambda: attention.RegionProposals(4, sizes=(8, 16), width=6)),
        maps(4, more=1),
    ),
    "TwoLevelAttention": Sized(
        "nn.attention.TwoLevelAttention",
        layer(
            lambda: attention.TwoLevelAttention(
                nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), [1, 2]
            )
        ),
        lambda b, n: (torch.randn(b, n, 3, 4, 4),),
    ),
    "part_places": Sized(
        "nn.attention.part_places",
        of(lambda x, groups: attention.part_places(x, groups, 3)),
        lambda b, n: (torch.randn(b, 6, n, n), torch.arange(6) % 3),
        0,
    ),
    "boxes": Sized(
        "nn.attention.encode, nn.attention.decode, nn.attention.box_iou",
        of(
            lambda boxes, anchors, offsets: (
                attention.encode(boxes, anchors),
                attention.decode(offsets, anchors),
                attention.box_iou(boxes, anchors),
            )
        ),
        lambda b, n: (_boxes(b), _boxes(b), torch.randn(b, 4)),
    ),
    "multibox_loss": Sized(
        "nn.attention.multibox_loss, nn.attention.Matched",
        of(_matched),
        lambda b, n: (
            torch.randn(3, n, 4), torch.randn(3, n, 5), torch.randint(5, (3, n)), torch.randn(3, n, 4),
        ),
        2,
    ),
}  # fmt: skip
