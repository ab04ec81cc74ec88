"""The moments of videos that agree best with their sound."""

from __future__ import annotations

import sys

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.media.decode import read_frames
from cmx_fast.data.media.files import BrokenFileError
from cmx_fast.data.sets.selection import FPS, Selection, key
from cmx_fast.systems.sound2scene.localiser.model import Localiser

#: Frames per pass through the network.
BATCH = 64


@torch.no_grad()
def moments(localiser: Localiser, videos: SceneData, top: int) -> Selection:
    """Choose the ``top`` frames of each video, best first; broken and silent videos are left out and named."""
    device = next(localiser.parameters()).device
    selection: Selection = {}
    loader = DataLoader(_Videos(videos), batch_size=None, num_workers=videos.workers)
    for scene, loaded in track(loader, "moments", total=len(videos), disable=not sys.stderr.isatty()):  # type: int, tuple[Tensor, Tensor] | BrokenFileError
        if isinstance(loaded, BrokenFileError):
            videos.leave_out(scene, loaded)
            continue
        frames, wave = loaded
        sound = localiser.encode_sound(wave[None].float().to(device) / 32767)
        scores = torch.cat(
            [
                localiser.agreement(
                    localiser.encode_picture(part.to(device) / 255), sound.expand(len(part), -1)
                )
                for part in frames.split(BATCH)
            ]
        )
        best = scores.argsort(descending=True, stable=True)[:top]
        selection[key(videos.entries[scene].name)] = best.tolist()
    return selection


class _Videos(Dataset):  # type: ignore[type-arg]
    """Videos by number: all frames at FPS, uint8 (T, 3, S, S), with the sound int16, or the error of a broken file."""

    def __init__(self, videos: SceneData):
        self.videos = videos

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, scene: int) -> tuple[int, tuple[Tensor, Tensor] | BrokenFileError]:
        entry, size = self.videos.entries[scene], self.videos.size
        assert entry.media is not None
        count = max(1, int(entry.media.video_seconds * FPS))
        times = [entry.media.start + i / FPS for i in range(count)]
        try:
            frames = read_frames(entry.picture, times, short_side=size)
            top, left = ((side - size) // 2 for side in frames.shape[2:])
            return scene, (
                frames[:, :, top : top + size, left : left + size],
                self.videos.read_sound(scene),
            )
        except BrokenFileError as error:
            return scene, error


@torch.no_grad()
def own_is_best(localiser: Localiser, videos: SceneData) -> float:
    """The share of videos whose own sound, of all videos', agrees best with their middle picture."""
    device = next(localiser.parameters()).device
    localiser.eval()
    middle = torch.arange(len(videos)) * videos.moments + videos.moments // 2
    maps = {
        int(number) // videos.moments: picture
        for index, pictures in videos.pictures(list(middle.split(BATCH)))
        for number, picture in zip(
            index, localiser.encode_picture(pictures.to(device) / 255).cpu(), strict=True
        )
    }
    sounds = {
        int(scene): sound
        for index, waves in videos.sounds(list(torch.arange(len(videos)).split(BATCH)))
        for scene, sound in zip(index, localiser.encode_sound(waves.to(device)).cpu(), strict=True)
    }
    both = sorted(maps.keys() & sounds.keys())
    gallery = torch.stack([sounds[scene] for scene in both])
    best = [
        int(localiser.agreement(maps[scene][None].expand(len(gallery), -1, -1, -1), gallery).argmax()) == row
        for row, scene in enumerate(both)
    ]
    return sum(best) / len(best)
