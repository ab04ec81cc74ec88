"""Segments pictures by a trained C2L run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cmx_fast.networks.fpn import pack
from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.networks.weights import read_json
from cmx_fast.systems.c2l.evaluation import CLUSTERS_FILE, new_model
from cmx_fast.systems.c2l.model import C2L
from cmx_fast.systems.c2l.picie import PiCIE
from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.train.fabric import default_device
from cmx_fast.train.frozen_features import run_encoder
from cmx_fast.train.picture_segmenter import PictureSegmenter
from cmx_fast.train.run_folder import FinishedRun, RunFolder
from cmx_fast.train.trained_model import Encoders

#: The models that segment one picture by itself, the preferred one first. DFF factorises many pictures together.
USABLE = ("c2l", "part+pixel", "part", "picie")
#: The class of clusters that the evaluation met nowhere.
UNKNOWN = "unknown"


class C2LSegmenter(PictureSegmenter):
    """Pictures as maps of C2L's clusters, or of the classes that the run's evaluation found them to be.

    Example::

        segmenter = C2LSegmenter.from_run("runs/people")
        labels = segmenter.segment_file("photograph.jpg")
        share = (labels == segmenter.classes.index("upper")).float().mean()

    Args:
        network: :class:`cmx_fast.systems.c2l.model.C2L`, or another row of its ablation.
        encoder: the fixed encoder whose maps the network takes; None: it takes pictures.
        classes, class_of: names of the labels, and the label of each cluster, as :func:`labels_of_clusters` gives them.
    """

    SYSTEM = "C2L"
    PAPER = "Zhang et al., Contrastive and Consistent Learning for Unsupervised Human Parsing"
    LIMITS = (
        "Clusters are found without masks; named ones have the class that they meet most in the run's held-out masks. "
        "Pictures are stretched to one square, so people much smaller or larger than in training are seen worse."
    )

    def __init__(
        self, network: PiCIE, encoder: VisualEncoder | None, classes: Sequence[str], class_of: Sequence[int]
    ):
        super().__init__(classes, class_of, network.recipe.size)
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
    ) -> C2LSegmenter:
        """Open a model of a finished ``cmx train c2l`` folder, on the GPU if there is one.

        Args:
            model, seed: as of :meth:`FinishedRun.choose`: "c2l", the default, "part+pixel", "part" or "picie".
            encoder_file: weights of the run's pretrained encoder, if not where the run had them.

        Raises:
            ValueError: no finished run, it has no such model or seed, or its encoder has other weights.
        """
        run = RunFolder.open_finished(Path(folder), "train c2l")
        name, seed = run.choose(USABLE, model, seed)
        recipe, encoder = run.recipe(C2LRecipe), run_encoder(run, encoder_file)
        shapes = None if encoder is None else encoder.map_shapes(recipe.size, recipe.map_stride)
        network = new_model(name, recipe, shapes)
        network.load_state_dict(run.weights(f"seed{seed}/{name}"))
        assert isinstance(network, PiCIE)
        opened = cls(network, encoder, *labels_of_clusters(run, name, seed)).from_the(run, name, seed)
        return opened.to(default_device())

    @classmethod
    def rebuild(cls, settings: dict[str, Any], encoders: Encoders, source: Path) -> C2LSegmenter:
        encoder, recipe = encoders.visual, C2LRecipe.stored(settings["recipe"], source)
        shapes = None if encoder is None else encoder.map_shapes(recipe.size, recipe.map_stride)
        network = new_model(settings["model"], recipe, shapes)
        assert isinstance(network, PiCIE)
        return cls(network, encoder, settings["classes"], settings["class_of"])

    def settings(self) -> dict[str, Any]:
        return {
            "model": self.network.variant if isinstance(self.network, C2L) else "picie",
            "recipe": self.recipe.as_dict(),
            "classes": list(self.classes),
            "class_of": self.class_of.tolist(),
        }

    def trained(self) -> PiCIE:
        return self.network

    def scores(self, picture: Tensor) -> Tensor:
        if self.encoder is None:
            return self.network.scores(picture)
        levels = sum(stride >= self.recipe.map_stride for stride in self.encoder.strides)
        return self.network.scores(pack(self.encoder.maps(picture)[-levels:]))


def labels_of_clusters(run: FinishedRun, name: str, seed: int) -> tuple[list[str], list[int]]:
    """Names of the labels, and the label of each cluster of a model.

    They are the classes that the run's evaluation gave to the clusters, with "unknown" after them where it met a
    cluster nowhere; without an evaluation every cluster is a label of its own.
    """
    file = run.path / CLUSTERS_FILE
    if not file.is_file():
        clusters = run.recipe(C2LRecipe).test_clusters
        return [f"cluster {cluster}" for cluster in range(clusters)], list(range(clusters))
    met = [name or UNKNOWN for name in read_json(file)[name][run.config["seeds"].index(seed)]]
    classes = [*run.config["classes"], *([UNKNOWN] if UNKNOWN in met else [])]
    return classes, [classes.index(name) for name in met]
