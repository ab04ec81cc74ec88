"""BEATs, the audio Transformer of Chen et al. 2023, from its authors' checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.compliance import kaldi

from cmx_fast.networks.pretrained_files import (
    description,
    load_weights,
    read_checkpoint,
    read_metadata,
    read_state,
)

#: Mean and half the inverse scale of the log filterbank (the authors').
MEAN, STD = 15.41663, 6.55582
BANDS = 128


@dataclass(frozen=True)
class Config:
    """The entries of a checkpoint's ``cfg`` that decide the network; defaults are the authors'."""

    input_patch_size: int = 16
    embed_dim: int = 512
    conv_bias: bool = False
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    activation_fn: str = "gelu"
    layer_norm_first: bool = False
    deep_norm: bool = False
    conv_pos: int = 128
    conv_pos_groups: int = 16
    relative_position_embedding: bool = False
    num_buckets: int = 320
    max_distance: int = 1280
    gru_rel_pos: bool = False


class BEATs(nn.Module):
    """Waves (B, samples) at 16 kHz to (B, width), the mean of the patches after the last layer.

    The log filterbank has 128 bands every 10 ms; patches of 16 x 16 are the tokens, time before frequency.
    """

    sample_rate = 16_000

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.patch = config.input_patch_size
        self.shortest = 400 + 160 * (self.patch - 1)
        self.width = config.encoder_embed_dim
        self.channels = (self.width,)
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, self.patch, self.patch, bias=config.conv_bias)
        self.layer_norm = nn.LayerNorm(config.embed_dim)
        self.post_extract_proj: nn.Module = nn.Identity()
        if config.embed_dim != self.width:
            self.post_extract_proj = nn.Linear(config.embed_dim, self.width)
        self.encoder = _Transformer(config)

    def file_contents(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The weights and the metadata of a safetensors file that :func:`read_beats` reads."""
        return self.state_dict(), {"cfg": json.dumps(asdict(self.config))}

    def filterbank(self, waves: Tensor) -> Tensor:
        """Kaldi's log filterbank of waves in 16-bit units, standardised: (B, frames, 128)."""
        banks = [
            kaldi.fbank(wave[None] * 2**15, num_mel_bins=BANDS, sample_frequency=self.sample_rate)
            for wave in waves.float()
        ]
        return (torch.stack(banks) - MEAN) / (2 * STD)

    def maps(self, waves: Tensor) -> list[Tensor]:
        """The tokens as one map (B, width, 128 / patch, frames / patch)."""
        patches = self.patch_embedding(self.filterbank(waves)[:, None])  # (B, embed, time, frequency)
        tokens = self.post_extract_proj(self.layer_norm(patches.flatten(2).transpose(1, 2)))
        tokens = self.encoder(tokens)
        return [tokens.transpose(1, 2).unflatten(2, patches.shape[2:]).transpose(2, 3)]

    def forward(self, waves: Tensor) -> Tensor:
        return self.maps(waves)[0].mean((2, 3))


class _Transformer(nn.Module):
    """Layers behind a convolution that gives positions; they share the bias of relative positions."""

    def __init__(self, config: Config):
        super().__init__()
        width, taps = config.encoder_embed_dim, config.conv_pos
        convolution = nn.Conv1d(width, width, taps, padding=taps // 2, groups=config.conv_pos_groups)
        self.pos_conv = nn.Sequential(convolution)
        self.layers = nn.ModuleList(_Layer(config, number == 0) for number in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(width)
        self.first = config.layer_norm_first

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.gelu(self.pos_conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        if not self.first:
            x = self.layer_norm(x)
        first: Any = self.layers[0]
        bias = first.self_attn.relative_bias(x.shape[1])
        for layer in self.layers:
            x = layer(x, bias)
        return self.layer_norm(x) if self.first else x


class _Layer(nn.Module):
    def __init__(self, config: Config, has_bias: bool):
        super().__init__()
        width = config.encoder_embed_dim
        self.self_attn = _Attention(config, has_bias)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.encoder_ffn_embed_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_embed_dim, width)
        self.first = config.layer_norm_first
        self.residual = (2 * config.encoder_layers) ** 0.25 if config.deep_norm else 1.0

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.first:
            x = x + self.self_attn(self.self_attn_layer_norm(x), bias)
            return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))
        x = self.self_attn_layer_norm(self.residual * x + self.self_attn(x, bias))
        return self.final_layer_norm(self.residual * x + self.fc2(F.gelu(self.fc1(x))))


class _Attention(nn.Module):
    """Attention with a bias of relative positions that each query gates (Chi et al. 2022)."""

    def __init__(self, config: Config, has_bias: bool):
        super().__init__()
        width, self.heads = config.encoder_embed_dim, config.encoder_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.buckets, self.distance = config.num_buckets, config.max_distance
        if config.relative_position_embedding and has_bias:
            self.relative_attention_bias = nn.Embedding(self.buckets, self.heads)
        self.gated = config.gru_rel_pos
        if self.gated:
            self.grep_linear = nn.Linear(width // self.heads, 8)
            self.grep_a = nn.Parameter(torch.ones(1, self.heads, 1, 1))

    def relative_bias(self, length: int) -> Tensor | None:
        """The bias (heads, length, length) by distance: a bucket for each near one, logarithmic ones for the far."""
        if not hasattr(self, "relative_attention_bias"):
            return None
        weight = self.relative_attention_bias.weight
        place = torch.arange(length, device=weight.device)
        offset = place[None] - place[:, None]
        half = self.buckets // 2
        near = half // 2
        distance = offset.abs()
        far = near + (
            (distance.clamp_min(1) / near).log() / math.log(self.distance / near) * (half - near)
        ).long().clamp_max(half - 1 - near)
        bucket = torch.where(distance < near, distance, far) + half * (offset > 0)
        return weight[bucket].permute(2, 0, 1)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        query, key, value = (
            projection(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if bias is not None and self.gated:
            first, second = self.grep_linear(query).unflatten(3, (2, 4)).sum(4).sigmoid().chunk(2, 3)
            bias = (first * (second * self.grep_a - 1) + 2) * bias
        attended = F.scaled_dot_product_attention(query, key, value, bias)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


def read_beats(file: Path) -> BEATs:
    """BEATs with the weights of a checkpoint ("cfg" and "model"); the classifier of a fine-tuned one is left out.

    In safetensors' format "cfg" is an entry of the metadata, as JSON.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no such checkpoint, or its network is not one that is known here.
    """
    state = read_state(file)
    config: Any
    if file.suffix == ".safetensors":
        config = json.loads(read_metadata(file).get("cfg", "null"))
    else:
        content = read_checkpoint(file)
        config = content.get("cfg") if isinstance(content, dict) else None
    if not isinstance(config, Mapping) or "patch_embedding.weight" not in state:
        raise ValueError(f"{file} holds no BEATs (entries cfg and model): it looks like {description(state)}")
    known = Config(**{field.name: config[field.name] for field in fields(Config) if field.name in config})
    if known.activation_fn != "gelu":
        raise ValueError(f"{file}: activation_fn must be 'gelu', got {known.activation_fn!r}")
    network = BEATs(known)
    load_weights(network, _folded(state), file, f"BEATs of {known.encoder_layers} layers")
    return network


def _folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with the convolution's weight norm multiplied out, the shared bias once, and no classifier."""
    scale, direction = (f"encoder.pos_conv.0.weight_{kind}" for kind in "gv")
    folded = {
        name: value
        for name, value in state.items()
        if name not in (scale, direction)
        and not name.startswith("predictor.")
        and (not name.endswith("relative_attention_bias.weight") or name.startswith("encoder.layers.0."))
    }
    if scale in state and direction in state:
        norm = state[direction].norm(dim=(0, 1), keepdim=True)
        folded["encoder.pos_conv.0.weight"] = state[scale] * state[direction] / norm
    return folded
