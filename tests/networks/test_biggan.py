"""The instance-conditioned BigGAN: its sizes and names, spectral norm, and that it learns."""

from __future__ import annotations

import pytest
import torch

from cmx_fast.networks.biggan import (
    Discriminator,
    Generator,
    discriminator_loss,
    fold_spectral_norm,
    generator_loss,
)
from cmx_fast.networks.biggan_layers import SelfAttention, SpectralConv, SpectralLinear

TINY = {"resolution": 64, "width": 8, "features": 12}


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_sizes_are_those_of_the_published_networks():
    with torch.device("meta"):
        generator, discriminator = Generator(), Discriminator()
        assert generator(torch.empty(2, 120), torch.empty(2, 2048)).shape == (2, 3, 128, 128)
        assert discriminator(torch.empty(2, 3, 128, 128), torch.empty(2, 2048)).shape == (2,)
        assert Generator(64)(torch.empty(2, 120), torch.empty(2, 2048)).shape == (2, 3, 64, 64)
    assert parameters(generator) == pytest.approx(77.16e6, rel=1e-4)
    assert parameters(discriminator) == pytest.approx(89.59e6, rel=1e-4)


def test_names_are_those_of_biggans_checkpoints():
    with torch.device("meta"):
        names = Generator().state_dict(), Discriminator().state_dict()
    assert names[0]["blocks.3.1.theta.weight"].shape == (24, 192, 1, 1)
    assert names[0]["blocks.0.0.bn1.gain.weight"].shape == (1536, 532)
    for name in (
        "shared_feat.u0",
        "linear.sv0",
        "blocks.4.0.conv_sc.bias",
        "output_layer.0.stored_var",
        "output_layer.2.u0",
    ):
        assert name in names[0]
    assert names[1]["blocks.0.1.o.weight"].shape == (96, 48, 1, 1)
    assert "blocks.5.0.conv_sc.weight" not in names[1] and "linear_feat.weight" in names[1]


def test_spectral_norm_is_the_largest_singular_value():
    layer = SpectralLinear(20, 30)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(30, 20))
    for _ in range(60):
        layer(torch.randn(2, 20))
    truth = torch.linalg.matrix_norm(layer.weight, 2)
    assert layer.sv0.item() == pytest.approx(truth.item(), rel=1e-3)
    assert torch.linalg.matrix_norm(layer.normalised(), 2).item() == pytest.approx(1, rel=1e-3)
    before = layer.u0.clone()
    layer.eval()(torch.randn(2, 20))
    assert layer.u0.equal(before)


def test_autocast_does_not_round_the_singular_value():
    layer = SpectralLinear(20, 30).eval()
    expected = layer.normalised()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer.normalised(), expected, rtol=1e-6, atol=0)


def test_folding_changes_no_picture():
    generator = Generator(**TINY).eval()
    noise, instance = torch.randn(2, generator.dim_z), torch.randn(2, 12)
    with torch.no_grad():
        before = generator(noise, instance)
        fold_spectral_norm(generator)
        fold_spectral_norm(generator)
        after = generator(noise, instance)
    torch.testing.assert_close(after, before)
    assert before.abs().max() <= 1


def test_attention_is_the_formula_and_starts_as_the_identity():
    layer, x = SelfAttention(16).eval(), torch.randn(2, 16, 6, 4)
    assert layer(x).equal(x)
    with torch.no_grad():
        layer.gamma.fill_(0.7)
    pool = torch.nn.functional.max_pool2d
    q, k, v = layer.theta(x), pool(layer.phi(x), 2), pool(layer.g(x), 2)
    weights = torch.softmax(q.flatten(2).transpose(1, 2) @ k.flatten(2), dim=2)
    attended = (v.flatten(2) @ weights.transpose(1, 2)).view(2, 8, 6, 4)
    torch.testing.assert_close(layer(x), x + 0.7 * layer.o(attended))


def test_instances_and_noise_decide_the_picture():
    generator = Generator(**TINY).eval()
    with torch.no_grad():
        for module in generator.modules():
            if isinstance(module, SpectralConv) and module.bias is not None:
                module.bias.normal_()
        noise, instance = torch.randn(1, generator.dim_z), torch.randn(2, 12)
        one, other = generator(noise.expand(2, -1), instance)
        again = generator(torch.randn(1, generator.dim_z), instance[:1])[0]
    assert (one - other).abs().mean() > 1e-4 and (one - again).abs().mean() > 1e-4


def test_discriminator_learns_from_the_hinge():
    discriminator = Discriminator(**TINY)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-4)
    real, fake, instance = torch.rand(4, 3, 64, 64) * 2 - 1, torch.rand(4, 3, 64, 64) / 2, torch.randn(4, 12)
    losses = []
    for _ in range(8):
        loss = discriminator_loss(discriminator(real, instance), discriminator(fake, instance))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_generator_learns_from_the_hinge():
    generator, discriminator = Generator(**TINY), Discriminator(**TINY).requires_grad_(False)
    optimizer = torch.optim.Adam(generator.parameters(), 1e-3)
    noise, instance = torch.randn(4, generator.dim_z), torch.randn(4, 12)
    losses = []
    for _ in range(8):
        loss = generator_loss(discriminator(generator(noise, instance), instance))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in generator.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


def test_hinge():
    assert discriminator_loss(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])).item() == pytest.approx(
        0.5 + 1.0
    )
    assert generator_loss(torch.tensor([2.0, 4.0])).item() == -3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Generator(256), "resolution must be 64 or 128; got 256"),
        (lambda: Generator(64, width=12), "width must be a multiple of 8"),
        (lambda: Generator(64, width=8, dim_z=3), "dim_z must be at least 5"),
        (
            lambda: Generator(**TINY)(torch.randn(2, 7), torch.randn(2, 12)),
            r"noise must have shape \(B, 120\)",
        ),
        (lambda: Discriminator(32), "resolution must be 64 or 128; got 32"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
