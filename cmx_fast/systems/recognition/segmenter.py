"""Segments pictures by a network of ``cmx train segment``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.systems.recognition.model import Levels, Plan, Segmenter
from cmx_fast.systems.recognition.networks import new_model
from cmx_fast.systems.recognition.options import SEGMENT
from cmx_fast.systems.recognition.recipe import RecognitionRecipe
from cmx_fast.train.fabric import default_device
from cmx_fast.train.frozen_features import run_encoder
from cmx_fast.train.picture_segmenter import PictureSegmenter
from cmx_fast.train.run_folder import RunFolder
from cmx_fast.train.trained_model import Encoders


class RecognitionSegmenter(PictureSegmenter):
    """Pictures as maps of the classes that a network with an attention module was taught.

    Args:
        attention: the module's name.
        network: :class:`cmx_fast.systems.recognition.model.Segmenter`.
        encoder: whose maps the network takes, or which has learnt with it.
        classes: the names of the labels.
    """

    SYSTEM = "Segmentation with attention"
    PAPER = "the attention module's: docs/attention.md of cmx_fast"
    LIMITS = "Pictures are stretched to one square, so things much smaller or larger than in training are seen worse."

    encoder: VisualEncoder

    def __init__(self, attention: str, network: Segmenter, encoder: VisualEncoder, classes: Sequence[str]):
        super().__init__(classes, range(len(classes)), network.recipe.size)
        self.attention = attention
        self.network, self.recipe, self.encoder = network, network.recipe, encoder
        self.requires_grad_(False).eval()

    @classmethod
    def from_run(
        cls,
        folder: Path | str,
        *,
        model: str | None = None,
        seed: int | None = None,
        encoder_file: Path | str | None = None,
    ) -> RecognitionSegmenter:
        """Open a network of a finished ``cmx train segment`` folder, on the GPU if there is one.

        Args:
            model, seed: as of :meth:`FinishedRun.choose`: an attention module's name, by default the run's first.
            encoder_file: weights of the run's pretrained encoder, if not where the run had them.

        Raises:
            ValueError: no finished run, it has no such network or seed, or its encoder has other weights.
        """
        run = RunFolder.open_finished(Path(folder), "train segment")
        name, seed = run.choose(run.config["models"], model, seed)
        encoder = run_encoder(run, encoder_file)
        assert encoder is not None
        classes = run.config["classes"]
        network = new_segmenter(name, run.recipe(RecognitionRecipe), len(classes), encoder)
        network.load_state_dict(run.weights(f"seed{seed}/{name}"))
        return cls(name, network, encoder, classes).from_the(run, name, seed).to(default_device())

    @classmethod
    def rebuild(cls, settings: dict[str, Any], encoders: Encoders, source: Path) -> RecognitionSegmenter:
        encoder = encoders.visual
        assert encoder is not None
        name, classes = settings["model"], settings["classes"]
        recipe = RecognitionRecipe.stored(settings["recipe"], source)
        return cls(name, new_segmenter(name, recipe, len(classes), encoder), encoder, classes)

    def settings(self) -> dict[str, Any]:
        return {"model": self.attention, "recipe": self.recipe.as_dict(), "classes": list(self.classes)}

    def trained(self) -> Segmenter:
        return self.network

    def scores(self, picture: Tensor) -> Tensor:
        if self.network.encoder is not None:
            return self.network({"picture": picture})["logits"]
        maps = self.encoder.maps(picture)
        numbers = self.network.levels.numbers
        return self.network({f"map{n}": maps[number] for n, number in enumerate(numbers)})["logits"]


def new_segmenter(
    attention: str, recipe: RecognitionRecipe, classes: int, encoder: VisualEncoder
) -> Segmenter:
    """A network with fresh weights; an encoder that learns with it is part of it."""
    network = new_model(SEGMENT, Plan(recipe, attention, classes, Levels.of(encoder, recipe), encoder))
    assert isinstance(network, Segmenter)
    return network
