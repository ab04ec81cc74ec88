"""``cmx train csir``: CSIR and its baselines, from image-AIR pairs to a table and a report."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from cmx_fast.data.sets.recordings import check_split, left_out
from cmx_fast.evaluate.retrieval import recalls
from cmx_fast.networks.visual_encoders import open_visual_encoder
from cmx_fast.options import (
    FSDP,
    Compile,
    Encoder,
    Out,
    Precision,
    Preset,
    Resume,
    Seeds,
    Set,
    SkipBad,
    SyncBN,
    choose_models,
)
from cmx_fast.systems.csir.baselines import DecayTime
from cmx_fast.systems.csir.batches import class_balanced, training_batches
from cmx_fast.systems.csir.data import PairData
from cmx_fast.systems.csir.evaluate import HELD_OUT, Speech, Split, evaluate_run
from cmx_fast.systems.csir.evaluation import MODELS, Model, embed, even_crops, open_split
from cmx_fast.systems.csir.model import (
    FrozenImageEncoder,
    ImageEncoder,
    ImagePretraining,
    SpeechPretraining,
    image_encoder,
    load_places365,
)
from cmx_fast.systems.csir.recipe import CSIRRecipe
from cmx_fast.train.initial import initialised
from cmx_fast.train.loop import Module, Stage
from cmx_fast.train.session import Session
from cmx_fast.train.settings import changes
from cmx_fast.train.trainable import Batch

Models = Annotated[list[str], typer.Option(help="Model: csir, dscmr, classifiers or rt60; repeatable.")]


def train_csir(
    data: Annotated[
        Path, typer.Option(help="Data in the Image2Reverb layout, e.g. from cmx simulate rooms.")
    ],
    out: Out = Path("runs/csir"),
    preset: Preset = "paper",
    seeds: Seeds = 1,
    model: Models = [*MODELS],  # noqa: B006
    places365: Annotated[
        Path | None,
        typer.Option(
            help="resnet50_places365.pth.tar; without it the image encoder is first trained on the spaces."
        ),
    ] = None,
    encoder: Encoder = None,
    speech: Speech = None,
    split: Split = "test",
    precision: Precision = "fp32",
    compile: Compile = False,
    sync_bn: SyncBN = False,
    fsdp: FSDP = False,
    resume: Resume = False,
    skip_bad: SkipBad = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Train CSIR and its baselines on image-speech pairs, measure them on held-out pairs, write report.html.

    With --encoder the image encoder is a pretrained one that stays as it is: its features of all pictures, at the size
    that it was trained at and not augmented, are computed once and kept, and no pixels are needed after that.
    """
    check_split(split, HELD_OUT)
    models = choose_models(model, MODELS)
    recipe = CSIRRecipe.preset(preset, **changes(set, CSIRRecipe))
    frozen = None
    if encoder is not None:
        if places365 is not None:
            raise ValueError("give --encoder or --places365, not both: each is the image encoder")
        pretrained = open_visual_encoder(encoder)
        recipe = dataclasses.replace(recipe, image_encoder="pretrained", image_size=pretrained.size)
        frozen = FrozenImageEncoder(pretrained)
    elif recipe.image_encoder == "pretrained":
        raise ValueError("image_encoder = pretrained needs its name: --encoder NAME or NAME=FILE")
    if places365 is not None:
        load_places365(
            image_encoder(recipe.image_encoder, recipe.attention), places365
        )  # fails before the data are read
    session = Session(
        "train csir",
        recipe,
        preset=preset,
        precision=precision,
        compile=compile,
        sync_bn=sync_bn,
        fsdp=fsdp,
    )
    train = open_split(data, "train", recipe, session.fabric.device, speech=speech, skip_bad=skip_bad)
    spaces = train.dataset.spaces
    test = open_split(
        data, split, recipe, session.fabric.device, spaces=spaces, speech=speech, skip_bad=skip_bad
    )
    for part, pairs in (("train", train), (split, test)):
        hidden = f"; {pairs.hidden_rt60} of unknown RT60, left out of its loss" if pairs.hidden_rt60 else ""
        session.say(
            f"{part}: {len(pairs.dataset.pairs)} pairs, {len(pairs)} utterances, {len(spaces)} spaces"
            + hidden
            + left_out(pairs.dataset.skipped)
        )
    if places365 is None and frozen is None:
        session.say(
            "image encoder: no --places365 weights nor --encoder, so it first learns to name the spaces from pictures"
        )
    config = {
        "data": str(data),
        "speech": None if speech is None else str(speech),
        "seeds": list(range(seeds)),
        "models": models,
        "split": split,
        "spaces": spaces,
        "places365": None if places365 is None else str(places365),
        "encoder": encoder,
        "encoder_fingerprint": None if frozen is None else frozen.fingerprint(),
        "skip_bad": skip_bad,
    }
    with session.recording(out, config, resume=resume) as run:
        training = Training(session, recipe, train, test, frozen or places365)
        for seed in range(seeds):
            training.train_seed(seed, models)
    if session.fabric.is_global_zero:
        evaluate_run(run.finished(), test)


class Training:
    """The stages of one run: speech encoder, image encoder, then each model from copies of both."""

    def __init__(
        self,
        session: Session,
        recipe: CSIRRecipe,
        train: PairData,
        test: PairData,
        image: FrozenImageEncoder | Path | None,
    ):
        self.session, self.fabric, self.recipe = session, session.fabric, recipe
        self.train, self.test, self.image = train, test, image
        if isinstance(image, FrozenImageEncoder):
            kept = session.run.path / "image_features.npy" if self.fabric.is_global_zero else None
            train.freeze_images(image, kept)
            test.freeze_images(image)
        self.spaces = len(train.dataset.spaces)
        self.mel_mean, self.mel_std = train.mel_statistics()

    def train_seed(self, seed: int, models: list[str]) -> None:
        """Train every stage of one seed, or load those that the run has finished."""
        recipe = self.recipe
        speech = initialised(seed, lambda: SpeechPretraining(recipe, self.spaces))
        speech.encoder.standardise(self.mel_mean, self.mel_std)
        speech.scale.fit(self.train.rt60)
        speech = self.train_augmented(
            "speech",
            seed,
            speech,
            [{"params": list(speech.parameters()), "lr": recipe.speech_lr}],
            recipe.speech_steps,
            recipe.speech_batch,
            ("logmel",),
            labels=("space", "rt60"),
        )
        image: ImageEncoder
        if isinstance(self.image, FrozenImageEncoder):
            image = self.image
        elif self.image is not None:
            # The gates of an attentive encoder are in no file.
            image = initialised(seed, lambda: image_encoder(recipe.image_encoder, recipe.attention))
            load_places365(image, self.image)
        else:
            pretraining = initialised(seed, lambda: ImagePretraining(recipe, self.spaces))
            pretraining = self.train_augmented(
                "image",
                seed,
                pretraining,
                [{"params": list(pretraining.parameters()), "lr": recipe.image_lr}],
                recipe.image_steps,
                recipe.image_batch,
                ("image",),
            )
            image = pretraining.encoder
        computed = functools.cache(lambda: features(image, speech.encoder, self.train, recipe))
        for name in models:
            encoders = copy.deepcopy(image), copy.deepcopy(speech.encoder)
            new: Callable[[], Model] = functools.partial(MODELS[name], recipe, self.spaces, *encoders)
            model = initialised(seed, new)
            if isinstance(model, DecayTime):
                model.scale.fit(self.train.rt60)
            if recipe.head_steps:
                model = self.train_heads(f"{name}-heads", seed, model, computed)
            self.train_augmented(
                name,
                seed,
                model,
                parameter_groups(model),
                recipe.cross_steps,
                recipe.cross_batch,
                ("image", "logmel"),
                labels=("space", "rt60"),
                evaluation=lambda model=model: self.evaluate(model),
            )

    def train_augmented(
        self,
        name: str,
        seed: int,
        module: Module,
        groups: list[dict[str, Any]],
        steps: int,
        batch: int,
        modalities: tuple[str, ...],
        **more: Any,
    ) -> Module:
        """Train a stage on augmented batches of ``batch`` utterances per process, with these modalities."""
        batches = training_batches(
            self.train,
            self.recipe,
            batch,
            modalities,
            seed,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
        )
        return self.train_stage(name, seed, module, groups, steps, batches, **more)

    def train_heads(
        self, name: str, seed: int, model: Model, computed: Callable[[], tuple[Tensor, Tensor]]
    ) -> Model:
        """Train the cross-modal stage before its encoders move, on their ``computed`` features: its steps are cheap."""
        for parameter in model.encoders():
            parameter.requires_grad_(False)
        pretrained = {id(parameter) for parameter in model.encoders()}
        new = [parameter for parameter in model.parameters() if id(parameter) not in pretrained]
        groups = [{"params": new, "lr": self.recipe.head_lr}]

        def batches(start: int) -> Iterator[Batch]:
            image, speech = computed()
            batch, rank, world = (
                self.recipe.head_batch,
                self.fabric.global_rank,
                self.fabric.world_size,
            )
            labels = self.train.space[: self.train.paired]
            stream = class_balanced(labels, batch * world, self.recipe.samples_per_class, seed)
            for rows in islice(stream, start, None):
                own = torch.tensor(rows[rank * batch : (rank + 1) * batch])
                yield {
                    "image_features": image[self.train.pair[own]],
                    "speech_features": speech[own],
                    "space": self.train.space[own].to(image.device),
                    "rt60": self.train.rt60[own].to(image.device),
                }

        model = self.train_stage(
            name, seed, model, groups, self.recipe.head_steps, batches, labels=("space", "rt60")
        )
        for parameter in model.encoders():
            parameter.requires_grad_(True)
        return model

    def train_stage(
        self,
        name: str,
        seed: int,
        module: Module,
        groups: list[dict[str, Any]],
        steps: int,
        batches: Callable[[int], Iterator[Batch]],
        **more: Any,
    ) -> Module:
        """Train a stage with the recipe's weight decay and number of evaluations."""
        stage = Stage(
            f"seed{seed}/{name}",
            module,
            groups,
            steps,
            batches,
            seed,
            self.recipe.weight_decay,
            evaluate_every=max(1, steps // max(1, self.recipe.evaluations)),
            **more,
        )
        return self.session.train(stage)

    def evaluate(self, model: Model) -> dict[str, float]:
        """Measure R@1 on the held-out pairs, for the curves; on the first process only."""
        if not self.fabric.is_global_zero:
            return {}
        measured = recalls(embed(model, self.test, self.recipe))
        return {f"{direction} R@1": groups["total"]["R@1"] or 0.0 for direction, groups in measured.items()}


@torch.no_grad()
def features(
    image_encoder: nn.Module, speech_encoder: nn.Module, data: PairData, recipe: CSIRRecipe
) -> tuple[Tensor, Tensor]:
    """e^v (pairs, d_v) and e^s (utterances, d_s) of all pairs with a picture, not augmented, on their device."""
    encoders = [encoder.to(data.device).eval() for encoder in (image_encoder, speech_encoder)]
    image = data.image_features
    if image is None:
        batches = data.in_order(("image",), rows=data.first.tolist())
        image = torch.cat([encoders[0](batch["image"]) for batch in batches])
    speech = [
        encoders[1](even_crops(b["logmel"], recipe.frames, 1)[0])
        for b in data.in_order(("logmel",), rows=range(data.paired))
    ]
    for encoder in encoders:
        encoder.train()
    return image.to(data.device), torch.cat(speech)


def parameter_groups(model: Model) -> list[dict[str, Any]]:
    """Two groups: the pre-trained encoders at ``encoder_lr``, everything new at ``cross_lr``."""
    pretrained = {id(p) for p in model.encoders()}
    new = [p for p in model.parameters() if id(p) not in pretrained]
    return [
        {"params": model.encoders(), "lr": model.recipe.encoder_lr},
        {"params": new, "lr": model.recipe.cross_lr},
    ]
