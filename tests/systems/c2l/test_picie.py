from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pseudo_labels import cross_entropy, pseudo_labelled
from torchvision.models import resnet18

from cmx_fast.networks.fpn import FPN, Pyramid, load_imagenet, pack, sobel
from cmx_fast.systems.c2l.picie import PiCIE
from cmx_fast.systems.c2l.recipe import C2LRecipe

RECIPE = C2LRecipe.preset("demo", size=32, width=16, clusters=3)


def test_fpn_is_of_the_papers_size():
    encoder = FPN()
    assert encoder(torch.rand(1, 3, 64, 96)).shape == (1, 128, 16, 24)
    lateral = sum(p.numel() for p in encoder.lateral.parameters())
    assert lateral == (64 + 128 + 256 + 512) * 128 + 4 * 128
    assert (
        sum(p.numel() for p in encoder.parameters()) - lateral == 11_176_512
    )  # ResNet-18 without its classifier
    assert [m.shape[1:] for m in encoder.activations(torch.rand(1, 3, 64, 64))] == [
        (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)
    ]  # fmt: skip


def test_fpn_adds_what_is_coarser():
    encoder = FPN("resnet10", 8).eval()
    image = torch.rand(2, 3, 64, 64)
    c2, c3, c4, c5 = (lateral(x) for lateral, x in zip(encoder.lateral, encoder.activations(image)))

    def up(x):
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    torch.testing.assert_close(encoder(image), c2 + up(c3 + up(c4 + up(c5))))


def test_gradients_of_a_ramp():
    ramp = 0.01 * torch.arange(32.0).expand(1, 3, 32, 32)
    across, down = sobel(ramp)[0]
    torch.testing.assert_close(across[:, 1:-1], torch.full((32, 30), 0.01))
    torch.testing.assert_close(down, torch.zeros(32, 32))
    torch.testing.assert_close(sobel(ramp.mT)[0, 1, 1:-1], torch.full((30, 32), 0.01))


def test_fpn_sees_gradients():
    assert FPN("resnet10", 8, gradients=True).eval()(torch.rand(1, 3, 32, 32)).shape == (1, 8, 8, 8)


def test_a_pyramid_on_an_encoders_maps():
    shapes = [(4, 8, 8), (6, 4, 4)]
    maps = [torch.randn(2, *shape) for shape in shapes]
    pyramid = Pyramid(shapes, 16)
    fine, coarse = (
        layer(F.normalize(x, dim=1) * x.shape[1] ** 0.5) for layer, x in zip(pyramid.lateral, maps)
    )
    torch.testing.assert_close(pyramid(pack(maps)), fine + F.interpolate(coarse, (8, 8), mode="bilinear"))
    torch.testing.assert_close(pyramid(pack(maps)), pyramid(pack([3 * maps[0], maps[1]])))
    for activation, x in zip(pyramid.activations(pack(maps)), maps):
        torch.testing.assert_close(activation, x.relu())
    enlarged = Pyramid(shapes, 16, side=12)
    enlarged.load_state_dict(pyramid.state_dict())
    expected = F.interpolate(pyramid(pack(maps)), (12, 12), mode="bilinear")
    torch.testing.assert_close(enlarged(pack(maps)), expected)
    with pytest.raises(ValueError, match=r"rows must have shape \(B, 352\)"):
        pyramid(torch.randn(2, 351))


def test_a_pyramid_starts_by_keeping_what_the_encoder_tells_apart():
    maps = torch.randn(2, 4, 8, 8)
    top = Pyramid([(4, 8, 8)], 16)(pack([maps]))
    between = F.normalize(maps, dim=1).flatten(2)
    projected = F.normalize(top, dim=1).flatten(2)
    torch.testing.assert_close(projected.mT @ projected, between.mT @ between)


def test_suppressed_pixels_belong_to_the_cluster_at_zero():
    recipe = C2LRecipe.preset("demo", size=32, width=4, heads=2, clusters=3, suppressed=0.5)
    model = PiCIE(recipe)
    model.features = lambda image: torch.stack(
        [torch.zeros(4, 2, 2), 5 * torch.eye(4)[1].expand(2, 2, 4).movedim(2, 0)]
    )
    model.centroids.copy_(torch.tensor([[0.9, 0, 0, 0], [0, 0.9, 0, 0], [0.0, 0, 0, 0]]))
    labels = model.logits(torch.rand(2, 3, 32, 32), (4, 4)).argmax(1)
    assert labels.flatten(1).unique(dim=1).flatten().tolist() == [2, 1]


def test_fpn_refuses():
    with pytest.raises(ValueError, match="backbone must be one of resnet18, resnet10; got 'vgg'"):
        FPN("vgg")
    with pytest.raises(ValueError, match=r"multiples of 32; got \(1, 3, 40, 64\)"):
        FPN("resnet10")(torch.rand(1, 3, 40, 64))


@pytest.fixture
def imagenet(tmp_path):
    """torchvision's ResNet-18 as its file holds it."""
    source, file = resnet18(), tmp_path / "resnet18.pth"
    torch.save(source.state_dict(), file)
    return source, file


def test_imagenet_weights_load(imagenet):
    source, file = imagenet
    encoder = FPN()
    lateral = encoder.lateral[0].weight.clone()
    load_imagenet(encoder, file)
    assert torch.equal(encoder.lateral[0].weight, lateral)
    image = torch.rand(2, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (image - mean[:, None, None]) / std[:, None, None]
    source.eval(), encoder.eval()
    x = source.maxpool(source.relu(source.bn1(source.conv1(x))))
    for stage, found in zip(("layer1", "layer2", "layer3", "layer4"), encoder.activations(image)):
        x = getattr(source, stage)(x)
        torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


def test_imagenet_errors_name_what_is_wrong(imagenet, tmp_path):
    _, file = imagenet
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        load_imagenet(FPN(), tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match="another architecture"):
        load_imagenet(FPN("resnet10"), file)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(ValueError, match=r"no 'conv1.weight' \(found: state_dict\)"):
        load_imagenet(FPN(), file)
    file.write_text("<html>404</html>")
    with pytest.raises(ValueError, match="not a readable PyTorch checkpoint"):
        load_imagenet(FPN(), file)


def test_objective_is_half_within_and_half_across():
    model, batch = PiCIE(RECIPE), pseudo_labelled()
    outputs = {"view1": torch.randn(2, 16, 8, 8), "view2": torch.randn(2, 16, 8, 8)}
    losses = model.losses(outputs, batch)
    one, two = outputs["view1"], outputs["view2"]
    within = (cross_entropy(one, batch, 1) + cross_entropy(two, batch, 2)) / 2
    across = (cross_entropy(one, batch, 2) + cross_entropy(two, batch, 1)) / 2
    torch.testing.assert_close(losses["cluster"], within)
    torch.testing.assert_close(losses["across"], across)
    torch.testing.assert_close(losses["loss"], (within + across) / 2)


def test_gradient_reaches_the_whole_encoder():
    model, batch = PiCIE(RECIPE), pseudo_labelled()
    model.losses(model(batch), batch)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_view_2_warps_the_map_where_view_1_has_a_warped_picture():
    model, batch = PiCIE(RECIPE).eval(), pseudo_labelled()
    mirror = torch.tensor([[-1.0, 0, 0], [0, 1, 0]]).expand(2, 2, 3)
    batch |= {"warp": mirror, "image1": batch["image2"].flip(3)}
    outputs = model(batch)
    torch.testing.assert_close(outputs["view2"], model.features(batch["image2"]).flip(3))
    assert outputs["view1"].shape == outputs["view2"].shape == (2, 16, 8, 8)


def test_logits_classify_unit_features_by_the_centroids():
    model = PiCIE(RECIPE).eval()
    image = torch.rand(2, 3, 32, 32)
    features = F.normalize(model.features(image), dim=1)
    model.centroids.copy_(features[0, :, 2, [1, 3, 6]].T)
    logits = model.logits(image, (8, 8))
    torch.testing.assert_close(logits, torch.einsum("bdhw,kd->bkhw", features, model.centroids))
    assert logits[0, :, 2, 3].argmax() == 1
    assert model.logits(image, (40, 32)).shape == (2, 3, 40, 32)
