"""Trains CMAC and the rows of its ablation."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
import torch.distributed as dist

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.evaluate.retrieval import recall_at_one
from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.systems.cmac.data import ClipBatches
from cmx_fast.systems.cmac.evaluation import new_model
from cmx_fast.systems.cmac.features import chosen, extract, gathered
from cmx_fast.systems.cmac.frame_maps import map_level
from cmx_fast.systems.cmac.model import CMAC
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.train.initial import initialised
from cmx_fast.train.loop import Stage
from cmx_fast.train.session import Session

#: Evaluations on the held-out recordings during training, for the curves; no weights are selected by them.
EVALUATIONS = 5


def on_maps(recipe: CMACRecipe, encoder: VisualEncoder, own_size: bool) -> CMACRecipe:
    """The recipe on maps of a pretrained encoder, of frames at its own size unless ``own_size`` says that one is given.

    Raises:
        ValueError: the given size is not one that the encoder takes, or it has no maps of ``frame_stride``.
    """
    size = recipe.size if own_size else encoder.size
    encoder.check_size(size)
    short_side = max(recipe.short_side, size) if own_size else size
    channels = encoder.channels[map_level(encoder, recipe.frame_stride)]
    return dataclasses.replace(recipe, size=size, short_side=short_side, frame_channels=channels)


def check_key_splits(recipe: CMACRecipe, world: int) -> None:
    """Raise ValueError if a batch has fewer than two clips for each of the ``key_splits`` of each process."""
    fewest = 2 * recipe.key_splits * world
    if recipe.key_splits > 1 and recipe.batch < fewest:
        raise ValueError(
            f"key_splits = {recipe.key_splits} needs a batch of at least {fewest}; got {recipe.batch}"
        )


class Training:
    """The models of one run, each from the same initial encoders.

    Args:
        most: recordings of ``test`` that are looked at for the curves; 0: all.
        curves: measure the held-out recordings during training.
    """

    def __init__(
        self,
        session: Session,
        recipe: CMACRecipe,
        train: Clips,
        test: Clips,
        *,
        most: int,
        curves: bool,
    ):
        self.session, self.fabric, self.recipe = session, session.fabric, recipe
        self.clips, self.test, self.rows, self.curves = train, test, chosen(test, most), curves

    def train(self, name: str, seed: int) -> None:
        """Train a model from a seed, or load it where the run has finished it; "scratch" stays as it is."""
        stage, recipe, fabric = f"seed{seed}/{name}", self.recipe, self.fabric
        model = initialised(seed, lambda: new_model(name, recipe))
        if name == "scratch":
            if self.session.run.weights(stage) is None:
                self.session.run.finish(stage, model.state_dict())
            return
        batches = ClipBatches(
            self.clips,
            recipe,
            recipe.batch // fabric.world_size,
            seed,
            two_clips=model.two_clips,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        steps = recipe.epochs * batches.steps_per_epoch
        self.session.train(
            Stage(
                stage,
                model,
                [{"params": list(model.trained()), "lr": recipe.lr}],
                steps,
                batches,
                seed,
                weight_decay=recipe.weight_decay,
                optimizer=OPTIMIZERS[recipe.optimizer],
                labels=None,
                schedule=functools.partial(
                    warmup, first=recipe.warmup_epochs * batches.steps_per_epoch, cosine=recipe.cosine
                ),
                after_step=model.update_keys,
                evaluation=(lambda: self.evaluate(model)) if self.curves else None,
                evaluate_every=max(1, steps // EVALUATIONS),
            )
        )

    def evaluate(self, model: CMAC) -> dict[str, float]:
        """Measure retrieval among the held-out recordings, for the curves; all processes share them."""
        mixed = self.session.run.config["precision"] == "bf16"
        if self.fabric.world_size > 1:
            for buffer in model.buffers():  # of batch norms: the first process's are those that are kept
                dist.broadcast(buffer, 0)
        features = gathered(
            self.test, self.rows, lambda rows: extract(model, self.test, rows=rows, mixed=mixed)
        )
        if not self.fabric.is_global_zero:
            return {}
        return {"audio_to_video": recall_at_one(features.audio_embedding, features.video_embedding)}


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9),
    "adamw": torch.optim.AdamW,
}


def warmup(step: int, steps: int, *, first: int, cosine: bool) -> float:
    """The factor on the learning rate: rises linearly over the ``first`` steps to 1; ``cosine`` multiplies it by a
    cosine that ends at 0."""
    rising = min(1.0, (step + 1) / max(1, first))
    return rising * (0.5 * (1 + math.cos(math.pi * step / steps)) if cosine else 1.0)
