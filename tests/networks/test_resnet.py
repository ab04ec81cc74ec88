"""Attention in ResNets by name: what it adds, where it starts, and that plain weights still load."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18 as plain_resnet18

from cmx_fast.networks.audio_video import R2Plus1D, ResNet9, ResNet18
from cmx_fast.networks.fpn import FPN, load_imagenet
from cmx_fast.networks.names import ATTENTIONS
from cmx_fast.networks.resnet import AttentiveResNet, gate_weights, gated, resnet18, resnet50
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.systems.csir.model import image_encoder, load_places365


def test_without_attention_it_is_torchvisions():
    ours, theirs, x = resnet18().eval(), plain_resnet18().eval(), torch.randn(2, 3, 64, 64)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(("kind", "millions"), [("se", 2.51), ("cbam", 2.53), ("non-local", 2.1)])
def test_what_attention_adds_to_resnet50(kind, millions):
    with torch.device("meta"):
        plain, network = resnet50(), resnet50(kind)
        assert network(torch.empty(1, 3, 64, 64)).shape == (1, 1000)
    added = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in plain.parameters())
    assert added / 1e6 == pytest.approx(millions, rel=0.02)
    assert gate_weights(network).keys() == network.state_dict().keys() - plain.state_dict().keys()


def test_gates_stand_before_the_addition():
    block = resnet18("se").layer2[0].eval()
    x = torch.randn(2, 64, 8, 8)
    branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), F.relu(block.se(branch) + block.downsample(x)))


def test_names_are_those_of_public_code():
    assert "layer1.0.se.fc.0.weight" in resnet50("se").state_dict()
    assert "layer4.2.cbam.ChannelGate.mlp.3.bias" in resnet50("cbam").state_dict()
    assert resnet18("cbam").layer1[0].cbam.SpatialGate.spatial.bn.weight.eq(0).all()


def test_a_non_local_block_starts_as_nothing():
    plain, network, x = resnet18().eval(), resnet18("non-local").eval(), torch.randn(1, 3, 64, 64)
    network.load_state_dict({**gate_weights(network), **plain.state_dict()})
    torch.testing.assert_close(network(x), plain(x))


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_encoders_take_it_and_learn(kind):
    picture = torch.rand(2, 3, 64, 64)
    runs = [(FPN("resnet10", 8, kind), picture), (ResNet9(16, kind), torch.randn(2, 1, 65, 40))]
    runs.append((image_encoder("resnet10", kind), picture))
    if kind != "cbam":
        runs.append((R2Plus1D(1, 16, 1, kind), torch.randn(2, 3, 4, 32, 32)))
    for network, x in runs:
        twin = copy.deepcopy(network)
        network.train()(x).square().mean().backward()
        gates = [p.grad for n, p in network.named_parameters() if n in gate_weights(network)]
        assert bool(gates) == (kind != "") and all(g is not None for g in gates)
        assert not any(p.grad is not None for p in twin.parameters())


def test_plain_weights_load_into_gated_networks(tmp_path):
    plain = plain_resnet18()
    torch.save(plain.state_dict(), tmp_path / "imagenet.pth")
    encoder = FPN("resnet18", 8, "se")
    load_imagenet(encoder, tmp_path / "imagenet.pth")
    assert encoder.stages[1][0].conv1.weight.equal(plain.layer2[0].conv1.weight)
    places = image_encoder("resnet18")
    torch.save({"state_dict": {f"module.{n}": v for n, v in places.state_dict().items()}}, tmp_path / "p.pth")
    network = image_encoder("resnet18", "cbam")
    load_places365(network, tmp_path / "p.pth")
    assert network.layer4[1].conv2.weight.equal(places.layer4[1].conv2.weight)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: resnet18("scse"), "attention must be one of '', 'se', 'cbam', 'non-local'; got 'scse'"),
        (lambda: R2Plus1D(attention="cbam"), "attention = 'cbam' is for pictures"),
        (lambda: gated(torch.nn.Module, "x"), "attention must be one of"),
        (lambda: CMACRecipe.preset("demo", attention="cbam"), "attention must be one of '', se, non-local"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (lambda: ResNet9(8), (2, 1, 65, 40)),
        (lambda: ResNet18(5, width=8), (2, 1, 65, 40)),
        (lambda: R2Plus1D(1, 16), (2, 3, 4, 32, 32)),
        (lambda: AttentiveResNet("resnet10", "non-local", 7), (2, 3, 64, 64)),
    ],
)
def test_maps_are_channels_last_and_the_same(network, shape):
    network = network().double()
    plain = copy.deepcopy(network)
    for parameter in plain.parameters():
        parameter.data = parameter.data.contiguous()
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    seen = []
    last = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)][-1]
    last.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(network(x), plain(x))
    network.float()(x.float())
    assert seen[-1].is_contiguous(memory_format=layout)


def test_gates_keep_maps_channel_by_channel():
    assert all(p.is_contiguous() for p in AttentiveResNet("resnet10", "se", 7).parameters())
