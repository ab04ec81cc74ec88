import math
import pickle
import shutil

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from scipy.signal import fftconvolve
from torch.utils.data import DataLoader

from cmx_fast.data.media.files import BrokenFileError
from cmx_fast.data.sets.image2reverb import Image2Reverb
from cmx_fast.data.transforms.schroeder import reverberation_time
from cmx_fast.nn.logmel import LogMel
from cmx_fast.systems.csir.data import PairData


def first(folder, pattern):
    return sorted(folder.glob(pattern))[0]


def test_items(simulated):
    train = Image2Reverb(simulated, "train")
    assert len(train) == 9 * 5
    assert len(train.pairs) == 9
    item = train[7]
    assert {key: (value.dtype, tuple(value.shape)) for key, value in item.items()} == {
        "image": (torch.float32, (3, 224, 224)),
        "wave": (torch.float32, (132300,)),
        "space": (torch.int64, ()),
        "rt60": (torch.float32, ()),
        "indoor": (torch.bool, ()),
        "pair": (torch.int64, ()),
        "utterance": (torch.int64, ()),
    }
    assert (item["pair"], item["utterance"]) == (1, 7)
    assert train.spaces[item["space"]] == train.pairs[1].space
    assert item["wave"].abs().max() == pytest.approx(1)
    assert [train[i]["indoor"].item() for i in (0, 44)] == [True, False]
    with pytest.raises(IndexError):
        train[45]


def test_wave_is_the_convolution_and_modalities_alone_agree(simulated):
    train = Image2Reverb(simulated, "train", seconds=2.0, sentences_per_air=3)
    air, _ = soundfile.read(train.pairs[2].air)
    wave = train.load_wave(8)
    matches = []
    for file in train.speech_files:
        dry, _ = soundfile.read(file)
        expected = np.zeros(44100)
        full = fftconvolve(dry[:44100], air)[:44100]
        expected[: len(full)] = full / np.abs(full).max()
        matches.append(np.abs(expected - wave.numpy()).max() < 1e-4)
    assert sum(matches) == 1
    torch.testing.assert_close(train[8]["wave"], wave)
    torch.testing.assert_close(train[8]["image"], train.load_image(2))


def test_classes_of_the_training_set(simulated):
    spaces = ["somewhere", *Image2Reverb(simulated, "train").spaces]
    test = Image2Reverb(simulated, "test", spaces=spaces)
    assert test[0]["space"] == 1
    with pytest.raises(ValueError, match=r"spaces: .*not among"):
        Image2Reverb(simulated, "test", spaces=spaces[:2])


def test_sentences_differ_within_a_pair_and_repeat_by_seed(simulated):
    waves = [
        Image2Reverb(simulated, "train", seed=seed).load_wave(i)
        for seed, i in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert torch.equal(waves[0], waves[1])
    assert not torch.equal(waves[0], waves[2])
    assert not torch.equal(waves[0], waves[3])


def test_real_layout_without_manifest(damageable):
    with_manifest = Image2Reverb(damageable, "test")
    (damageable / "manifest.csv").unlink()
    real = Image2Reverb(damageable, "test")
    assert [(p.name, p.space) for p in real.pairs] == sorted((p.name, p.space) for p in with_manifest.pairs)
    assert real.pairs[0].indoor is None
    assert "indoor" not in real[0]
    by_name = {p.name: p.rt60 for p in with_manifest.pairs}
    assert all(p.rt60 == pytest.approx(by_name[p.name], abs=1e-3) for p in real.pairs)


def test_an_rt60_that_noise_hides_is_not_known(damageable):
    (damageable / "manifest.csv").unlink()
    path = first(damageable, "train_B/*.wav")
    air, rate = soundfile.read(path)
    noise = np.random.default_rng(0).standard_normal(len(air) + rate)
    soundfile.write(path, np.concatenate([air, np.zeros(rate)]) + 0.05 * np.abs(air).max() * noise, rate)
    pairs = Image2Reverb(damageable, "train").pairs
    assert [math.isnan(pair.rt60) for pair in pairs].count(True) == 1
    data = PairData(Image2Reverb(damageable, "train", seconds=0.5), LogMel(22050, 512, 256, 32))
    assert data.hidden_rt60 == 1 and data.rt60.isnan().sum() == 5


def test_a_response_longer_than_the_speech_counts_whole(damageable):
    (damageable / "manifest.csv").unlink()
    path = first(damageable, "train_B/*.wav")
    t = np.arange(3 * 22050) / 22050
    soundfile.write(path, 0.2 * np.random.default_rng(0).standard_normal(len(t)) * 10 ** (-t), 22050)
    times = [pair.rt60 for pair in Image2Reverb(damageable, "train", seconds=0.5).pairs]
    assert max(times) == pytest.approx(3.0, rel=0.05)


def test_other_sample_rates_are_resampled(damageable):
    path = first(damageable, "train_B/*.wav")
    air, rate = soundfile.read(path)
    before = Image2Reverb(damageable, "train").load_wave(0)
    soundfile.write(path, np.repeat(np.stack([air, 0 * air], 1), 2, axis=0) / 2, 2 * rate)
    after = Image2Reverb(damageable, "train").load_wave(0)
    lowpassed = [torch.fft.rfft(w)[: 6 * 2000] for w in (before, after)]
    similarity = torch.nn.functional.cosine_similarity(*(x.abs() for x in lowpassed), dim=0)
    assert similarity > 0.99


def test_other_picture_shapes_are_cropped_in_the_centre(damageable):
    path = first(damageable, "train_A/*.jpg")
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, 100:200] = 255
    Image.fromarray(picture).save(path, quality=95)
    image = Image2Reverb(damageable, "train", image_size=64).load_image(0)
    assert image.shape == (3, 64, 64)
    assert image[0].min() > 2


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BREAKAGES = {
    "missing air": ("train_B/*.wav", lambda p: p.unlink(), "missing"),
    "missing picture": ("train_A/*.jpg", lambda p: p.unlink(), "missing"),
    "truncated air": ("train_B/*.wav", truncate, "truncated"),
    "truncated picture": ("train_A/*.jpg", truncate, "truncated"),
    "no audio": ("train_B/*.wav", lambda p: p.write_text("not a sound"), "not a readable audio file"),
    "no picture": ("train_A/*.jpg", lambda p: p.write_text("not a picture"), "not a picture"),
    "empty file": ("train_B/*.wav", lambda p: p.write_bytes(b""), "not a readable audio file"),
    "no samples": ("train_B/*.wav", lambda p: soundfile.write(p, np.zeros(0), 22050), "no samples"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_bad_files_are_named_or_skipped(damageable, breakage):
    pattern, damage, reason = BREAKAGES[breakage]
    path = first(damageable, pattern)
    damage(path)
    with pytest.raises(BrokenFileError, match=rf"{path.name}: .*{reason}.*--skip-bad"):
        Image2Reverb(damageable, "train")
    data = Image2Reverb(damageable, "train", skip_bad=True)
    assert len(data.pairs) == 8
    [(skipped, why)] = data.skipped
    assert skipped == path
    assert reason in why


@pytest.mark.parametrize("pattern", ["test_A/*.jpg", "test_B/*.wav"])
def test_unpaired_ids_without_manifest(damageable, pattern):
    (damageable / "manifest.csv").unlink()
    gone = first(damageable, pattern)
    gone.unlink()
    with pytest.raises(BrokenFileError, match=rf"has no partner .*{gone.name}"):
        Image2Reverb(damageable, "test")
    data = Image2Reverb(damageable, "test", skip_bad=True)
    assert len(data.pairs) == 5
    assert len(data.skipped) == 1


@pytest.mark.parametrize("content", [np.zeros(5000), np.full(5000, np.nan)], ids=["silent", "NaN"])
def test_what_only_decoding_shows(damageable, content):
    path = first(damageable, "train_B/*.wav")
    soundfile.write(path, content, 22050, subtype="FLOAT")
    with pytest.raises(BrokenFileError, match=path.name) as raised:
        Image2Reverb(damageable, "train")[0]
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    data = Image2Reverb(damageable, "train", skip_bad=True)
    with pytest.warns(UserWarning, match=f"{path.name}.*stands in"):
        wave = data.load_wave(0)
    assert torch.isfinite(wave).all()
    assert wave.abs().max() == pytest.approx(1)
    assert data.skipped[0][0] == path


def test_loader_workers_read_the_same(simulated):
    data = Image2Reverb(simulated, "test", seconds=1.0, image_size=32, sentences_per_air=1)
    loader = DataLoader(data, batch_size=4, num_workers=1)
    batch = next(iter(loader))
    assert batch["image"].shape == (4, 3, 32, 32)
    torch.testing.assert_close(batch["wave"][2], data[2]["wave"])


def test_memory_bound_does_not_change_what_is_read(simulated):
    options = {"seconds": 1.0, "image_size": 64, "sentences_per_air": 1}
    tight, free = (
        Image2Reverb(simulated, "train", cache_bytes=limit, **options) for limit in (100_000, 1 << 30)
    )
    for _ in range(2):
        for i in range(len(free)):
            torch.testing.assert_close(tight.load_wave(i), free.load_wave(i))
    held = [t.nbytes for t in tight._airs._tensors.values()]
    assert sum(held) <= 100_000 or len(held) == 1
    assert len(free._airs._tensors) == len(free.pairs)


def test_own_speech_folder_and_its_absence(simulated, damageable):
    data = Image2Reverb(simulated, "test", speech=simulated / "speech" / "train")
    assert data.speech_files[0].parent.name == "train"
    shutil.rmtree(damageable / "speech" / "test")
    with pytest.raises(ValueError, match="speech: no sound files .*in .*test; give a folder"):
        Image2Reverb(damageable, "test")
    with pytest.raises(ValueError, match="sentences_per_air=500"):
        Image2Reverb(simulated, "train", sentences_per_air=500)


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (("indoor", "inside"), "lacks the columns"),
        ((",1,", ",maybe,"), "line 2: indoor is 'maybe'"),
        ((",1,0.", ",1,x."), "line 2: rt60 is 'x"),
        ((",1,0.", ",1,-0."), "line 2: rt60 is '-0.*expected 0 or more seconds"),
        ((",1,0.", ",1,1e999"), "line 2: rt60 is '1e999"),
    ],
)
def test_broken_manifest(damageable, replacement, message):
    manifest = damageable / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(*replacement, 1))
    with pytest.raises(ValueError, match=message):
        Image2Reverb(damageable, "train")


def test_refuses(simulated, tmp_path):
    with pytest.raises(ValueError, match="split must be"):
        Image2Reverb(simulated, "validation")
    with pytest.raises(ValueError, match=r"damping must be in \[0, 1\), got 1"):
        Image2Reverb(simulated, "train", damping=1)
    with pytest.raises(ValueError, match="root: no folder"):
        Image2Reverb(tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match=r"seconds \(0\)"):
        Image2Reverb(simulated, "train", seconds=0)


def test_labels_agree_with_the_files(simulated):
    pair = Image2Reverb(simulated, "test").pairs[3]
    response, rate = soundfile.read(pair.air)
    assert pair.rt60 == pytest.approx(reverberation_time(response, rate), abs=6e-4)


def test_sentences_are_drawn_by_picture_and_response(damageable):
    manifest = damageable / "manifest.csv"
    header, first_row, *rest = manifest.read_text().splitlines()
    image, _, rest_of_row = first_row.split(",", 2)
    airs = [row.split(",")[1] for row in (first_row, *rest) if row.split(",")[2] == rest_of_row.split(",")[0]]
    manifest.write_text("\n".join([header, *(f"{image},{air},{rest_of_row}" for air in airs)]) + "\n")
    sentences = Image2Reverb(damageable, "train")._sentences
    assert len(sentences) > 1
    assert len({tuple(drawn) for drawn in sentences}) == len(sentences)


def test_damping_shortens_responses_and_their_rt60(simulated):
    plain = Image2Reverb(simulated, "train", seconds=1.0)
    damped = Image2Reverb(simulated, "train", seconds=1.0, damping=0.6)
    factors = [damped.rt60(i) / plain.rt60(i) for i in range(len(plain))]
    assert 0.4 <= min(factors) < 0.5 and 0.9 < max(factors) <= 1
    for i in (0, 7):
        (dry, air), (same, before) = damped.load_sounds(i), plain.load_sounds(i)
        assert torch.equal(dry, same)
        measured = [reverberation_time(sound.numpy(), plain.sample_rate) for sound in (air, before)]
        assert measured[0] / measured[1] == pytest.approx(factors[i], rel=0.15)


def test_speech_may_lie_in_folders_and_be_of_any_kind(simulated, tmp_path):
    dry, rate = soundfile.read(first(simulated / "speech" / "test", "*.wav"))
    for name, options in {
        "a/b/1.flac": {},
        "c/2.ogg": {},
        "c/3.wv1": {"format": "NIST", "subtype": "PCM_16"},
        "c/notes.txt": None,
        ".hidden/4.wav": {},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if options is None:
            (tmp_path / name).write_text("words")
        else:
            soundfile.write(tmp_path / name, dry, rate, **options)
    data = Image2Reverb(simulated, "test", speech=tmp_path, sentences_per_air=1, seconds=0.5)
    assert [path.name for path in data.speech_files] == ["1.flac", "2.ogg", "3.wv1"]
    assert [path.name for path, _ in data.skipped] == ["notes.txt"]
    assert data.load_wave(0).abs().max() == pytest.approx(1)


def test_a_table_names_the_speech(damageable):
    files = sorted((damageable / "speech" / "train").glob("*.wav"))[:6]
    lines = [f"{file},{'test' if i else 'train'}" for i, file in enumerate(files)]
    (damageable / "speech.csv").write_text("\n".join(["file,split", *lines]) + "\n")
    assert Image2Reverb(damageable, "test").speech_files == files[1:]
    (damageable / "speech.csv").write_text("file,split\nx.wav,training\n")
    with pytest.raises(ValueError, match="line 2: split is 'training'"):
        Image2Reverb(damageable, "test")
