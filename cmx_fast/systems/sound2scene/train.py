"""Trains the sound encoder of Sound2Scene."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.data.sets.selection import read_selection
from cmx_fast.networks.audio_encoders import AudioEncoder, open_audio_encoder
from cmx_fast.networks.picture_encoder import PictureEncoder
from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.systems.sound2scene.checkpoints import (
    load_sound_encoder,
    new_sound_encoder,
    open_icgan,
    open_sound2scene,
)
from cmx_fast.systems.sound2scene.data import SoundBatches
from cmx_fast.systems.sound2scene.evaluate import evaluate_run
from cmx_fast.systems.sound2scene.evaluation import Evaluation
from cmx_fast.systems.sound2scene.model import Alignment, SoundEncoder, alignment_loss
from cmx_fast.systems.sound2scene.picture_features import picture_features
from cmx_fast.systems.sound2scene.pretraining import LabelledSounds, SoundClassification
from cmx_fast.systems.sound2scene.published_networks import PublishedNetworks
from cmx_fast.systems.sound2scene.recipe import Sound2SceneRecipe
from cmx_fast.systems.sound2scene.sound_features import (
    TITLES,
    check_selection,
    open_splits,
    own_rank,
    selected,
    sound_features,
)
from cmx_fast.train.initial import initialised
from cmx_fast.train.loop import Stage, constant, warmup_and_cosine
from cmx_fast.train.session import Session, require_a_batch

#: Evaluations on the held-out scenes during training, for the curves, where there is no validation: no weights are
#: selected by them.
EVALUATIONS = 8


@dataclass(frozen=True)
class Plan:
    """The options of ``cmx train sound2scene``, read and checked, but for the folder and the seed."""

    data: Path
    icgan: Path
    dataset: str
    preset: str
    recipe: Sound2SceneRecipe
    classes: list[str] | None
    picture_encoder: Path | None
    audio_encoder: str | None
    sounds: Path | None
    weights: Path | None
    selection: Path | None
    published: PublishedNetworks
    device: str | None
    workers: int | None
    precision: str
    compile: bool
    sync_bn: bool
    fsdp: bool
    loggers: list[str]
    resume: bool


def train_run(plan: Plan, out: Path, seed: int, *, features: Path | None = None) -> Evaluation | None:
    """Train one sound encoder and evaluate it; only the first process does, and gets the evaluation.

    ``features`` is the folder that keeps the pictures' features; default: the run's own.
    """
    recipe = plan.recipe
    session = Session(
        "train sound2scene",
        recipe,
        preset=plan.preset,
        device=plan.device,
        precision=plan.precision,
        compile=plan.compile,
        sync_bn=plan.sync_bn,
        fsdp=plan.fsdp,
        loggers=plan.loggers,
    )
    encoder, _ = open_icgan(plan.icgan, plan.picture_encoder)
    audio_encoder = None if plan.audio_encoder is None else open_audio_encoder(plan.audio_encoder)
    trained = None if plan.weights is None else load_sound_encoder(plan.weights, encoder.width)
    if trained is not None and (trained.resnet.width, trained.seconds, trained.positive) != (
        recipe.width,
        recipe.seconds,
        recipe.positive,
    ):
        raise ValueError(
            f"{plan.weights} has width = {trained.resnet.width}, seconds = {trained.seconds:g} and positive = "
            f"{trained.positive}; the recipe has {recipe.width}, {recipe.seconds:g} and {recipe.positive}"
        )
    moments = None if plan.selection is None else read_selection(plan.selection)
    splits = open_splits(plan.dataset, plan.data, recipe, encoder.size, moments, plan.classes, plan.workers)
    for split, scenes in splits.items():
        session.say(f"{TITLES[split]}: {len(scenes)} scenes{selected(scenes)}{left_out(scenes.skipped)}")
    train, test = splits["train"], splits["test"]
    if moments is not None:
        check_selection(plan.selection, moments, train, test)
    if trained is None:
        require_a_batch(len(train), recipe.batch, "scenes")
    config = {
        "data": str(plan.data),
        "dataset": plan.dataset,
        "classes": plan.classes,
        "icgan": str(plan.icgan.absolute()),
        "picture_encoder": None if plan.picture_encoder is None else str(plan.picture_encoder.absolute()),
        "audio_encoder": plan.audio_encoder,
        "audio_encoder_fingerprint": None if audio_encoder is None else audio_encoder.fingerprint(),
        "sounds": None if plan.sounds is None else str(plan.sounds),
        "weights": None if plan.weights is None else str(plan.weights),
        "selection": None if plan.selection is None else str(plan.selection),
        "seed": seed,
    }
    with session.recording(out, config, resume=plan.resume, splits=tuple(splits.values())) as run:
        if trained is None:
            train_sounds(
                session, encoder, recipe, seed, splits, audio_encoder, folder=features, sounds=plan.sounds
            )
        elif run.weights("sounds") is None:
            run.finish("sounds", Alignment(trained, recipe.loss).state_dict())
    evaluation = None
    if session.fabric.is_global_zero:
        evaluation = evaluate_run(
            run.finished(), train, test, published=plan.published, features=features,
            system=open_sound2scene(run.path, plan.icgan, plan.picture_encoder).to(session.fabric.device),
        )  # fmt: skip
    run.close()
    return evaluation


def train_sounds(
    session: Session,
    encoder: PictureEncoder | VisualEncoder,
    recipe: Sound2SceneRecipe,
    seed: int,
    splits: dict[str, SceneData],
    audio_encoder: AudioEncoder | None,
    *,
    folder: Path | None = None,
    sounds: Path | None = None,
) -> None:
    """Compute the pictures' features, then train the sound encoder on them, if there are ``sounds`` on those first.

    With a validation part the weights with its lowest loss count, and training ends where it no longer falls. Without
    one the last weights count, and the held-out scenes give the curves alone.
    """
    fabric = session.fabric
    folder = folder or session.run.path
    measured = "val" if "val" in splits else "test"
    with fabric.rank_zero_first():
        features, held_out = (
            picture_features(encoder, splits[split], fabric.device, folder / f"features_{split}.npy")
            for split in ("train", measured)
        )
    if recipe.positive and (features < 0).any():
        session.say(
            "the pictures' features have negative values, which a sound encoder that ends in a ReLU never reaches: "
            "--set positive=false"
        )
    module = initialised(
        seed, lambda: Alignment(new_sound_encoder(recipe, encoder.width, audio_encoder), recipe.loss)
    )
    learning: list[nn.Parameter] = [p for p in module.parameters() if p.requires_grad]
    if sounds is not None:
        assert isinstance(module.sound_encoder, SoundEncoder)
        train_on_labelled(session, module.sound_encoder, recipe, seed, sounds)
        if recipe.fixed:
            learning = list(module.sound_encoder.resnet.fc.parameters())
            module.sound_encoder.fix_maps()
    batches = SoundBatches(
        splits["train"],
        features,
        recipe.batch // fabric.world_size,
        seed,
        fabric.device,
        rank=fabric.global_rank,
        world=fabric.world_size,
    )
    steps = recipe.epochs * batches.steps_per_epoch

    def evaluate() -> dict[str, float]:
        if not fabric.is_global_zero:
            return {}
        return held_out_loss(module, splits[measured], held_out)

    session.train(
        Stage(
            "sounds",
            module,
            [{"params": learning, "lr": recipe.lr}],
            steps,
            batches,
            seed,
            weight_decay=recipe.weight_decay,
            optimizer=torch.optim.Adam,
            labels=("picture",),
            schedule=warmup_and_cosine if recipe.cosine else constant,
            evaluation=evaluate,
            evaluate_every=batches.steps_per_epoch if "val" in splits else max(1, steps // EVALUATIONS),
            best="held_out_loss" if "val" in splits else None,
            patience=recipe.patience if "val" in splits else 0,
        )
    )


def train_on_labelled(
    session: Session, encoder: SoundEncoder, recipe: Sound2SceneRecipe, seed: int, root: Path
) -> None:
    """Train a sound encoder to tell labelled sounds apart, in place."""
    fabric = session.fabric
    sounds = LabelledSounds(
        root, recipe.seconds, recipe.batch // fabric.world_size, seed + fabric.global_rank, fabric.device
    )
    session.say(
        f"labelled sounds: {len(sounds)} of {len(sounds.class_names)} classes{left_out(sounds.skipped)}"
    )
    classification = initialised(seed, lambda: SoundClassification(encoder, len(sounds.class_names)))
    learning = [p for name, p in classification.named_parameters() if ".fc." not in name]
    session.train(
        Stage(
            "labelled_sounds",
            classification,
            [{"params": learning, "lr": recipe.lr}],
            recipe.sound_epochs * sounds.steps_per_epoch,
            sounds,
            seed,
            weight_decay=recipe.weight_decay,
            optimizer=torch.optim.Adam,
            labels=None,
        )
    )


def held_out_loss(module: Alignment, scenes: SceneData, features: Tensor) -> dict[str, float]:
    """The loss of all scenes in one batch, and the share of sounds whose nearest picture is their own."""
    index, sounds = sound_features(module.sound_encoder, scenes)
    pictures = features.unflatten(0, (len(scenes), scenes.moments))[index, scenes.moments // 2]
    readable = pictures.isfinite().all(1)
    sounds, pictures = sounds[readable], pictures[readable]
    return {
        "held_out_loss": float(alignment_loss(sounds, pictures, module.kind)),
        "sound_to_picture": float(own_rank(sounds, pictures).eq(0).double().mean()),
    }
