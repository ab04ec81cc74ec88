"""Frozen features: computed once, kept on the disk, and computed anew when pictures, encoder or file change."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torchvision import models

from cmx_fast.networks.visual_encoders import VisualEncoder, open_visual_encoder
from cmx_fast.train.frozen_features import frozen_rows, picture_file_features


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> VisualEncoder:
    return new_encoder(tmp_path_factory.mktemp("encoder"))


def new_encoder(folder) -> VisualEncoder:
    torch.save(models.shufflenet_v2_x0_5().state_dict(), folder / "weights.pth")
    return open_visual_encoder(f"shufflenet_v2_x0_5={folder / 'weights.pth'}")


@pytest.fixture
def paths(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for i, file in enumerate(files):
        picture = Image.new("RGB", (90, 70), (60 * i, 30, 90))
        picture.paste((250, 250, 0), (20, 0, 50 + 5 * i, 50))
        picture.save(file)
    return files


def test_maps_of_a_stride_are_kept_and_not_computed_again(encoder, paths, tmp_path, monkeypatch, capsys):
    file = tmp_path / "kept" / "maps.npy"
    maps = picture_file_features(encoder, paths, "cpu", file, stride=8, size=64)
    assert maps.shape == (4, encoder.channels[2], 8, 8) and maps.dtype == torch.float16
    direct = picture_file_features(encoder, paths, "cpu", stride=8, size=64, dtype=torch.float32)
    assert maps.float().allclose(direct, rtol=2e-3, atol=1e-4)
    with monkeypatch.context() as patch:
        patch.setattr(VisualEncoder, "maps", None)
        again = picture_file_features(encoder, paths, "cpu", file, stride=8, size=64)
    assert again.equal(maps)
    again[0] = 0  # in memory alone
    assert picture_file_features(encoder, paths, "cpu", file, stride=8, size=64).equal(maps)
    assert capsys.readouterr().err == ""


def test_stale_rows_are_noticed(encoder, paths, tmp_path, capsys):
    file = tmp_path / "features.npy"

    def features(by=encoder, **options):
        return picture_file_features(by, paths, "cpu", file, **options)

    first = features()
    assert first.shape == (4, encoder.width)
    (tmp_path / "other").mkdir()
    assert not features(new_encoder(tmp_path / "other")).equal(first)
    said = capsys.readouterr().err
    assert said.count("features of other pictures or of another encoder; computing them anew") == 1
    features()
    Image.new("RGB", (80, 80), (255, 255, 255)).save(paths[0])
    changed = features()
    assert not changed[0].equal(first[0]) and changed[1:].equal(first[1:])
    capsys.readouterr()
    features(size=96)
    assert "computing them anew" in capsys.readouterr().err
    for damaged in (file, tmp_path / "features.npy.json"):
        features()
        capsys.readouterr()
        damaged.write_bytes(b"nothing")
        assert features().equal(changed)
        assert "is not a readable file of features" in capsys.readouterr().err


def test_an_interrupted_computation_leaves_no_valid_file(tmp_path, capsys):
    file = tmp_path / "rows.npy"

    def interrupted():
        yield torch.tensor([0]), torch.ones(1, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        frozen_rows(file, "key", (2, 3), interrupted)
    rows = frozen_rows(file, "key", (2, 3), lambda: iter([(torch.tensor([1]), torch.ones(1, 3))]))
    assert rows.isnan().all(1).tolist() == [True, False]


def test_broken_pictures_are_counted_and_named(encoder, paths, capsys):
    paths[2].write_bytes(b"nothing")
    features = picture_file_features(encoder, paths, "cpu")
    assert features.isfinite().all(1).tolist() == [True, True, False, True]
    assert "1 of 4 pictures have no features" in (said := capsys.readouterr().err) and "2.png" in said


def test_refuses(encoder, paths):
    with pytest.raises(
        ValueError, match=r"stride must be one of shufflenet_v2_x0_5's, \(2, 4, 8, 16, 32\); got 5"
    ):
        picture_file_features(encoder, paths, "cpu", stride=5)
    with pytest.raises(ValueError, match="dtype must be float32 or float16"):
        frozen_rows(None, "key", (1, 1), list, torch.int64)
