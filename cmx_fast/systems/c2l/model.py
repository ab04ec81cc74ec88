"""C2L: unsupervised human parsing by contrasting parts between views and making pixels consistent within one.

Zhang et al., "Contrastive and Consistent Learning for Unsupervised Human Parsing". PiCIE with two modules on the
pyramid's map: one contrasts part vectors between the views, the other refines every pixel by attention and a sparse
code before the clustering. The modules' sizes are ours where the paper gives none (:class:`C2LRecipe` marks them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast._extras import require
from cmx_fast.networks.fpn import MapShape
from cmx_fast.nn import SparseCode, warp
from cmx_fast.ops import info_nce
from cmx_fast.systems.c2l.picie import PiCIE
from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.train.trainable import Batch

#: The steps of Table 1 from PiCIE to C2L: the feed-forward of the pixel consistent module, None without that module.
#: All have the part contrastive module.
FEED_FORWARD = {"part": None, "part+pixel": "mlp", "c2l": "sparse"}


def match_parts(similarity: Tensor) -> Tensor:
    """Match each picture's parts one to one at the largest total of similarities (B, K, K): partners (B, K) int64.

    SciPy's Hungarian matching, a picture after the other on the host.

    Raises:
        ValueError: a similarity that is NaN, or infinite.
    """
    pictures = similarity.detach().double().cpu().numpy()
    if not np.isfinite(pictures).all():
        raise ValueError("the parts' similarities hold NaN or infinity: the network has diverged")
    optimize = require("scipy.optimize", "train")  # here, since it takes a second to import
    partners = [optimize.linear_sum_assignment(picture, maximize=True)[1] for picture in pictures]
    return torch.from_numpy(np.stack(partners)).to(similarity.device)


class GroupParts(nn.Module):
    """The paper's part contrastive module (section 3.2): (B, D, h, w) to K unit vectors, (B, K, part_width).

    1x1 convolution to K groups of ``part_width`` channels, ReLU, 3x3 convolution within each group, mean over the map.
    The ReLU is ours: without it the parts would be linear in the map's mean. Leaving out biases is ours too: with them
    constant, orthogonal parts would satisfy the loss, whatever the picture.

    Each part has weights of its own, and only the picture's other parts are negatives. So the parts are told apart
    before anything is learnt: on unrelated pictures the loss is all but 0 from the start. :class:`AssignedParts` has a
    loss that only the picture's content can lower.
    """

    def __init__(self, width: int, parts: int, part_width: int):
        super().__init__()
        self.parts = parts
        self.reduce = nn.Conv2d(width, parts * part_width, 1, bias=False)
        self.group = nn.Conv2d(parts * part_width, parts * part_width, 3, padding=1, groups=parts, bias=False)

    def forward(self, maps: Tensor, batch: Batch) -> Tensor:
        """The parts of one view; the batch's clusters play no role."""
        pooled = self.group(F.relu(self.reduce(maps))).mean((2, 3))
        return F.normalize(pooled.unflatten(1, (self.parts, -1)).float(), dim=2)

    @staticmethod
    def loss(view1: Tensor, view2: Tensor, temperature: float) -> Tensor:
        """Eq. 1: InfoNCE of the parts (B, K, d) of view 1 against those of view 2; sum over parts, mean over pictures.

        A part's positive is its partner in the Hungarian matching by cosine, which carries no gradient.
        """
        partner = match_parts(view1.detach() @ view2.detach().transpose(1, 2))
        losses = info_nce(view1, view2, 1 / temperature, target=partner, symmetric=False, reduction="none")
        return losses.sum(1).mean()


class AssignedParts(nn.Module):
    """Parts by content (ours): part k is the mean over the pixels that the epoch's clustering gave to cluster k.

    A pixel's cluster is that of view 1 in both views, whose cells show the same places. A layer of two 1x1
    convolutions, shared by all parts, maps to ``part_width`` numbers before the mean. Parts without a pixel are zero
    vectors, and left out of the loss.
    """

    def __init__(self, width: int, parts: int, part_width: int):
        super().__init__()
        self.parts = parts
        self.project = nn.Sequential(
            nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, part_width, 1, bias=False)
        )

    def forward(self, maps: Tensor, batch: Batch) -> Tensor:
        """The parts (B, K, part_width) of one view: unit vectors."""
        assignment = F.one_hot(batch["labels1"].flatten(1), self.parts).to(maps.dtype)
        tokens = self.project(maps).flatten(2).transpose(1, 2)
        return F.normalize((assignment.transpose(1, 2) @ tokens).float(), dim=2)

    @staticmethod
    def loss(view1: Tensor, view2: Tensor, temperature: float) -> Tensor:
        """InfoNCE of view 1's parts against view 2's of the whole batch; sum over parts, mean over pictures.

        A part's positive is the same part of the same picture; every other part and every other picture is a negative.
        """
        present = (view1 != 0).any(2)
        losses = info_nce(view1[present], view2[present], 1 / temperature, symmetric=False, reduction="none")
        return losses.sum() / len(view1)


#: The part contrastive modules by the recipe's ``part``.
PARTS: dict[str, type[GroupParts] | type[AssignedParts]] = {"group": GroupParts, "assignment": AssignedParts}


class PixelConsistency(nn.Module):
    """Refines every pixel by all others (section 3.3): (B, D, h, w) to the same shape.

    F = x + attention(x), multi-head over the pixels, without positions or normalisation. Then F + D a with the sparse
    code a of F ("sparse"), or F + MLP(F) ("mlp", Table 1 row 3). With ``stride`` > 1 keys and values are averages of
    stride x stride cells: the attention's cost falls by its square, and every pixel still asks for itself.

    The attention and the MLP start at zero (ours, as non-local blocks do): the first clusters are then the encoder's,
    not those of a random mixture of its pixels.

    The paper's module is to select the relevant pixels and to suppress the others. With ``recipe.suppressed`` it does
    so explicitly (ours): :func:`suppress_border`.
    """

    def __init__(self, recipe: C2LRecipe, feed_forward: str):
        super().__init__()
        width = recipe.width
        self.heads, self.stride, self.penalty = recipe.heads, recipe.attention_stride, recipe.code_penalty
        self.suppressed = recipe.suppressed
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.code: SparseCode | None = None
        self.mlp: nn.Sequential | None = None
        if feed_forward == "sparse":
            self.code = SparseCode(width, recipe.atoms, steps=recipe.code_steps, lam=recipe.code_penalty)
        else:
            hidden = recipe.mlp_ratio * width
            last = nn.Linear(hidden, width)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), last)

    def attend(self, maps: Tensor) -> Tensor:
        """F of maps (B, D, h, w), as tokens (B, h * w, D)."""
        tokens = maps.flatten(2).transpose(1, 2)
        source = tokens if self.stride == 1 else F.avg_pool2d(maps, self.stride).flatten(2).transpose(1, 2)
        query = self.query(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(source).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return tokens + self.project(attended)

    def forward(self, maps: Tensor) -> tuple[Tensor, Batch]:
        """The refined maps; with the sparse code also "code", its loss, and "active", the share of entries above 0."""
        tokens = self.attend(maps)
        figures: Batch = {}
        if self.code is not None:
            rebuilt, codes = self.code(tokens)
            figures = {
                "code": code_loss(tokens, rebuilt, codes, self.penalty),
                "active": (codes.detach() > 0).float().mean(),
            }
        else:
            assert self.mlp is not None
            rebuilt = self.mlp(tokens)
        refined = (tokens + rebuilt).transpose(1, 2).unflatten(2, maps.shape[2:])
        return suppress_border(refined, self.suppressed) if self.suppressed else refined, figures


def suppress_border(maps: Tensor, share: float) -> Tensor:
    """Set the ``share`` of each picture's pixels that are most like its border to zero: (B, D, h, w) to the same shape.

    People stand before their background, and a picture's border shows mostly that. From each pixel's unit vector the
    border's mean is subtracted, which differs from picture to picture; what is left is shortened by the ``share``
    quantile of its lengths, and not below zero: a group's soft threshold, the step of sparse coding for whole vectors.
    The background is then one point, zero, whatever it looks like.
    """
    unit = F.normalize(maps.float(), dim=1)
    rows, columns = (unit[:, :, [0, -1]].flatten(2), unit[:, :, 1:-1, [0, -1]].flatten(2))
    apart = unit - torch.cat([rows, columns], 2).mean(2)[:, :, None, None]
    length = torch.linalg.vector_norm(apart, dim=1, keepdim=True)
    threshold = quantile(length.detach().flatten(1), share)[:, None, None, None]
    return (apart * F.relu(1 - threshold / length.clamp_min(1e-6))).to(maps.dtype)


def quantile(rows: Tensor, share: float) -> Tensor:
    """The quantile (B,) of rows (B, N), as ``torch.quantile``, which torch.export refuses."""
    rank = share * (rows.shape[1] - 1)
    below, above = math.floor(rank), math.ceil(rank)
    ordered = rows.sort(1).values
    return torch.lerp(ordered[:, below], ordered[:, above], rank - below)


def code_loss(tokens: Tensor, rebuilt: Tensor, codes: Tensor, penalty: float) -> Tensor:
    """Eq. 4 per pixel, (||F - D a||^2 / 2 + penalty * sum(a)) / C: the mean over pixels and channels.

    The paper leaves the mean open; without the division the loss is some hundred times L_view at the start, and all
    that the network learns is to make F small.
    """
    error = (tokens.float() - rebuilt.float()).square().sum(-1) / 2
    return (error + penalty * codes.float().sum(-1)).mean() / tokens.shape[-1]


class C2L(PiCIE):
    """PiCIE with the part contrastive and the pixel consistent module, or one of Table 1's steps towards it.

    L = L_view + alpha * L_r + beta * L_c (eq. 8). L_view is PiCIE's loss with the same recipe, so that with alpha = 0
    and no pixel consistency this is PiCIE; L_c is the mean of both views'. The parts serve the training only.
    """

    def __init__(self, recipe: C2LRecipe, variant: str = "c2l", shapes: Sequence[MapShape] | None = None):
        super().__init__(recipe, shapes)
        if variant not in FEED_FORWARD:
            raise ValueError(f"variant must be one of {', '.join(FEED_FORWARD)}; got {variant!r}")
        self.variant, feed_forward = variant, FEED_FORWARD[variant]
        self.parts = PARTS[recipe.part](recipe.width, recipe.clusters, recipe.part_width)
        self.pixels = None if feed_forward is None else PixelConsistency(recipe, feed_forward)

    def represent(self, maps: Tensor) -> Tensor:
        return maps if self.pixels is None else self.pixels(maps)[0]

    def forward(self, batch: Batch) -> Batch:
        outputs: Batch = {}
        for view, maps in (
            ("1", self.encoder(batch["image1"])),
            ("2", warp(self.encoder(batch["image2"]), batch["warp"])),
        ):
            outputs["parts" + view] = self.parts(maps, batch)
            figures: Batch = {}
            if self.pixels is not None:
                maps, figures = self.pixels(maps)
            outputs |= {"view" + view: maps, **{name + view: value for name, value in figures.items()}}
        return outputs

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        """Loss and its parts: "cluster" as PiCIE's, "part" (L_r), "code" (L_c); "active", share of codes above 0."""
        recipe = self.recipe
        losses = super().losses(outputs, batch)
        losses["part"] = self.parts.loss(outputs["parts1"], outputs["parts2"], recipe.temperature)
        losses["loss"] = losses["loss"] + recipe.part_weight * losses["part"]
        for name in ("code", "active"):
            if name + "1" in outputs:
                losses[name] = (outputs[name + "1"] + outputs[name + "2"]) / 2
        if "code" in losses:
            losses["loss"] = losses["loss"] + recipe.code_weight * losses["code"]
        return losses

    @torch.no_grad()
    def project_(self) -> None:
        """Bring the dictionary's columns back to a norm of at most 1 (eq. 3), after each step of the optimiser."""
        if self.pixels is not None and self.pixels.code is not None:
            self.pixels.code.project_()
