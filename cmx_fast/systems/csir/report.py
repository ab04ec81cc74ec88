"""report.html of a CSIR run: one file to look at and listen to, readable without the rest of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.evaluate import figures, retrieval
from cmx_fast.evaluate.colours import BLUE, ORANGE, SOFT
from cmx_fast.evaluate.gradcam import gradcam
from cmx_fast.evaluate.pages import render
from cmx_fast.evaluate.summary import percent
from cmx_fast.systems.csir.data import PairData
from cmx_fast.systems.csir.evaluation import Evaluation
from cmx_fast.systems.csir.model import TwoTowers
from cmx_fast.systems.csir.options import NAMES
from cmx_fast.train.run_folder import FinishedRun

#: Queries per direction in the retrieval gallery, and answers to each.
QUERIES, ANSWERS = 4, 5
#: Pictures with Grad-CAM.
CAMS = 6
#: Pixels of a picture in the report.
SIZE = 168


@dataclass
class Answer:
    picture: str
    sound: str
    space: str
    right: bool


@dataclass
class Query:
    picture: str
    sound: str
    space: str
    answers: list[Answer]


def write_report(
    run: FinishedRun,
    evaluation: Evaluation,
    data: PairData,
    model: TwoTowers,
    before: tuple[nn.Module, Callable[[Tensor], Tensor]] | None,
) -> Path:
    """Write report.html into the run folder.

    Args:
        model: the model of ``evaluation.shown``, for Grad-CAM.
        before: its image encoder before fine-tuning, and the function from that one's output to its own classes'
            logits. None: it is frozen, and there is no Grad-CAM.
    """
    config, rows = run.config, run.rows()
    spaces, shown = config["spaces"], evaluation.shown
    nearest = {
        "sir": retrieval.rank(shown.speech, shown.image, ANSWERS),
        "isr": retrieval.rank(shown.image, shown.speech, ANSWERS),
    }
    seen = shown.image_space.unique()
    counts = torch.zeros(len(spaces), len(spaces))
    answers = shown.image_space[nearest["sir"][:, 0]]
    counts.index_put_((shown.speech_space, answers), torch.ones(len(answers)), accumulate=True)
    html = render(
        "systems/csir/report.html.j2",
        config=config,
        recipe=config["recipe"],
        spaces=[spaces[i] for i in seen],
        split=evaluation.split,
        names=NAMES,
        directions=retrieval.DIRECTIONS,
        groups=retrieval.GROUPS,
        ranks=retrieval.RANKS,
        seeds=len(config["seeds"]),
        chance=evaluation.chance,
        pairs=len(shown.image),
        utterances=len(shown.speech),
        distinct=evaluation.images[1],
        skipped=data.dataset.skipped,
        table={name: retrieval.spread(seeds) for name, seeds in evaluation.recalls.items()},
        table_distinct={name: retrieval.spread(seeds) for name, seeds in evaluation.distinct.items()},
        percent=percent,
        pretraining=pretraining_curves(rows),
        training=cross_modal_curves(rows, evaluation.chance),
        decay_note=evaluation.decay_note(),
        confusion=figures.confusion(counts[seen][:, seen], [spaces[i] for i in seen]),
        gallery={
            "sir": speech_queries(data, shown, nearest["sir"]),
            "isr": image_queries(data, shown, nearest["isr"]),
        },
        cams=cams(data, shown, model, *before, config["recipe"]["gradcam_layer"]) if before else [],
    )
    file = run.path / "report.html"
    file.write_text(html)
    return file


def pretraining_curves(rows: figures.Rows) -> str:
    panels: list[dict[str, Any]] = [
        {
            "title": "Speech encoder",
            "y": "loss",
            "lines": [
                ("speech", "ce", "space (CE)", BLUE),
                ("speech", "supcon", "contrast (SupCon)", ORANGE),
                ("speech", "rt60", "RT60 (squared error)", SOFT),
            ],
        },
        {
            "title": "Training accuracy, one encoder alone",
            "y": "space named correctly",
            "limits": (0, 1),
            "lines": [("speech", "accuracy", "speech", BLUE), ("image", "accuracy", "image", ORANGE)],
        },
    ]
    return figures.curves(rows, panels)


def cross_modal_curves(rows: figures.Rows, chance: float) -> str:
    panels: list[dict[str, Any]] = [
        {
            "title": "CSIR's losses",
            "y": "loss",
            "lines": [
                ("csir", "ce", "space (CE)", BLUE),
                ("csir", "supcon", "contrast (SupCon)", SOFT),
            ],
        },
        *(
            {
                "title": f"Held-out R@1, {name}",
                "y": "R@1",
                "limits": (0, 1),
                "level": (chance, "chance"),
                "lines": [("csir", f"{key} R@1", "CSIR", BLUE), ("dscmr", f"{key} R@1", "DSCMR", ORANGE)],
            }
            for key, name in (("sir", "speech to image"), ("isr", "image to speech"))
        ),
    ]
    return figures.curves(rows, panels)


def choose(first_right: Tensor, labels: Tensor, count: int) -> list[int]:
    """Choose queries spread over the spaces; if any query is answered wrongly, the last one is."""
    _, order = labels.sort(stable=True)
    by_space: dict[int, list[int]] = {}
    for i in order.tolist():
        by_space.setdefault(int(labels[i]), []).append(i)
    spread = [by_space[s] for s in list(by_space)[:: max(1, len(by_space) // count)]][:count]
    chosen = [next((i for i in rows if first_right[i]), rows[0]) for rows in spread]
    wrong = (~first_right).nonzero().flatten().tolist()
    if wrong and all(first_right[i] for i in chosen):
        chosen[-1] = wrong[len(wrong) // 2]
    return chosen


def speech_queries(data: PairData, e: retrieval.Embeddings, nearest: Tensor) -> list[Query]:
    """Utterances with the pictures that answer them."""
    right = e.image_space[nearest] == e.speech_space[:, None]
    return [
        Query(
            "",
            sound_uri(data, q),
            data.dataset.spaces[e.speech_space[q]],
            [
                Answer(picture_uri(data, int(a)), "", data.dataset.spaces[e.image_space[a]], bool(ok))
                for a, ok in zip(nearest[q], right[q], strict=True)
            ],
        )
        for q in choose(right[:, 0], e.speech_space, QUERIES)
    ]


def image_queries(data: PairData, e: retrieval.Embeddings, nearest: Tensor) -> list[Query]:
    """Pictures with the utterances that answer them."""
    right = e.speech_space[nearest] == e.image_space[:, None]
    return [
        Query(
            picture_uri(data, q),
            "",
            data.dataset.spaces[e.image_space[q]],
            [
                Answer(
                    picture_uri(data, int(e.speech_pair[a])),
                    sound_uri(data, int(a)),
                    data.dataset.spaces[e.speech_space[a]],
                    bool(ok),
                )
                for a, ok in zip(nearest[q], right[q], strict=True)
            ],
        )
        for q in choose(right[:, 0], e.image_space, QUERIES)
    ]


def picture_uri(data: PairData, pair: int) -> str:
    return figures.picture(data.dataset.pairs[pair].image, SIZE)


def sound_uri(data: PairData, utterance: int) -> str:
    return figures.sound(data.dataset.load_wave(utterance), data.dataset.sample_rate)


def cams(
    data: PairData,
    e: retrieval.Embeddings,
    model: TwoTowers,
    before: nn.Module,
    before_logits: Callable[[Tensor], Tensor],
    layer: str,
) -> list[dict[str, str]]:
    """Pictures of different spaces with two heat maps each.

    Before fine-tuning the score is the largest logit of the encoder's own classes, which is the default of the code
    that the paper uses; after it, cos(z^v, z^s) with the sentence of the picture's own pair (ours).
    """
    pairs = choose(torch.ones(len(e.image), dtype=torch.bool), e.image_space, CAMS)
    utterances = [int((e.speech_pair == p).nonzero()[0]) for p in pairs]
    images = torch.stack([data.dataset.load_image(p) for p in pairs]).to(data.device)
    speech = e.speech[utterances].to(data.device)
    maps = {
        "before": gradcam(
            before.to(data.device), images, lambda features: before_logits(features).amax(1), layer
        ).cpu(),
        "after": gradcam(
            model.image_encoder,
            images,
            lambda features: F.cosine_similarity(model.project_image(features), speech),
            layer,
        ).cpu(),
    }
    return [
        {
            "picture": picture_uri(data, p),
            "space": data.dataset.spaces[e.image_space[p]],
            **{
                name: figures.overlay(data.dataset.pairs[p].image, heat[i], SIZE)
                for name, heat in maps.items()
            },
        }
        for i, p in enumerate(pairs)
    ]
