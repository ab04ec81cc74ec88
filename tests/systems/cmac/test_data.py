"""CMAC's batches where the device is busy: what is read on the host, and what is only sent."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("av", reason="needs the media extra")

from video_files import write_video

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.data.sets.recordings import Recording, Recordings
from cmx_fast.systems.cmac.data import ClipBatches
from cmx_fast.systems.cmac.recipe import CMACRecipe


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Recordings:
    folder = tmp_path_factory.mktemp("clips")
    return Recordings([Recording(write_video(folder / f"{i}.mp4", 60), i % 2, str(i)) for i in range(4)], [])


def batches(recordings: Recordings, device: str) -> list[dict[str, torch.Tensor]]:
    recipe = CMACRecipe.preset("demo", jitter=0.4)
    clips = Clips(
        recordings, frames=4, fps=10, seconds=0.5, sample_rate=8000, short_side=48, workers=0, device=device
    )
    endless = ClipBatches(clips, recipe, 2, 0, two_clips=True)(0)
    return [next(endless) for _ in range(3)]


def test_a_batch_is_made_without_waiting_for_the_device(recordings):
    """Tensors of device "meta" hold no values: to wait for one fails."""
    for sent, here in zip(batches(recordings, "meta"), batches(recordings, "cpu"), strict=True):
        assert sent.keys() == here.keys()
        for name, value in sent.items():
            assert value.shape == here[name].shape and value.dtype == here[name].dtype
            assert value.is_meta == (name != "index")
        assert sent["index"].equal(here["index"])
