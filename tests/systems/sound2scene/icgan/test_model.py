"""IC-GAN's training step, and generators from published checkpoints."""

from __future__ import annotations

import copy
import re

import pytest
import torch

from cmx_fast.networks.biggan import Generator
from cmx_fast.networks.biggan_weights import load_icgan_generator
from cmx_fast.systems.sound2scene.icgan.model import ICGAN
from cmx_fast.systems.sound2scene.icgan.recipe import ICGANRecipe

TINY = {"width": 8, "dim_z": 10, "condition": 6, "resolution": 64}


def batch(count=4, features=12):
    return {"instance": torch.randn(count, features), "picture": torch.rand(count, 3, 64, 64) * 2 - 1}


def test_each_player_moves_alone():
    module, data = ICGAN(ICGANRecipe.preset("demo", **TINY), 12).train(), batch()
    for turn, own, other in (
        ("discriminator", module.discriminator, module.generator),
        ("generator", module.generator, module.discriminator),
    ):
        module.zero_grad()
        losses = module.losses(module(data, turn), data, turn)
        losses["loss"].backward()
        assert losses.keys() == {"loss", turn}
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in own.parameters())
        assert all(p.grad is None for p in other.parameters())


def test_the_average_follows_the_generator():
    module = ICGAN(ICGANRecipe.preset("demo", **TINY, average=0.75, average_from=2), 12).train()
    weight, averaged = (g.output_layer[2].weight for g in (module.generator, module.average))
    values = []
    for step in range(4):
        with torch.no_grad():
            weight.fill_(float(step))
        module.update_average()
        values.append(averaged.mean().item())
    assert values == [0, 1, 1.25, 1.6875]  # copies of the first two, then a quarter of the way
    assert not module.average.training and not averaged.requires_grad


def test_averages_of_norms_follow_too():
    module, data = ICGAN(ICGANRecipe.preset("demo", **TINY), 12).train(), batch()
    module(data, "generator")
    module.update_average()
    own, averaged = (g.blocks[0][0].bn1.stored_mean for g in (module.generator, module.average))
    assert own.abs().sum() > 0 and averaged.equal(own)


def published(generator, statistics):
    """A state dict as one of the code's kinds of batch norm writes it."""
    state = {}
    for name, value in generator.state_dict().items():
        name = name.replace("stored_mean", statistics[0]).replace("stored_var", statistics[1])
        state[f"module.{name}"] = value
        if name.endswith(statistics[0]):
            state[f"module.{name.removesuffix(statistics[0])}{statistics[2]}"] = torch.tensor(3)
    return state


@pytest.mark.parametrize(
    "statistics",
    [
        ("stored_mean", "stored_var", "accumulation_counter"),
        ("bn.stored_mean", "bn.stored_var", "bn.accumulation_counter"),
        ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked"),
    ],
)
@pytest.mark.parametrize("resolution", [64, 128])
def test_published_generators_load_by_name(tmp_path, statistics, resolution):
    generator = Generator(resolution, 8, 12 * (resolution // 64), 20, 7).train()
    noise, instance = torch.randn(2, generator.dim_z), torch.randn(2, 20)
    with torch.no_grad():
        generator(noise, instance)  # statistics and singular values of its own
        expected = copy.deepcopy(generator).eval()(noise, instance)
    torch.save(published(generator, statistics), tmp_path / "G_ema_best0.pth")
    for path in (tmp_path, tmp_path / "G_ema_best0.pth"):
        with torch.no_grad():
            assert load_icgan_generator(path)(noise, instance).equal(expected)


def test_a_class_embedding_of_any_size_is_ignored(tmp_path):
    state = Generator(64, 8, 12, 20, 7).state_dict()
    torch.save({**state, "shared.weight": torch.zeros(3, 4)}, tmp_path / "g.pth")
    load_icgan_generator(tmp_path / "g.pth")
    del state["shared.weight"]
    torch.save(state, tmp_path / "g.pth")
    load_icgan_generator(tmp_path / "g.pth")


def test_what_does_not_match_is_listed(tmp_path):
    state, file = Generator(64, 8, 12, 20, 7).state_dict(), tmp_path / "g.pth"

    def refusal(changed):
        torch.save(changed, file)
        with pytest.raises(ValueError, match=re.escape(str(file))) as caught:
            load_icgan_generator(file)
        return str(caught.value)

    other = {**state, "blocks.0.0.conv1.weight": torch.zeros(1, 2, 3, 3), "extra.weight": torch.zeros(1)}
    del other["linear.bias"]
    said = refusal(other)
    assert "missing: linear.bias" in said and "not known: extra.weight" in said
    assert "other shapes: blocks.0.0.conv1.weight (1, 2, 3, 3), not (128, 128, 3, 3)" in said
    assert ".u0 and " in refusal({n: v for n, v in state.items() if not n.endswith(".u0")})
    assert "lacks shared_feat.weight" in refusal({"linear.weight": state["linear.weight"]})
    assert "has 3 blocks" in refusal({n: v for n, v in state.items() if not n.startswith("blocks.3.")})
    assert "must hold a state dict of tensors" in refusal({"state_dict": {}})
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a readable PyTorch checkpoint"):
        load_icgan_generator(file)
    with pytest.raises(FileNotFoundError, match="there is no generator"):
        load_icgan_generator(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match=r"must hold one G_ema\*.pth, found none"):
        load_icgan_generator(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 96}, "resolution must be 64 or 128; got 96"),
        ({"encoder": "vit"}, "encoder must be one of resnet50, small, pretrained; got 'vit'"),
        ({"average": 1.0}, r"average must be in \[0, 1\); got 1.0"),
        ({"batch": 1}, "batch must be at least 2"),
        ({"neighbours": 0}, "neighbours must be at least 1; got 0"),
        ({"hue": 0.7}, "hue must be between 0 and 0.5; got 0.7"),
    ],
)
def test_recipe_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        ICGANRecipe.preset("demo", **changes)
