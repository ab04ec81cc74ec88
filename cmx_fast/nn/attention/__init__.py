"""The attention mechanisms of vision networks, each faithful to its original, to use in your own networks.

Soft attention weighs channels or positions and has gradients everywhere; hard attention picks places, and comes with
the losses that train it. torch.compile and torch.export trace modules and losses whole, at any batch size, except where
the number of boxes depends on their values (``nms``, ``proposals``, ``proposal_loss``, ``match_anchors`` and
``DefaultBoxes``' methods).
"""

from cmx_fast.nn.attention.boxes import box_iou, decode, encode, nms
from cmx_fast.nn.attention.crop import (
    AttentionProposal,
    RecurrentAttentionCNN,
    RecurrentAttentionCrop,
    ScaleSequence,
    peak_windows,
    ranking_loss,
)
from cmx_fast.nn.attention.default_boxes import DefaultBoxes, Matched, multibox_loss
from cmx_fast.nn.attention.dual import ChannelAttention, DualAttention, PositionAttention
from cmx_fast.nn.attention.encoding import ContextEncoding, Encoding, presence_loss
from cmx_fast.nn.attention.gates import CBAM, SqueezeExcite
from cmx_fast.nn.attention.multi_head import MultiHeadSelfAttention
from cmx_fast.nn.attention.non_local import NonLocal
from cmx_fast.nn.attention.object_context import ObjectContext
from cmx_fast.nn.attention.part_glimpses import PartAttention, PartSequence, part_attention_loss
from cmx_fast.nn.attention.recurrent import (
    GlimpseSequence,
    RecurrentAttention,
    glimpses,
    recurrent_attention_loss,
)
from cmx_fast.nn.attention.region_proposals import (
    Proposed,
    RegionProposals,
    match_anchors,
    proposal_loss,
    proposals,
)
from cmx_fast.nn.attention.residual import ResidualAttention, ResidualAttentionNetwork
from cmx_fast.nn.attention.spatial_transformer import SpatialTransformer, ThinPlateTransformer
from cmx_fast.nn.attention.squeeze_attention import SqueezeAttention
from cmx_fast.nn.attention.two_level import TwoLevelAttention, group_filters, part_places

__all__ = [
    "CBAM",
    "AttentionProposal",
    "ChannelAttention",
    "ContextEncoding",
    "DefaultBoxes",
    "DualAttention",
    "Encoding",
    "GlimpseSequence",
    "Matched",
    "MultiHeadSelfAttention",
    "NonLocal",
    "ObjectContext",
    "PartAttention",
    "PartSequence",
    "PositionAttention",
    "Proposed",
    "RecurrentAttention",
    "RecurrentAttentionCNN",
    "RecurrentAttentionCrop",
    "RegionProposals",
    "ResidualAttention",
    "ResidualAttentionNetwork",
    "ScaleSequence",
    "SpatialTransformer",
    "SqueezeAttention",
    "SqueezeExcite",
    "ThinPlateTransformer",
    "TwoLevelAttention",
    "box_iou",
    "decode",
    "encode",
    "glimpses",
    "group_filters",
    "match_anchors",
    "multibox_loss",
    "nms",
    "part_attention_loss",
    "part_places",
    "peak_windows",
    "presence_loss",
    "proposal_loss",
    "proposals",
    "ranking_loss",
    "recurrent_attention_loss",
]
