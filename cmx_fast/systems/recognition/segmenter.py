"""Segments pictures by a network of ``cmx train segment``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.systems.recognition.attentions import SEGMENT
from cmx_fast.systems.recognition.model import Levels, Plan, Segmenter
from cmx_fast.systems.recognition.networks import new_model
from cmx_fast.systems.recognition.recipe import RecognitionRecipe
from cmx_fast.train.frozen_features import run_encoder
from cmx_fast.train.options import default_device
from cmx_fast.train.picture_segmenter import PictureSegmenter
from cmx_fast.train.run_folder import RunFolder


class RecognitionSegmenter(PictureSegmenter):
    """Pictures as maps of the classes that a network with an attention module was taught.

    Args:
        network: :class:`cmx_fast.systems.recognition.model.Segmenter`.
        encoder: whose maps the network takes, or which has learnt with it.
        classes: the names of the labels.
    """

    def __init__(self, network: Segmenter, encoder: VisualEncoder, classes: Sequence[str]):
        super().__init__(classes, range(len(classes)), network.recipe.size)
        self.network, self.recipe, self.encoder = network, network.recipe, encoder
        self.requires_grad_(False).eval()

    @classmethod
    def from_run(
        cls, folder: Path | str, *, model: str | None = None, seed: int | None = None
    ) -> RecognitionSegmenter:
        """Open a network of a finished ``cmx train segment`` folder, on the GPU if there is one.

        Args:
            model, seed: as of :meth:`FinishedRun.choose`: an attention module's name, by default the run's first.

        Raises:
            ValueError: no finished run, or it has no such network or seed.
        """
        run = RunFolder.open_finished(Path(folder), "train segment")
        name, seed = run.choose(run.config["models"], model, seed)
        encoder = run_encoder(run)
        assert encoder is not None
        classes = run.config["classes"]
        network = new_segmenter(name, run.recipe(RecognitionRecipe), len(classes), encoder)
        network.load_state_dict(run.weights(f"seed{seed}/{name}"))
        return cls(network, encoder, classes).to(default_device())

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
