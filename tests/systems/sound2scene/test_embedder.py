"""Files as rows of Sound2Scene's space."""

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image

from cmx_fast.data.media.files import BrokenFileError
from cmx_fast.networks.biggan import Generator
from cmx_fast.networks.picture_encoder import PictureEncoder
from cmx_fast.systems.sound2scene.embedder import SAMPLE_RATE, Sound2SceneEmbedder
from cmx_fast.systems.sound2scene.model import Sound2Scene, SoundEncoder


@pytest.fixture(scope="module")
def embedder():
    torch.manual_seed(0)
    system = Sound2Scene(PictureEncoder("small"), SoundEncoder(128, 8, 0.5), Generator(64, 8, 10, 128, 6))
    return Sound2SceneEmbedder(system)


def test_pictures_and_sounds_are_rows_of_one_space(embedder, tmp_path):
    rng = np.random.default_rng(0)
    wave = (0.1 * rng.standard_normal(SAMPLE_RATE)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, SAMPLE_RATE, subtype="FLOAT")
    size = embedder.system.picture_encoder.size
    pixels = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    sound, picture = embedder.embed(tmp_path / "a.wav", "audio"), embedder.embed(tmp_path / "a.png", "image")
    half = torch.from_numpy(wave[: SAMPLE_RATE // 2])  # the seconds that it hears
    torch.testing.assert_close(sound, embedder.system.encode_sound(half[None])[0])
    expected = embedder.system.encode_picture(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0]
    torch.testing.assert_close(picture, F.normalize(expected, dim=0))


def test_broken_files_and_other_models_are_refused(embedder, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    soundfile.write(tmp_path / "silent.wav", np.zeros(900), SAMPLE_RATE)
    for name, kind in (("a.png", "image"), ("silent.wav", "audio")):
        with pytest.raises(BrokenFileError, match=name):
            embedder.embed(tmp_path / name, kind)
    with pytest.raises(ValueError, match="has one model: leave --model and --seed out"):
        Sound2SceneEmbedder.from_run(tmp_path, model="csir")
