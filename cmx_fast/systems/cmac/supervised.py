"""A CMAC model's audio encoder trained on labelled sounds: what the frozen one is compared with."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from cmx_fast.data.media.decode import read_wave
from cmx_fast.data.sets.recordings import Recordings
from cmx_fast.systems.cmac.model import CMAC
from cmx_fast.systems.cmac.sounds import cut, playable

#: Passes over the sounds, each of one clip at a random time of every sound; clips of a step; AdamW's peak rate and
#: weight decay. All ours.
EPOCHS, BATCH, RATE, WEIGHT_DECAY = 20, 16, 2e-3, 1e-2


def train_encoder(model: CMAC, recordings: Recordings, seconds: float, seed: int) -> None:
    """Train ``model``'s audio encoder, in place, and a linear layer on its maps' means to name the recordings' classes.

    Spectrograms are augmented as in the model's own training. The rate rises over the first two passes and falls to 0
    along a cosine. Sounds that no clip of ``seconds`` can be cut from are left out. All others are kept in memory,
    float32 at the model's rate.

    Raises:
        ValueError: no sound is left.
    """
    rate, encoder = model.recipe.sample_rate, model.audio.encoder
    device = model.filterbank.bands.device
    sounds: list[tuple[Tensor, int]] = []
    for entry in track(recordings.entries, "sounds to train on", transient=True):
        length, problem = playable(entry.path, seconds)
        if problem is None:
            sounds.append((read_wave(entry.path, 0.0, length, rate), entry.label))
    if not sounds:
        raise ValueError(f"none of {len(recordings)} sounds can be trained on")
    torch.manual_seed(seed)
    layer = nn.Linear(encoder.channels, len(recordings.class_names)).to(device)
    parameters = [*encoder.parameters(), *layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=WEIGHT_DECAY)
    per_epoch = max(1, len(sounds) // BATCH)
    steps = EPOCHS * per_epoch

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / (2 * per_epoch)) * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    samples = round(seconds * rate)
    model.train()
    for _ in track(range(EPOCHS), "training", transient=True):
        for rows in torch.randperm(len(sounds))[: per_epoch * BATCH].tensor_split(per_epoch):
            chosen = [sounds[row] for row in rows.tolist()]
            starts = [int(torch.randint(max(1, len(wave) - samples + 1), ())) for wave, _ in chosen]
            clips = [cut(wave, start, samples) for (wave, _), start in zip(chosen, starts, strict=True)]
            waves = torch.stack(clips).to(device)
            labels = torch.tensor([label for _, label in chosen], device=device)
            logits = layer(encoder(model.spectrogram(waves)).flatten(2).mean(2))
            optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()
            optimizer.step()
            schedule.step()
    model.eval()
