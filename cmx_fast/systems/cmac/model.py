"""CMAC: video and sound encoders, each of which learns from the other one where to attend.

Min et al., "Cross-Modal Attention Consistency for Video-Audio Unsupervised Learning", ICCV 2021. Each modality has an
encoder f, a transformation g whose mean over all positions is the sample's filter (eq. 3), a head that embeds the
filter for the contrastive loss (eq. 7), and a saliency head h (eq. 5). The filter of the other modality is correlated
with the features; h learns to predict the attention map that results (eqs. 4 and 6).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cmx_fast.distributed import all_rows, info_nce
from cmx_fast.losses import MemoryBank
from cmx_fast.networks.audio_video import Conv3d, R2Plus1D, ResNet9, TemporalEncoder
from cmx_fast.nn import LogFilterbank, SpecAugment
from cmx_fast.ops import attention_consistency, pyramid_correlation
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.train.trainable import Batch

#: Rows of the ablations with the terms of their losses. "across": eq. 7 or eq. 2 between the modalities; "within": two
#: clips of a recording, each modality for itself (the paper does not define its "single modality" further);
#: "attention": eq. 6.
OBJECTIVES: dict[str, frozenset[str]] = {
    "single": frozenset({"within"}),
    "attention": frozenset({"attention"}),
    "contrast": frozenset({"across"}),
    "cmac": frozenset({"across", "attention"}),
}


def projection(recipe: CMACRecipe) -> nn.Module:
    """The head that embeds a filter (B, filters) as (B, embedding)."""
    if recipe.head != "mlp":
        return nn.Linear(recipe.filters, recipe.embedding, bias=False)
    return nn.Sequential(
        nn.Dropout(recipe.dropout),
        nn.Linear(recipe.filters, recipe.filters, bias=False),
        nn.BatchNorm1d(recipe.filters),
        nn.ReLU(inplace=True),
        nn.Dropout(recipe.dropout),
        nn.Linear(recipe.filters, recipe.embedding),
    )


VideoEncoder: TypeAlias = R2Plus1D | TemporalEncoder


def video_encoder(recipe: CMACRecipe) -> VideoEncoder:
    """The recipe's video encoder with fresh weights: R(2+1)D on frames, or temporal convolutions on maps of them."""
    if recipe.frame_channels:
        return TemporalEncoder(recipe.frame_channels, recipe.width, recipe.frame_motion)
    return R2Plus1D(recipe.blocks, recipe.width, recipe.last_stride, recipe.attention)


class Embedder(nn.Module):
    """Encoder f, transformation g (1x1 convolution and batch norm) and head of one modality."""

    def __init__(self, encoder: VideoEncoder | ResNet9, recipe: CMACRecipe, head: nn.Module):
        super().__init__()
        volume = not isinstance(encoder, ResNet9)
        self.encoder = encoder
        self.transform = nn.Sequential(
            (nn.Conv3d if volume else nn.Conv2d)(encoder.channels, recipe.filters, 1, bias=False),
            (nn.BatchNorm3d if volume else nn.BatchNorm2d)(recipe.filters),
        )
        self.head = head

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The maps of f, those of g, the filter (B, filters) and the unit embedding (B, embedding)."""
        maps = self.encoder(inputs)
        features = self.transform(maps)
        kernel = features.flatten(2).mean(2)
        return maps, features, kernel, F.normalize(self.head(kernel).float(), dim=1)


def saliency(encoder: VideoEncoder | ResNet9) -> nn.Sequential:
    """The head h of eq. 5 without its sigmoid: a convolution block to a quarter of the channels, then to one (ours)."""
    volume, hidden = not isinstance(encoder, ResNet9), encoder.channels // 4
    convolution, norm = (Conv3d, nn.BatchNorm3d) if volume else (nn.Conv2d, nn.BatchNorm2d)
    return nn.Sequential(
        convolution(encoder.channels, hidden, 3, padding=1, bias=False),
        norm(hidden),
        nn.ReLU(inplace=True),
        convolution(hidden, 1, 1),
    )


def age(bank: MemoryBank, batch: int) -> float:
    """The mean age in steps of a bank's keys of samples, ``batch`` of which join it at each step; 0 of none."""
    known = int((bank.ids >= 0).sum())
    return float((torch.arange(known) // batch + 1).double().mean()) if known else 0.0


class CMAC(nn.Module):
    """L = L_cl(v, a) + L_cl(a, v) + lambda (L_ac(video) + L_ac(audio)) (eq. 8), or a row of the ablations.

    A training batch has "clip" (B, 3, T, S, S), or maps of its frames (B, C, T, h, w), "wave" (B, samples) and "index"
    (B,) int64, the recordings; with two clips per recording also "clip2" and "wave2". Momentum copies of encoder, g and
    head make the keys, which join the banks after the loss. A recording's own older keys are left out of its negatives.
    The batch's other samples are negatives beside the banks' keys (``bank_batch``): keys of the other modality, and
    embeddings of the query's own.

    Args:
        objective: a key of OBJECTIVES.
    """

    def __init__(self, recipe: CMACRecipe, objective: str = "cmac"):
        super().__init__()
        if objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {objective!r}")
        self.recipe, self.objective, self.terms = recipe, objective, OBJECTIVES[objective]
        if recipe.within_positives and "across" in self.terms:
            self.terms |= {"within"}
        heads = (
            [projection(recipe)] * 2 if recipe.head == "shared" else [projection(recipe), projection(recipe)]
        )
        self.video = Embedder(video_encoder(recipe), recipe, heads[0])
        self.audio = Embedder(ResNet9(recipe.audio_width, recipe.attention), recipe, heads[1])
        self.video_saliency, self.audio_saliency = saliency(self.video.encoder), saliency(self.audio.encoder)
        self.filterbank = LogFilterbank(recipe.sample_rate)
        self.augment = SpecAugment(
            freq_width=recipe.freq_width, time_width=recipe.time_width, warp=recipe.time_warp
        )
        self.keys: nn.ModuleDict | None = None
        if recipe.bank and self.terms != {"attention"}:
            copies = copy.deepcopy(nn.ModuleDict({"video": self.video, "audio": self.audio}))
            self.keys = copies.requires_grad_(False)
            self.video_bank, self.audio_bank = (
                MemoryBank(recipe.bank, recipe.embedding, persistent=True) for _ in "va"
            )
        self._average = get_ema_multi_avg_fn(recipe.momentum)

    @property
    def two_clips(self) -> bool:
        """True if a training batch needs a second clip of each recording."""
        return "within" in self.terms

    def trained(self) -> Iterable[nn.Parameter]:
        """The parameters that the optimiser changes: all but the key encoders'."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    @torch.no_grad()
    def spectrogram(self, wave: Tensor) -> Tensor:
        """Waves (B, samples) to standardised log filterbanks (B, 1, 257, frames), augmented in training."""
        if self.training and self.recipe.volume:
            gain = 1 + self.recipe.volume * (2 * torch.rand(len(wave), 1) - 1)
            wave = wave * gain.to(wave.device)
        bands = (self.filterbank(wave) - self.recipe.audio_mean) / self.recipe.audio_std
        return (self.augment(bands) if self.training else bands)[:, None]

    def forward(self, batch: Batch) -> Batch:
        """Embeddings, keys (no gradient) and the consistency losses, as the objective needs them."""
        clip, sound = batch["clip"], self.spectrogram(batch["wave"])
        video_maps, video, video_filter, video_query = self.video(clip)
        audio_maps, audio, audio_filter, audio_query = self.audio(sound)
        outputs = {"video": video_query, "audio": audio_query}
        if "attention" in self.terms and self.recipe.consistency:
            outputs |= {
                "video attention": self.consistency(video, audio_filter, self.video_saliency(video_maps)),
                "audio attention": self.consistency(audio, video_filter, self.audio_saliency(audio_maps)),
            }
        if "across" in self.terms and self.keys is not None:
            outputs |= self.make_keys(clip, sound, "")
        if "within" in self.terms:
            if self.keys is None:
                second = self.spectrogram(batch["wave2"])
                outputs |= {"video key2": self.video(batch["clip2"])[3], "audio key2": self.audio(second)[3]}
            else:
                outputs |= self.make_keys(batch["clip2"], self.spectrogram(batch["wave2"]), "2")
        return outputs

    def consistency(self, features: Tensor, kernel: Tensor, logits: Tensor) -> Tensor:
        """L_ac of eq. 6 of one modality."""
        recipe = self.recipe
        loss = attention_consistency(
            features,
            kernel,
            logits.squeeze(1).sigmoid(),
            levels=recipe.levels,
            norm=recipe.norm,
            teach_features=recipe.teach_features,
        )
        assert isinstance(loss, Tensor)
        return loss

    @torch.no_grad()
    def make_keys(self, clip: Tensor, sound: Tensor, suffix: str) -> Batch:
        """Unit keys of both modalities by the momentum encoders; ``suffix`` ends their names."""
        assert self.keys is not None
        return {
            f"{name} key{suffix}": self.keys_of(name, inputs)
            for name, inputs in (("video", clip), ("audio", sound))
        }

    def keys_of(self, name: str, inputs: Tensor) -> Tensor:
        """The keys (B, embedding) of a modality; in training the ``key_splits`` parts of the batch one by one."""
        assert self.keys is not None
        encoder, splits = self.keys[name], self.recipe.key_splits
        if splits == 1 or not self.training:
            return encoder(inputs)[3]
        order = torch.randperm(len(inputs), device=inputs.device)
        shuffled = torch.cat([encoder(part)[3] for part in inputs[order].tensor_split(splits)])
        return torch.empty_like(shuffled).index_copy_(0, order, shuffled)

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        """Loss and its parts: "across", L_cl(v, a) + L_cl(a, v); "within", likewise; and the two L_ac.

        "bank age" is the mean age of the banks' keys, in steps; random keys, which they begin with, don't count.
        In a process group the keys of all processes are negatives, in the batch and in the banks.
        """
        banks: dict[str, Tensor] = {}
        if self.keys is not None:
            index = all_rows(batch["index"])
            banks = {"video": self.video_bank.without(index), "audio": self.audio_bank.without(index)}
        losses: Batch = {}
        if "across" in self.terms:
            losses["across"] = self.across(outputs, banks)
        if "within" in self.terms:
            losses["within"] = sum(
                (self.contrast(outputs[name], outputs[f"{name} key2"], [banks[name]] if banks else None))
                for name in ("video", "audio")
            )  # type: ignore[assignment]
        total = sum(losses.values(), outputs["video"].new_zeros(()))
        for name in ("video attention", "audio attention"):
            if name in outputs:
                losses[name] = outputs[name]
                total = total + self.recipe.consistency * outputs[name]
        if self.keys is not None and self.training:
            suffix = "" if "across" in self.terms else "2"
            losses["bank age"] = total.new_tensor(age(self.video_bank, len(index)))
            for bank, name in ((self.video_bank, "video"), (self.audio_bank, "audio")):
                bank.enqueue(all_rows(outputs[f"{name} key{suffix}"]), index)
        return {"loss": total, **losses}

    def across(self, outputs: Batch, banks: dict[str, Tensor]) -> Tensor:
        """Eq. 7 in both directions, or eq. 2, which has no negatives of the query's own modality."""
        video, audio, within = outputs["video"], outputs["audio"], self.recipe.within_negatives
        if not banks:
            return 2 * info_nce(video, audio, 1 / self.recipe.temperature, within=within)
        both = [banks["video"], banks["audio"]]
        return self.contrast(
            video, outputs["audio key"], both if within else both[1:], within=within
        ) + self.contrast(audio, outputs["video key"], both if within else both[:1], within=within)

    def contrast(
        self, query: Tensor, key: Tensor, banks: list[Tensor] | None, *, within: bool = False
    ) -> Tensor:
        """InfoNCE of queries and their keys, with the banks' and the batch's keys as negatives.

        ``within``: beside banks, the batch's other queries are negatives too.
        """
        scale, in_batch = 1 / self.recipe.temperature, self.recipe.bank_batch
        if banks is None:
            return info_nce(query, key, scale)
        return info_nce(
            query, key, scale, bank=banks, in_batch=in_batch, within=within and in_batch, symmetric=False
        )

    @torch.no_grad()
    def update_keys(self) -> None:
        """Move the key encoders towards the trained ones: after each step of the optimiser."""
        if self.keys is not None:
            keys = list(self.keys.parameters())
            trained = list(nn.ModuleDict({"video": self.video, "audio": self.audio}).parameters())
            self._average(keys, trained, torch.tensor(0))

    def drop_keys(self) -> None:
        """Drop the key encoders and the banks, which serve the training alone."""
        if self.keys is not None:
            self.keys = None
            del self.video_bank, self.audio_bank

    @torch.no_grad()
    def attend(self, clip: Tensor, wave: Tensor) -> dict[str, Tensor]:
        """The maps of figure 5, in [0, 1]: "guided" by the other modality, and "predicted" by the modality itself.

        "video guided" and "video predicted" are (B, T', H', W'), "audio guided" and "audio predicted" (B, F', T').
        """
        levels, norm = self.recipe.levels, self.recipe.norm
        video_maps, video, video_filter, _ = self.video(clip)
        audio_maps, audio, audio_filter, _ = self.audio(self.spectrogram(wave))
        return {
            "video guided": pyramid_correlation(video, audio_filter, levels=levels, norm=norm),
            "video predicted": self.video_saliency(video_maps).squeeze(1).sigmoid().float(),
            "audio guided": pyramid_correlation(audio, video_filter, levels=levels, norm=norm),
            "audio predicted": self.audio_saliency(audio_maps).squeeze(1).sigmoid().float(),
        }
