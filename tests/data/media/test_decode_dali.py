"""DALI's pictures and sounds beside Pillow's and libsndfile's, and what the data sets make of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali", reason="needs the dali extra")
pytest.importorskip("av", reason="needs the media extra")

import soundfile
from atr_files import write_pictures
from PIL import Image
from video_files import tone, write_video

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.media import decode_dali
from cmx_fast.data.media.dali_pipelines import Graph, dali, decode, fn
from cmx_fast.data.media.decode import probe
from cmx_fast.data.media.decode_dali_files import read_pictures, read_sounds
from cmx_fast.data.media.files import BrokenFileError, read_audio, read_picture
from cmx_fast.data.sets.atr import ATR
from cmx_fast.data.sets.image2reverb import Image2Reverb
from cmx_fast.data.sets.scenes import Scene, Scenes
from cmx_fast.nn.logmel import LogMel
from cmx_fast.systems.c2l.data import Pictures
from cmx_fast.systems.csir.data import PairData


def clouds(height=300, width=400):
    """A picture of soft colours."""
    cells = np.random.default_rng(0).integers(0, 256, (height // 30, width // 30, 3), np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    made = {
        "colour.jpg": clouds(),
        "grey.jpg": clouds().convert("L"),
        "cmyk.jpg": clouds().convert("CMYK"),
        "palette.png": clouds().convert("P"),
        "clear.png": clouds().convert("RGBA"),
        "high.png": clouds(400, 30),
    }
    for name, picture in made.items():
        picture.save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned
    clouds().save(folder / "turned.jpg", exif=exif)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("size", [64, 270])
def test_pictures_are_pillows(pictures, size):
    for path, picture in zip(pictures, read_pictures(pictures, size, threads=2), strict=True):
        expected = read_picture(path, size)
        assert picture.shape == expected.shape == (3, size, size) and picture.dtype == torch.uint8
        difference = (picture.float() - expected.float()).square().mean().sqrt()
        assert 20 * torch.log10(255 / difference) > 45, path.name
    assert read_pictures([], size) == []


def test_pixels_are_the_same_where_nothing_is_resized(pictures):
    path = next(path for path in pictures if path.name == "colour.jpg")
    (picture,) = read_pictures([path], 300, shorter=300)
    assert (picture.int() - read_picture(path, 300, shorter=300).int()).abs().max() <= 1


def test_bad_pictures_are_named_and_the_others_come(pictures, tmp_path):
    content = pictures[0].read_bytes()
    bad = {
        "empty.jpg": b"",
        "text.jpg": b"not a picture",
        "half.png": next(path for path in pictures if path.suffix == ".png").read_bytes()[:300],
    }
    for name, value in bad.items():
        (tmp_path / name).write_bytes(value)
    Image.new("RGB", (4096, 16)).save(tmp_path / "strip.png")
    (tmp_path / "good.jpg").write_bytes(content)
    paths = [*sorted(tmp_path.iterdir()), tmp_path / "gone.jpg"]
    for path, picture in zip(paths, read_pictures(paths, 64), strict=True):
        if path.name == "good.jpg":
            torch.testing.assert_close(picture, read_pictures([pictures[0]], 64)[0])
        else:
            assert isinstance(picture, BrokenFileError) and picture.path == path, path
            with pytest.raises(BrokenFileError, match="4096x16" if path.name == "strip.png" else "decoded"):
                read_picture(path, 64)


@pytest.mark.parametrize("mix", [False, True])
def test_sounds_are_libsndfiles(tmp_path, mix):
    wave = np.stack([tone(1.5), 0.3 * tone(1.5)[::-1]], 1)
    for name, options in {
        "pcm16.wav": {"subtype": "PCM_16"},
        "pcm24.wav": {"subtype": "PCM_24"},
        "float.wav": {"subtype": "FLOAT"},
        "a.flac": {},
        "a.ogg": {},
        "a.mp3": {},
    }.items():
        soundfile.write(tmp_path / name, wave, 16000, **options)
    paths = sorted(tmp_path.iterdir())
    for rate in (16000, 22050):
        for path, sound in zip(paths, read_sounds(paths, rate, 20000, mix=mix, threads=2), strict=True):
            torch.testing.assert_close(sound, read_audio(path, rate, 20000, mix=mix), atol=1e-5, rtol=0)


def test_bad_sounds_are_named(tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(100), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan), 16000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("not a sound")
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "good.wav", tone(0.5), 16000)
    paths = [*sorted(tmp_path.iterdir()), tmp_path / "gone.wav"]
    reasons = {
        path.stem: sound.reason if isinstance(sound, BrokenFileError) else None
        for path, sound in zip(paths, read_sounds(paths, 16000, 5000), strict=True)
    }
    assert reasons.pop("good") is None and all(reasons.values())
    assert reasons["silent"] == "is silent" and reasons["nan"] == "holds NaN or infinity"


def through_dali(outputs, wave):
    graph = Graph((("wave", dali.types.FLOAT, 1),), lambda sources, gpu: [outputs(sources["wave"])])
    return decode(graph, [{"wave": wave.numpy()}], lambda _, output: output.clone())[0]


def test_the_front_ends_agree_with_dalis():
    wave = torch.from_numpy(tone(2.0)).float() * torch.linspace(0.1, 1, 2 * 16000)
    expected = through_dali(
        lambda sound: fn.to_decibels(
            fn.mel_filter_bank(
                fn.spectrogram(
                    sound,
                    nfft=1024,
                    window_length=1024,
                    window_step=256,
                    window_fn=torch.hann_window(1024).tolist(),
                ),
                sample_rate=16000,
                nfilter=64,
                mel_formula="htk",
                normalize=False,
            ),
            multiplier=10.0,
            reference=1.0,
            cutoff_db=-100.0,
        ),
        wave,
    )
    spectrogram = LogMel(16000, 1024, 256, 64)(wave)
    loud = expected > expected.max() - 60  # below, float32 rounding of the loud bands
    torch.testing.assert_close(spectrogram[loud], expected[loud], atol=1e-2, rtol=0)


def test_batches_of_pairs_are_the_same(simulated):
    def data(backend):
        dataset = Image2Reverb(simulated, "train", seconds=1.0, image_size=48)
        return PairData(dataset, LogMel(n_fft=512, n_mels=16), backend=backend)

    rows = [[0, 7, 3, 7], [12]]
    batches = list(data("dali").load(iter(rows), ("image", "logmel")))
    for ours, theirs in zip(batches, data("auto").load(iter(rows), ("image", "logmel")), strict=True):
        assert torch.equal(ours["space"], theirs["space"])
        torch.testing.assert_close(ours["logmel"], theirs["logmel"], atol=1e-3, rtol=0)
        assert (ours["image"] - theirs["image"]).abs().mean() < 0.02


def test_a_picture_that_breaks_has_a_stand_in(damageable):
    dataset = Image2Reverb(damageable, "train", seconds=1.0, image_size=48, skip_bad=True)
    broken = dataset.pairs[0].image
    content = io.BytesIO()
    clouds().save(content, "jpeg")
    broken.write_bytes(content.getvalue()[:200] + b"\xff\xd9")
    data = PairData(dataset, LogMel(n_fft=512, n_mels=16), backend="dali")
    with pytest.warns(UserWarning, match="another file of the set stands in"):
        (batch,) = data.load(iter([[0, 5]]), ("image",))
    assert torch.equal(batch["image"][0], dataset.load_image(1)) and dataset.skipped[0][0] == broken


def test_batches_of_pictures_are_the_same(tmp_path):
    root = write_pictures(tmp_path / "atr", {"train": 4, "val": 1, "test": 2}, size=40)
    rows = torch.tensor([[2, 0], [3, 3]])
    batches = Pictures(ATR(root, "train", size=24), backend="dali").load(rows)
    for (index, ours), (_, theirs) in zip(
        batches, Pictures(ATR(root, "train", size=24)).load(rows), strict=True
    ):
        assert len(index) == 2 and ours.shape == theirs.shape == (2, 3, 24, 24)
        assert (ours - theirs).abs().mean() < 0.01


@pytest.mark.parametrize("cache", [False, True])
def test_batches_of_scenes_are_the_same(tmp_path, cache):
    videos = [write_video(tmp_path / f"{place}.mp4", 60, size=(64, 48)) for place in range(3)]
    entries = [Scene(path.stem, 0, path, path, probe(path)) for path in videos]
    clouds().save(tmp_path / "a.jpg")
    soundfile.write(tmp_path / "a.wav", tone(0.7), 16000)
    (tmp_path / "b.jpg").write_bytes(b"not a picture")
    entries.insert(1, Scene("a", 1, tmp_path / "a.jpg", tmp_path / "a.wav"))
    entries.append(Scene("b", 1, tmp_path / "b.jpg", None))
    numbers = [torch.tensor([0, 1, 4]), torch.tensor([3, 2])]

    def read(backend):
        data = SceneData(
            Scenes(entries, ["x", "y"]), size=32, seconds=1.0, workers=2, backend=backend, cache=cache
        )
        return [*data.pictures(numbers), *data.sounds(numbers)], data.skipped

    (batches, skipped), (expected, _) = read("dali"), read("auto")
    assert [path.name for path, _ in skipped] == ["b.jpg"]
    for (index, ours), (wanted, theirs) in zip(batches, expected, strict=True):
        assert torch.equal(index, wanted) and ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert (ours.float() - theirs.float()).abs().mean() < (3 if ours.dtype == torch.uint8 else 1e-4)


def test_why_dali_refuses_a_video_is_said(tmp_path):
    path = write_video(tmp_path / "a.mkv", 30, codec="mpeg4")
    ((error,)) = decode_dali.batch([(path, [0.5])], 48)
    assert "Failed to create video decoder" in error.reason


def test_other_backends_are_refused_before_work(simulated):
    dataset = Image2Reverb(simulated, "train", seconds=1.0, image_size=48)
    with pytest.raises(ValueError, match="backend='pyav'; expected one of auto, dali"):
        PairData(dataset, LogMel(), backend="pyav")
    with pytest.raises(ValueError, match="backend='cuda'; expected one of"):
        SceneData(Scenes([], []), backend="cuda")
