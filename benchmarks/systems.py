"""Builds the four systems with random data on the device, ready for training steps as in ``cmx train``.

Files are not read: ``cmx bench data`` measures that. The preparation of a batch on the device is part of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cmx_fast.cluster import PiCIEClustering
from cmx_fast.data.transforms.clip_views import ClipViews
from cmx_fast.data.transforms.picture_views import Views
from cmx_fast.data.transforms.reverberation import peak_normalise, reverberate
from cmx_fast.nn.logmel import LogMel
from cmx_fast.ops import _implementations
from cmx_fast.systems.c2l.model import C2L
from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.systems.cmac.model import CMAC
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.systems.cmac.train import OPTIMIZERS
from cmx_fast.systems.csir.batches import random_crop, random_zoom
from cmx_fast.systems.csir.model import CSIR, SpeechEncoder, image_encoder
from cmx_fast.systems.csir.recipe import CSIRRecipe
from cmx_fast.systems.csir.train import parameter_groups
from cmx_fast.systems.sound2scene.model import Alignment, SoundEncoder
from cmx_fast.systems.sound2scene.recipe import Sound2SceneRecipe
from cmx_fast.train.trainable import Batch

#: Rooms of CSIR's pairs, the classes that the batch is balanced over, and seconds of a room's impulse response.
SPACES, AIR_SECONDS = 32, 1.0
#: Width of Sound2Scene's picture features: SwAV's ResNet-50, and the demo's small encoder.
PICTURE_FEATURES = {"paper": 2048, "demo": 128}
#: Pixels of a frame's longer side over its shorter.
FRAME_RATIO = 4 / 3


@dataclass
class System:
    """A model and its training on a batch.

    Attributes:
        title: the batch in words.
        groups: of the optimiser's parameters, each with its "lr".
        prepare: makes the next batch of data that are on the device.
        labels: the part of the batch that the losses take, as in :func:`cmx_fast.train.loop.gather`.
        cluster: the batch's part of the epoch's clustering; returns the labels that the losses need.
        after_step: called after the optimiser's.
        inner: methods of modules (module, name, part) that count as another part than the one that calls them.
    """

    title: str
    module: Any
    groups: list[dict[str, Any]]
    optimizer: Callable[..., torch.optim.Optimizer]
    prepare: Callable[[], Batch]
    labels: tuple[str, ...] | None
    cluster: Callable[[], Batch] | None = None
    after_step: Callable[[], None] | None = None
    inner: tuple[tuple[nn.Module, str, str], ...] = ()


@contextmanager
def formulas_only() -> Iterator[None]:
    """A context in which every operator that may choose takes its formula in plain PyTorch, ``impl="reference"``."""
    automatic = _implementations.automatic
    _implementations.automatic = lambda *_: ("reference", "the kernels are compared with it")
    try:
        yield
    finally:
        _implementations.automatic = automatic


def csir(preset: str, batch: int | None, device: torch.device) -> System:
    """CSIR's cross-modal stage: rooms and sentences convolved, log-mels, crops and zooms; both encoders train."""
    recipe = CSIRRecipe.preset(preset)
    batch = batch or recipe.cross_batch
    samples = int(recipe.seconds * recipe.sample_rate)
    model = CSIR(
        recipe, SPACES, image_encoder(recipe.image_encoder, recipe.attention), SpeechEncoder.of(recipe)
    )
    logmel = LogMel(recipe.sample_rate, recipe.n_fft, recipe.hop, recipe.n_mels).to(device)
    dry = torch.randn(batch, samples, device=device)
    air = torch.randn(batch, int(AIR_SECONDS * recipe.sample_rate), device=device)
    image = torch.randn(batch, 3, recipe.image_size, recipe.image_size, device=device)
    space = torch.arange(batch, device=device) // recipe.samples_per_class % SPACES

    @torch.no_grad()
    def prepare() -> Batch:
        level = logmel(peak_normalise(reverberate(dry, air, samples)))
        level = level.maximum(level.amax((1, 2), keepdim=True) - recipe.range_db)
        return {
            "logmel": random_crop(level, recipe.frames, recipe.gain_db),
            "image": random_zoom(image, recipe.zoom),
            "space": space,
        }

    return System(
        f"CSIR, {batch} pairs, {recipe.image_encoder}, {recipe.image_size} pixels, {recipe.crop_seconds:g} s",
        model.to(device),
        parameter_groups(model),
        _decaying(torch.optim.AdamW, recipe.weight_decay),
        prepare,
        ("space",),
    )


def cmac(preset: str, batch: int | None, device: torch.device) -> System:
    """CMAC: frames cropped and recoloured, filter banks with masks, key encoders, banks, and the consistency loss."""
    recipe = CMACRecipe.preset(preset)
    batch = batch or recipe.batch
    model = CMAC(recipe).to(device)
    height, width = recipe.short_side, int(recipe.short_side * FRAME_RATIO)
    shape = (batch, recipe.frames, 3, height, width)
    frames = torch.randint(256, shape, dtype=torch.uint8, device=device)
    wave = torch.randn(batch, int(recipe.seconds * recipe.sample_rate), device=device)
    index, sizes = torch.arange(batch), torch.tensor([[height, width]]).repeat(batch, 1)

    def prepare() -> Batch:
        views = ClipViews(
            index,
            sizes,
            seed=0,
            epoch=0,
            crop=recipe.size,
            smallest_crop=recipe.smallest_crop,
            jitter=recipe.jitter,
        )
        return {"clip": views(frames), "wave": wave, "index": index}

    return System(
        f"CMAC, {batch} clips, {recipe.frames} frames of {recipe.size} pixels, {recipe.bank} keys",
        model,
        [{"params": list(model.trained()), "lr": recipe.lr}],
        _decaying(OPTIMIZERS[recipe.optimizer], recipe.weight_decay),
        prepare,
        None,
        after_step=model.update_keys,
        inner=((model, "spectrogram", "data"), (model, "consistency", "loss")),
    )


def c2l(preset: str, batch: int | None, device: torch.device) -> System:
    """C2L: two views of a picture, clustered and labelled once an epoch, which takes two more passes of the network."""
    recipe = C2LRecipe.preset(preset)
    batch = batch or recipe.batch
    model = C2L(recipe).to(device)
    side = recipe.size
    pictures = torch.randint(256, (batch, 3, side, side), dtype=torch.uint8, device=device)
    index = torch.arange(batch)
    clusterings = [
        PiCIEClustering(
            recipe.clusters, init_batches=1, init_iterations=recipe.init_iterations, random_state=view
        )
        for view in (0, 1)
    ]

    def prepare() -> Batch:
        images = pictures.float() / 255
        drawn = Views(
            index,
            seed=0,
            epoch=0,
            jitter=recipe.jitter,
            hue=recipe.hue,
            smallest_crop=recipe.smallest_crop,
            device=device,
        )
        return {
            "image1": drawn.geometric(drawn.photometric(images, 1)),
            "image2": drawn.photometric(images, 2),
            "warp": drawn.theta,
        }

    def features() -> tuple[Tensor, Tensor]:
        views = prepare()
        return model.features(views["image1"]), model.features(views["image2"], views["warp"])

    @torch.no_grad()
    def cluster() -> Batch:
        model.train(recipe.cluster_in_train_mode)
        for clustering, maps in zip(clusterings, features(), strict=True):
            clustering.update(maps)
        model.eval()
        taken: Batch = {}
        for view, (clustering, maps) in enumerate(zip(clusterings, features(), strict=True), 1):
            labels = clustering.assign(maps)
            share = torch.bincount(labels.flatten(), minlength=recipe.clusters).float()
            taken |= {
                f"labels{view}": labels,
                f"centroids{view}": clustering.cluster_centers_,
                f"weight{view}": share / share.sum(),
            }
        model.train()
        return taken

    return System(
        f"C2L, {batch} pictures of {side} pixels, {recipe.clusters} clusters, {recipe.atoms} atoms",
        model,
        [{"params": list(model.parameters()), "lr": recipe.lr}],
        _decaying(torch.optim.AdamW, 0.0),
        prepare,
        None,
        cluster,
        model.project_,
    )


def sound2scene(preset: str, batch: int | None, device: torch.device) -> System:
    """Sound2Scene: spectrograms of sounds, with the pictures' features ready."""
    recipe = Sound2SceneRecipe.preset(preset)
    batch = batch or recipe.batch
    width = PICTURE_FEATURES[preset]
    model = Alignment(SoundEncoder(width, recipe.width, recipe.seconds, recipe.positive), recipe.loss)
    data = {
        "wave": 0.1 * torch.randn(batch, int(recipe.seconds * 16_000), device=device),
        "picture": torch.randn(batch, width, device=device),
    }
    return System(
        f"Sound2Scene, {batch} sounds of {recipe.seconds:g} s, {width} features",
        model.to(device),
        [{"params": list(model.parameters()), "lr": recipe.lr}],
        _decaying(torch.optim.Adam, recipe.weight_decay),
        lambda: dict(data),
        ("picture",),
        inner=((model.sound_encoder, "standardised_spectrogram", "data"),),
    )


def _decaying(
    optimizer: Callable[..., torch.optim.Optimizer], weight_decay: float
) -> Callable[..., torch.optim.Optimizer]:
    return lambda groups: optimizer(groups, weight_decay=weight_decay)


SYSTEMS: dict[str, Callable[[str, int | None, torch.device], System]] = {
    "csir": csir,
    "cmac": cmac,
    "c2l": c2l,
    "sound2scene": sound2scene,
}
