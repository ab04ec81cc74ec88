"""Audio encoders from random checkpoints in the public layouts, against the papers' formulas written plainly."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torchaudio
from torch import nn
from torchaudio.compliance import kaldi

from cmx_fast.networks.audio_encoders import VGGish, open_audio_encoder, reopen_audio_encoder

WIDTHS = (4, 6, 8, 8, 12, 16)


def panns_state(n_fft=1024, rate=32000):
    """A narrow CNN14 with the names and front end of PANNs' files."""
    window, bins = torch.hann_window(n_fft), torch.arange(n_fft // 2 + 1)[:, None]
    angle = -2 * math.pi * bins * torch.arange(n_fft) / n_fft
    mels = torchaudio.functional.melscale_fbanks(
        n_fft // 2 + 1, 50.0, rate * 14 / 32, 64, rate, norm="slaney", mel_scale="slaney"
    )
    network = nn.Module()
    network.bn0 = nn.BatchNorm2d(64)
    for number, (inner, outer) in enumerate(zip((1, *WIDTHS), WIDTHS), 1):
        block = nn.Module()
        block.conv1 = nn.Conv2d(inner, outer, 3, padding=1, bias=False)
        block.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        block.bn1, block.bn2 = nn.BatchNorm2d(outer), nn.BatchNorm2d(outer)
        network.add_module(f"conv_block{number}", block)
    network.fc1, network.fc_audioset = nn.Linear(WIDTHS[-1], WIDTHS[-1]), nn.Linear(WIDTHS[-1], 527)
    for name, value in network.state_dict().items():
        if name.startswith("bn0.running"):
            value.fill_(30.0 if name.endswith("mean") else 400.0).mul_(-1 if name.endswith("mean") else 1)
    return {
        "spectrogram_extractor.stft.conv_real.weight": (angle.cos() * window)[:, None],
        "spectrogram_extractor.stft.conv_imag.weight": (angle.sin() * window)[:, None],
        "logmel_extractor.melW": mels,
        **network.state_dict(),
    }


def panns_features(state, waves):
    """CNN14 from the file's own Fourier and mel matrices, and the last block's maps."""
    n_fft = state["spectrogram_extractor.stft.conv_real.weight"].shape[2]
    padded = F.pad(waves[:, None], (n_fft // 2, n_fft // 2), "reflect")
    parts = [
        F.conv1d(padded, state[f"spectrogram_extractor.stft.conv_{part}.weight"], stride=n_fft * 5 // 16)
        for part in ("real", "imag")
    ]
    power = sum(part.square() for part in parts).transpose(1, 2)
    x = 10 * (power @ state["logmel_extractor.melW"]).clamp_min(1e-10).log10()
    x = x[:, None].transpose(1, 3)

    def norm(x, name):
        return F.batch_norm(
            x, *(state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")), eps=1e-5
        )

    x = norm(x, "bn0").transpose(1, 3)
    for number in range(1, 7):
        for layer in (1, 2):
            x = F.conv2d(x, state[f"conv_block{number}.conv{layer}.weight"], padding=1)
            x = F.relu(norm(x, f"conv_block{number}.bn{layer}"))
        x = F.avg_pool2d(x, 2 if number < 6 else 1)
    over_time = x.mean(3)
    pooled = over_time.max(2).values + over_time.mean(2)
    return F.relu(F.linear(pooled, state["fc1.weight"], state["fc1.bias"])), x


def saved(state, tmp_path):
    torch.save(state, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.mark.parametrize(("n_fft", "rate"), [(1024, 32000), (512, 16000)])
def test_panns(n_fft, rate, tmp_path):
    state = panns_state(n_fft, rate)
    encoder = open_audio_encoder(f"panns:{saved({'iteration': 3, 'model': state}, tmp_path)}")
    assert (encoder.sample_rate, encoder.width, encoder.channels) == (rate, 16, WIDTHS)
    waves = 0.3 * torch.randn(2, rate)
    features, last = panns_features(state, waves)
    assert features.std() > 0.01
    torch.testing.assert_close(encoder(waves), features, rtol=1e-3, atol=1e-4)
    maps = encoder.maps(waves)
    torch.testing.assert_close(maps[-1], last.transpose(2, 3), rtol=1e-3, atol=1e-4)
    assert [m.shape[1:] for m in maps[:2]] == [(4, 32, 50), (6, 16, 25)]
    assert encoder(waves[:, : encoder.shortest]).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {encoder.shortest} samples for panns"):
        encoder(waves[:, : encoder.shortest - 1])


def test_vggish(tmp_path):
    features = nn.Module()
    sizes = ((1, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512))
    for place, (inner, outer) in zip((0, 3, 6, 8, 11, 13), sizes):
        features.add_module(str(place), nn.Conv2d(inner, outer, 3, padding=1))
    embeddings = nn.Sequential(
        nn.Linear(12288, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128), nn.ReLU()
    )
    network = nn.ModuleDict({"features": features, "embeddings": embeddings})
    encoder = open_audio_encoder(f"vggish:{saved(network.state_dict(), tmp_path)}")
    assert (encoder.sample_rate, encoder.width) == (16000, 128)
    waves = 0.3 * torch.randn(1, 2 * 15360 + 700)
    # Mel bands are triangles in mel between 64 centres, as VGGish's authors define them.
    mel = lambda hertz: 1127 * math.log(1 + hertz / 700)  # noqa: E731
    edges = [mel(125) + (mel(7500) - mel(125)) * i / 65 for i in range(66)]
    frames = waves.unfold(1, 400, 160) * torch.hann_window(400)
    magnitude = torch.fft.rfft(F.pad(frames, (0, 112))).abs()
    weights = torch.tensor(
        [
            [
                max(0.0, min((m - low) / (centre - low), (high - m) / (high - centre)))
                for low, centre, high in zip(edges, edges[1:], edges[2:])
            ]
            if k
            else [0.0] * 64
            for k, m in enumerate(mel(8000 * k / 256) for k in range(257))
        ]
    )
    logmel = (magnitude @ weights + 0.01).log()
    torch.testing.assert_close(encoder.network.logmel(waves), logmel, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        x = logmel[:, :192].reshape(2, 1, 96, 64)
        for place in ("0", "P", "3", "P", "6", "8", "P", "11", "13", "P"):
            x = F.max_pool2d(x, 2) if place == "P" else F.relu(features.get_submodule(place)(x))
        expected = embeddings(x.permute(0, 2, 3, 1).flatten(1)).mean(0, keepdim=True)
    torch.testing.assert_close(encoder(waves), expected, rtol=1e-3, atol=1e-5)
    assert [m.shape[1:3] for m in encoder.maps(waves)] == [(64, 32), (128, 16), (256, 8), (512, 4)]


BEATS = {
    "input_patch_size": 16, "embed_dim": 24, "encoder_layers": 2, "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48, "encoder_attention_heads": 2, "deep_norm": True, "conv_pos": 8,
    "conv_pos_groups": 4, "relative_position_embedding": True, "num_buckets": 16, "max_distance": 20,
    "gru_rel_pos": True, "activation_fn": "gelu", "dropout": 0.1, "finetuned_model": True,
}  # fmt: skip


def beats_state():
    shapes = {
        "patch_embedding.weight": (24, 1, 16, 16),
        "layer_norm.weight": (24,), "layer_norm.bias": (24,),
        "post_extract_proj.weight": (32, 24), "post_extract_proj.bias": (32,),
        "encoder.pos_conv.0.weight_g": (1, 1, 8), "encoder.pos_conv.0.weight_v": (32, 8, 8),
        "encoder.pos_conv.0.bias": (32,),
        "encoder.layer_norm.weight": (32,), "encoder.layer_norm.bias": (32,),
        "predictor.weight": (7, 32), "predictor.bias": (7,),
    }  # fmt: skip
    for layer in ("encoder.layers.0.", "encoder.layers.1."):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {
                f"{layer}self_attn.{name}.weight": (32, 32), f"{layer}self_attn.{name}.bias": (32,)
            }  # fmt: skip
        shapes |= {
            f"{layer}self_attn.grep_linear.weight": (8, 16), f"{layer}self_attn.grep_linear.bias": (8,),
            f"{layer}self_attn.grep_a": (1, 2, 1, 1),
            f"{layer}fc1.weight": (48, 32), f"{layer}fc1.bias": (48,),
            f"{layer}fc2.weight": (32, 48), f"{layer}fc2.bias": (32,),
        }  # fmt: skip
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{layer}{norm}.weight": (32,), f"{layer}{norm}.bias": (32,)}
    state = {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    shared = torch.randn(16, 2)
    return state | {f"encoder.layers.{n}.self_attn.relative_attention_bias.weight": shared for n in (0, 1)}


def beats_tokens(state, waves):
    """BEATs' tokens, from the paper's formulas, one head and query at a time."""
    bank = torch.stack(
        [kaldi.fbank(w[None] * 2**15, num_mel_bins=128, sample_frequency=16000) for w in waves]
    )
    x = F.conv2d(((bank - 15.41663) / (2 * 6.55582))[:, None], state["patch_embedding.weight"], stride=16)
    x = x.flatten(2).transpose(1, 2)

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    x = linear(norm(x, "layer_norm"), "post_extract_proj")
    v = state["encoder.pos_conv.0.weight_v"]
    weight = state["encoder.pos_conv.0.weight_g"] * v / v.square().sum((0, 1), keepdim=True).sqrt()
    placed = F.conv1d(x.transpose(1, 2), weight, state["encoder.pos_conv.0.bias"], padding=4, groups=4)
    x = norm(x + F.gelu(placed[..., :-1]).transpose(1, 2), "encoder.layer_norm")
    length = x.shape[1]

    def bucket(offset):  # 8 of each sign: 4 for distances 0 to 3, 4 on a logarithmic scale up to 20
        distance = abs(offset)
        if distance >= 4:
            distance = min(7, 4 + int(math.log(distance / 4) / math.log(20 / 4) * 4))
        return distance + 8 * (offset > 0)

    numbers = torch.tensor([[bucket(k - q) for k in range(length)] for q in range(length)])
    for layer in ("encoder.layers.0", "encoder.layers.1"):
        query, key, value = (linear(x, f"{layer}.self_attn.{n}_proj") for n in "qkv")
        heads = []
        for head in range(2):
            own = slice(16 * head, 16 * head + 16)
            bias = state["encoder.layers.0.self_attn.relative_attention_bias.weight"][numbers, head]
            gates = linear(query[..., own], f"{layer}.self_attn.grep_linear")
            first, second = gates[..., :4].sum(-1).sigmoid(), gates[..., 4:].sum(-1).sigmoid()
            gate = first * (second * state[f"{layer}.self_attn.grep_a"][0, head, 0, 0] - 1) + 2
            scores = query[..., own] @ key[..., own].transpose(1, 2) / 4 + gate[..., None] * bias
            heads.append(scores.softmax(-1) @ value[..., own])
        attended = linear(torch.cat(heads, -1), f"{layer}.self_attn.out_proj")
        x = norm(4**0.25 * x + attended, f"{layer}.self_attn_layer_norm")
        hidden = linear(F.gelu(linear(x, f"{layer}.fc1")), f"{layer}.fc2")
        x = norm(4**0.25 * x + hidden, f"{layer}.final_layer_norm")
    return x


def test_beats(tmp_path):
    state = beats_state()
    encoder = open_audio_encoder(f"beats:{saved({'cfg': BEATS, 'model': state}, tmp_path)}")
    assert (encoder.sample_rate, encoder.width, encoder.channels) == (16000, 32, (32,))
    waves = 0.1 * torch.randn(2, 400 + 160 * 40)  # 41 frames: 2 patches in time, 8 in frequency
    tokens = beats_tokens(state, waves)
    torch.testing.assert_close(encoder(waves), tokens.mean(1), rtol=1e-3, atol=1e-4)
    (patches,) = encoder.maps(waves)
    assert patches.shape == (2, 32, 8, 2)
    torch.testing.assert_close(
        patches.transpose(2, 3).flatten(2).transpose(1, 2), tokens, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("family", ["panns", "vggish", "beats"])
def test_weights_are_written_as_they_are_read(family, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="needs the hub extra")
    contents = {"panns": panns_state, "vggish": VGGish().state_dict, "beats": beats_state}[family]()
    content = {"cfg": BEATS, "model": contents} if family == "beats" else contents
    encoder = open_audio_encoder(f"{family}:{saved(content, tmp_path)}")
    weights, metadata = encoder.file_weights()
    file = tmp_path / "weights.safetensors"
    safetensors.save_file(weights, file, metadata)
    again = reopen_audio_encoder(family, encoder.fingerprint(), file)
    waves = 0.1 * torch.randn(2, max(16000, encoder.shortest))
    assert again(waves).equal(encoder(waves))
    with pytest.raises(ValueError, match=f"is not the {family} that the model was trained with"):
        reopen_audio_encoder(family, "0", file)


def test_an_audio_encoder_is_fixed_until_it_is_unfrozen(tmp_path):
    encoder = open_audio_encoder(f"panns:{saved(panns_state(), tmp_path)}").train()
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    waves = torch.randn(2, 16000, requires_grad=True)
    encoder(waves).sum().backward()
    assert waves.grad is not None and waves.grad.abs().sum() > 0
    before = encoder.fingerprint()
    assert encoder.unfreeze().training and all(p.requires_grad for p in encoder.parameters())
    encoder(torch.randn(2, 16000))  # moves the norms' statistics
    assert encoder.fingerprint() != before


def test_wrong_files_say_what_did_not_match(tmp_path):
    file = saved(panns_state(), tmp_path)
    with pytest.raises(ValueError, match=r"does not fit VGGish: it lacks .* looks like a PANN of 6 blocks"):
        open_audio_encoder(f"vggish:{file}")
    with pytest.raises(ValueError, match=r"holds no BEATs \(entries cfg and model\): it looks like a PANN"):
        open_audio_encoder(f"beats:{file}")
    state = panns_state()
    del state["conv_block3.bn1.bias"]
    with pytest.raises(ValueError, match=r"does not fit PANNs' CNN14: it lacks conv_block3.bn1.bias\."):
        open_audio_encoder(f"panns:{saved(state, tmp_path)}")
    saved({"cfg": BEATS, "model": beats_state()}, tmp_path)
    safetensors = pytest.importorskip("safetensors.torch", reason="needs the hub extra")
    bare = {name: value.clone() for name, value in beats_state().items()}
    safetensors.save_file(bare, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"holds no BEATs \(entries cfg and model\)"):
        open_audio_encoder(f"beats:{tmp_path / 'bare.safetensors'}")
    with pytest.raises(ValueError, match="holds no CNN14 of PANNs: it looks like BEATs"):
        open_audio_encoder(f"panns:{file}")
    saved({"cfg": BEATS | {"activation_fn": "glu"}, "model": beats_state()}, tmp_path)
    with pytest.raises(ValueError, match="activation_fn must be 'gelu', got 'glu'"):
        open_audio_encoder(f"beats:{file}")
    with pytest.raises(FileNotFoundError, match="there are no weights"):
        open_audio_encoder(f"beats:{tmp_path / 'none.pt'}")
    with pytest.raises(ValueError, match=r"there is no audio encoder 'yamnet:a': panns:FILE"):
        open_audio_encoder("yamnet:a")
