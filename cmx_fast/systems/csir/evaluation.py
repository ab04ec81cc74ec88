"""Measures CSIR and its baseline on held-out pairs: the models by name, their embeddings and recalls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cmx_fast.data.sets.image2reverb import Image2Reverb
from cmx_fast.evaluate import retrieval
from cmx_fast.evaluate.retrieval import Embeddings, Recalls
from cmx_fast.evaluate.summary import seeds_note
from cmx_fast.nn.logmel import LogMel
from cmx_fast.systems.csir.data import PairData
from cmx_fast.systems.csir.dscmr import DSCMR
from cmx_fast.systems.csir.model import (
    CSIR,
    FrozenImageEncoder,
    ImageEncoder,
    SpeechEncoder,
    image_encoder,
    load_places365,
)
from cmx_fast.systems.csir.recipe import Recipe
from cmx_fast.train.run_folder import FinishedRun

MODELS: dict[str, type[CSIR] | type[DSCMR]] = {"csir": CSIR, "dscmr": DSCMR}


def new_model(
    name: str, recipe: Recipe, spaces: int, frozen: FrozenImageEncoder | None = None
) -> CSIR | DSCMR:
    """A model of that name with fresh weights, but for a frozen image encoder's."""
    image: ImageEncoder = frozen or image_encoder(recipe.image_encoder, recipe.attention)
    return MODELS[name](recipe, spaces, image, SpeechEncoder.of(recipe))


@torch.no_grad()
def embed(model: CSIR | DSCMR, data: PairData, recipe: Recipe) -> Embeddings:
    """Embed every image and every utterance in the common space, not augmented, in float32.

    The embedding of an utterance that is longer than the encoder's input is the mean over ``eval_crops`` crops.
    """
    training = model.training
    model.eval()
    first = torch.arange(len(data.dataset.pairs)) * (len(data) // len(data.dataset.pairs))
    images = [
        model.encode_image(b["image"]).float().cpu() for b in data.in_order(("image",), rows=first.tolist())
    ]
    speech = []
    for batch in data.in_order(("logmel",)):
        crops = even_crops(batch["logmel"], recipe.frames, recipe.eval_crops)
        speech.append(torch.stack([model.encode_speech(crop).float() for crop in crops]).mean(0).cpu())
    model.train(training)
    indoor = torch.tensor(
        [-1 if p.indoor is None else int(p.indoor) for p in data.dataset.pairs], dtype=torch.int8
    )
    return Embeddings(
        torch.cat(images),
        torch.cat(speech),
        data.space[first],
        data.space,
        indoor,
        indoor[data.pair],
        data.pair,
    )


def even_crops(logmel: Tensor, frames: int, crops: int) -> Tensor:
    """Cut crops evenly spaced over all frames: (B, M, T) -> (crops, B, M, frames); one crop is the middle."""
    room = logmel.shape[2] - frames
    starts = [room // 2] if crops == 1 else [room * i // (crops - 1) for i in range(crops)]
    return torch.stack([logmel[:, :, s : s + frames] for s in starts])


@dataclass
class Evaluation:
    """The figures of the table and the report; ``recalls[model]`` has one entry per seed."""

    recalls: dict[str, list[Recalls]]
    distinct: dict[str, list[Recalls]]  # the same without repeated pictures in the image gallery
    images: tuple[int, int]  # the number of pictures in the gallery, and of different ones
    chance: float
    shown: Embeddings  # by the first model from the first seed, for the gallery

    def caption(self) -> str:
        seeds = len(next(iter(self.recalls.values())))
        return (
            f"Recall in %: {len(self.shown.image)} images, {len(self.shown.speech)} utterances, "
            f"{len(self.shown.image_space.unique())} spaces; chance R@1 {100 * self.chance:.1f}"
            + seeds_note(seeds)
        )

    def as_dict(self) -> dict[str, object]:
        return {
            "protocol": "hit: one of the first K answers is from the query's space; repeated entries kept",
            "chance_R@1": self.chance,
            "images": {"gallery": self.images[0], "distinct": self.images[1]},
            "mean_and_spread": {model: retrieval.spread(seeds) for model, seeds in self.recalls.items()},
            "seeds": self.recalls,
            "seeds_distinct_images": self.distinct,
        }


def pretrained_image_encoder(run: FinishedRun, recipe: Recipe) -> nn.Module:
    """The first seed's image encoder before the cross-modal stage."""
    encoder = image_encoder(recipe.image_encoder, recipe.attention)
    if run.config["places365"]:
        load_places365(encoder, run.config["places365"])
    else:
        weights = run.weights(f"seed{run.config['seeds'][0]}/image")
        encoder.load_state_dict(
            {
                name.removeprefix("encoder."): value
                for name, value in weights.items()
                if name.startswith("encoder.")
            }
        )
    return encoder


def open_split(
    root: Path,
    split: str,
    recipe: Recipe,
    device: torch.device | str,
    *,
    spaces: list[str] | None = None,
    speech: Path | None = None,
    skip_bad: bool = False,
) -> PairData:
    """Open one split in the Image2Reverb layout with the recipe's numbers; ``speech`` holds <split>/*.wav.

    Raises:
        ValueError: the split has no pairs.
    """
    dataset = Image2Reverb(
        root,
        split,
        speech=None if speech is None else speech / split,
        sentences_per_air=recipe.sentences_per_air,
        seconds=recipe.seconds,
        sample_rate=recipe.sample_rate,
        image_size=recipe.image_size,
        spaces=spaces,
        skip_bad=skip_bad,
    )
    logmel = LogMel(recipe.sample_rate, recipe.n_fft, recipe.hop, recipe.n_mels)
    return PairData(
        dataset,
        logmel,
        range_db=recipe.range_db,
        cache=recipe.cache,
        backend=recipe.backend,
        device=device,
    )
