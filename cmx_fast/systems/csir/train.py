"""Trains CSIR and its baselines."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmx_fast.evaluate.retrieval import recalls
from cmx_fast.systems.csir.baselines import DecayTime
from cmx_fast.systems.csir.batches import class_balanced, share, training_batches
from cmx_fast.systems.csir.data import PairData
from cmx_fast.systems.csir.evaluation import MODELS, Model, embed, even_crops
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
from cmx_fast.train.trainable import Batch


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
        """Train a stage on augmented batches of ``batch`` utterances of all processes, with these modalities."""
        world = self.fabric.world_size
        batches = training_batches(
            self.train,
            self.recipe,
            share(batch, self.recipe.samples_per_class, world),
            modalities,
            seed,
            rank=self.fabric.global_rank,
            world=world,
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
            rank, world = self.fabric.global_rank, self.fabric.world_size
            batch = share(self.recipe.head_batch, self.recipe.samples_per_class, world)
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
