"""Measures CSIR and its baselines on held-out pairs: the models by name, their embeddings, recalls and RT60."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cmx_fast.data.sets.image2reverb import Image2Reverb
from cmx_fast.evaluate import retrieval
from cmx_fast.evaluate.retrieval import Embeddings, Recalls
from cmx_fast.evaluate.summary import Spread, mean_and_spread, percent, seeds_note
from cmx_fast.nn.logmel import LogMel
from cmx_fast.systems.csir.baselines import Classifiers, DecayTime
from cmx_fast.systems.csir.data import PairData
from cmx_fast.systems.csir.dscmr import DSCMR
from cmx_fast.systems.csir.model import (
    CSIR,
    FrozenImageEncoder,
    ImageEncoder,
    ImagePretraining,
    SpeechEncoder,
    SpeechPretraining,
    TwoTowers,
    image_encoder,
    load_places365,
)
from cmx_fast.systems.csir.recipe import CSIRRecipe
from cmx_fast.train.run_folder import FinishedRun

Model = CSIR | DSCMR | Classifiers | DecayTime
MODELS: dict[str, type[CSIR] | type[DSCMR] | type[Classifiers] | type[DecayTime]] = {
    "csir": CSIR,
    "dscmr": DSCMR,
    "classifiers": Classifiers,
    "rt60": DecayTime,
}


def new_model(name: str, recipe: CSIRRecipe, spaces: int, frozen: FrozenImageEncoder | None = None) -> Model:
    """A model of that name with fresh weights, but for a frozen image encoder's."""
    image: ImageEncoder = frozen or image_encoder(recipe.image_encoder, recipe.attention)
    return MODELS[name](recipe, spaces, image, SpeechEncoder.of(recipe))


def embed_speech(model: TwoTowers, logmel: Tensor, recipe: CSIRRecipe) -> Tensor:
    """Embed log-mels (B, n_mels, T) as the mean over ``eval_crops`` crops: (B, D) float32, not normalised."""
    crops = even_crops(logmel, recipe.frames, recipe.eval_crops)
    return torch.stack([model.encode_speech(crop).float() for crop in crops]).mean(0)


@torch.no_grad()
def embed(model: Model, data: PairData, recipe: CSIRRecipe) -> Embeddings:
    """Embed every image and every utterance of its responses in the common space, not augmented, in float32.

    The embedding of an utterance that is longer than the encoder's input is the mean over ``eval_crops`` crops.
    """
    training = model.training
    model.eval()
    images = [
        model.project_image(model.image_features(b)).float().cpu()
        for b in data.in_order(("image",), rows=data.first.tolist())
    ]
    speech = []
    for batch in data.in_order(("logmel",), rows=range(data.paired)):
        speech.append(embed_speech(model, batch["logmel"], recipe).cpu())
    model.train(training)
    indoor = torch.tensor(
        [-1 if p.indoor is None else int(p.indoor) for p in data.dataset.pairs[: data.pictured]],
        dtype=torch.int8,
    )
    pair = data.pair[: data.paired]
    return Embeddings(
        torch.cat(images),
        torch.cat(speech),
        data.space[data.first],
        data.space[: data.paired],
        indoor,
        indoor[pair],
        pair,
    )


@dataclass(frozen=True)
class DecayErrors:
    """Errors of RT60 by ear, over the responses of known RT60; a response's estimate is its utterances' median.

    Attributes:
        median: the median of |estimate - measured| / measured.
        within: the share of responses whose error is at most 20 %.
        alone: the same median for the training set's own median RT60, which listens to nothing.
        responses: the number of responses.
    """

    median: float
    within: float
    alone: float
    responses: int


@torch.no_grad()
def decay_errors(model: SpeechPretraining, data: PairData, recipe: CSIRRecipe) -> DecayErrors | None:
    """Errors of the speech encoder's RT60 on a split; None where no RT60 is known."""
    model.eval()
    by_response: dict[Path, list[Tensor]] = defaultdict(list)
    airs = [pair.air for pair in data.dataset.pairs]
    row = 0
    for batch in data.in_order(("logmel",)):
        crops = even_crops(batch["logmel"], recipe.frames, recipe.eval_crops)
        estimates = torch.stack([model.estimate_rt60(crop) for crop in crops]).mean(0)
        for estimate, measured in zip(estimates, batch["rt60"], strict=True):
            if not measured.isnan() and measured > 0:
                by_response[airs[data.pair[row]]].append((estimate / measured).log().cpu())
            row += 1
    if not by_response:
        return None
    ratios = torch.stack([torch.stack(logs).median() for logs in by_response.values()]).exp()
    measured = {pair.air: pair.rt60 for pair in data.dataset.pairs}
    guess = model.scale.seconds(torch.zeros((), device=model.scale.mean.device)).item()
    blind = torch.tensor([abs(guess / measured[air] - 1) for air in by_response])
    errors = (ratios - 1).abs()
    return DecayErrors(
        errors.median().item(), (errors <= 0.2).double().mean().item(), blind.median().item(), len(errors)
    )


def even_crops(logmel: Tensor, frames: int, crops: int) -> Tensor:
    """Cut crops evenly spaced over all frames: (B, M, T) -> (crops, B, M, frames); one crop is the middle."""
    room = logmel.shape[2] - frames
    starts = [room // 2] if crops == 1 else [room * i // (crops - 1) for i in range(crops)]
    return torch.stack([logmel[:, :, s : s + frames] for s in starts])


@dataclass
class Evaluation:
    """The figures of the table and the report; ``recalls[model]`` has one entry per seed."""

    split: str
    recalls: dict[str, list[Recalls]]
    distinct: dict[str, list[Recalls]]  # the same without repeated pictures in the image gallery
    images: tuple[int, int]  # the number of pictures in the gallery, and of different ones
    chance: float
    decays: list[DecayErrors]  # one entry per seed; empty where no RT60 is known
    shown: Embeddings  # by the first model from the first seed, for the gallery

    def caption(self) -> str:
        seeds = len(next(iter(self.recalls.values())))
        return (
            f"Recall in %, {self.split} part: {len(self.shown.image)} images, {len(self.shown.speech)} utterances, "
            f"{len(self.shown.image_space.unique())} spaces; chance R@1 {100 * self.chance:.1f}"
            + seeds_note(seeds)
        )

    def decay_note(self) -> str:
        """A sentence on RT60 by ear; empty where none is known."""
        if not self.decays:
            return ""
        several = len(self.decays) > 1
        return (
            f"RT60 by the speech encoder, {self.decays[0].responses} responses: median error "
            f"{percent(self._decay('median'), several)} %, within 20 % for {percent(self._decay('within'), several)} % "
            f"of them (the training's median RT60 for all: median error {percent(self._decay('alone'), several)} %)"
        )

    def _decay(self, name: str) -> Spread | None:
        return mean_and_spread(getattr(seed, name) for seed in self.decays)

    def as_dict(self) -> dict[str, object]:
        return {
            "split": self.split,
            "protocol": "hit: one of the first K answers is from the query's space; repeated entries kept",
            "chance_R@1": self.chance,
            "images": {"gallery": self.images[0], "distinct": self.images[1]},
            "mean_and_spread": {model: retrieval.spread(seeds) for model, seeds in self.recalls.items()},
            "seeds": self.recalls,
            "seeds_distinct_images": self.distinct,
            "rt60": [asdict(seed) for seed in self.decays],
        }


def pretrained_speech(run: FinishedRun, seed: int, recipe: CSIRRecipe) -> SpeechPretraining:
    """A seed's speech encoder with its heads, before the cross-modal stage."""
    model = SpeechPretraining(recipe, len(run.config["spaces"]))
    model.load_state_dict(run.weights(f"seed{seed}/speech"))
    return model


def pretrained_image_logits(
    run: FinishedRun, recipe: CSIRRecipe
) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The first seed's image encoder before the cross-modal stage, and the function from its output to class logits.

    With Places365 weights the classes are theirs, and the encoder's output has their logits. Without, the classes are
    the spaces, named by the head that the encoder was trained with.
    """
    if run.config["places365"]:
        encoder = image_encoder(recipe.image_encoder, recipe.attention)
        load_places365(encoder, run.config["places365"])
        return encoder, lambda features: features
    model = ImagePretraining(recipe, len(run.config["spaces"]))
    model.load_state_dict(run.weights(f"seed{run.config['seeds'][0]}/image"))
    return model.encoder, model.space_head


def open_split(
    root: Path,
    split: str,
    recipe: CSIRRecipe,
    device: torch.device | str,
    *,
    spaces: list[str] | None = None,
    speech: Path | None = None,
    skip_bad: bool = False,
    workers: int | None = None,
) -> PairData:
    """Open one split in the Image2Reverb layout with the recipe's numbers; ``speech`` holds <split>/**/*.wav.

    Only the training's responses are damped.

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
        damping=recipe.damping if split == "train" else 0.0,
    )
    logmel = LogMel(recipe.sample_rate, recipe.n_fft, recipe.hop, recipe.n_mels)
    return PairData(
        dataset,
        logmel,
        range_db=recipe.range_db,
        cache=recipe.cache,
        backend=recipe.backend,
        device=device,
        workers=workers,
    )
