"""Pictures and sounds contrasted place by token: pairs alone teach which place sounds, as in DenseAV."""

import torch
from torch import nn

from cmx_fast.losses import DenseContrastiveLoss

SIDE, STEPS_OF_SOUND, CLASSES, BATCH = 6, 9, 40, 24


def pairs(generator, looks, sounds):
    """Pictures (24, 12, 6, 6) of an object at one place, its sounds (24, 9, 10), their real steps, and the places."""
    kind = torch.randperm(CLASSES, generator=generator)[:BATCH]
    place = torch.randint(SIDE * SIDE, (BATCH,), generator=generator)
    picture = 0.5 * torch.randn(BATCH, looks.shape[1], SIDE * SIDE, generator=generator)
    picture[torch.arange(BATCH), :, place] += looks[kind]
    sound = sounds[kind, None] + torch.randn(BATCH, STEPS_OF_SOUND, sounds.shape[1], generator=generator)
    length = torch.randint(3, STEPS_OF_SOUND + 1, (BATCH,), generator=generator)
    return picture.unflatten(2, (SIDE, SIDE)), sound, torch.arange(STEPS_OF_SOUND) < length[:, None], place


def main(loss=None, steps=100):
    generator = torch.Generator().manual_seed(0)
    objects = torch.randn(CLASSES, 8, generator=generator)
    looks, sounds = (objects @ torch.randn(8, width, generator=generator) for width in (12, 10))
    torch.manual_seed(0)
    see, hear = nn.Conv2d(12, 16, 1), nn.Linear(10, 16)
    loss = loss or DenseContrastiveLoss(temperature=0.1, pool="max_mean", normalize=True)
    optimizer = torch.optim.Adam([*see.parameters(), *hear.parameters()], lr=0.02)

    values = []
    for _ in range(steps):
        picture, sound, real, _ = pairs(generator, looks, sounds)
        # Maps (24, 16, 6, 6) as they are, against tokens (24, 9, 16): no (24, 24, 36, 9) similarities.
        output = loss(see(picture), hear(sound), key_mask=real)
        optimizer.zero_grad()
        output.backward()
        optimizer.step()
        values.append(output.item())

    picture, sound, real, place = pairs(generator, looks, sounds)
    with torch.no_grad():
        heat = torch.einsum("ncp,ntc,nt->np", see(picture).flatten(2), hear(sound), real.float())
    return values, (heat.argmax(1) == place).float().mean().item()


if __name__ == "__main__":
    losses, found = main()
    print(
        f"loss {losses[0]:.2f} to {losses[-1]:.2f}; the sounding place is found in {found:.0%} of new pictures"
    )
