"""The commands that train and evaluate networks with attention modules; those are imported once one is called.

The options are the same for all tasks, but for their defaults: so each command is made of its task.
"""

# No postponed annotations: those of the commands name what they are made of.

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cmx_fast.data.sets.layouts import layout_of
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.options import (
    BatchSize,
    Device,
    Encoder,
    EncoderFile,
    FirstSeed,
    LearningRate,
    Loggers,
    Out,
    Precision,
    Preset,
    Resume,
    RunData,
    Seeds,
    Set,
    SkipBad,
    Workers,
    layout,
    words,
)
from cmx_fast.systems.recognition.options import (
    CLASSIFY,
    DETECT,
    LAYOUTS,
    SEGMENT,
    Features,
    Split,
    choose_attentions,
    of_task,
)
from cmx_fast.systems.recognition.recipe import RecognitionRecipe
from cmx_fast.train.settings import changes


def training_command(task: str, explanation: str, *, pictures: str, attention: str) -> Callable[..., None]:
    """``cmx train`` of a task, with this default of ``attention``."""

    def train(
        data: Annotated[Path, typer.Option(help=pictures)],
        encoder: Encoder,
        dataset: Annotated[str | None, layout(LAYOUTS[task])] = None,
        attention: Annotated[
            list[str],
            typer.Option(
                help=f"Module: {', '.join(of_task(task))}, or all; repeatable.",
                autocompletion=words(*of_task(task), "all"),
            ),
        ] = [attention],  # noqa: B006
        features: Features = None,
        out: Out = Path("runs", task),
        preset: Preset = "paper",
        seed: FirstSeed = 0,
        seeds: Seeds = 1,
        batch_size: BatchSize = None,
        lr: LearningRate = None,
        device: Device = None,
        workers: Workers = None,
        precision: Precision = "fp32",
        logger: Loggers = [],  # noqa: B006
        resume: Resume = False,
        skip_bad: SkipBad = False,
        set: Annotated[Set, RecognitionRecipe] = [],  # noqa: B006
    ) -> None:
        models = choose_attentions(attention, task)
        recipe = RecognitionRecipe.preset(preset, **changes(set, RecognitionRecipe, batch=batch_size, lr=lr))
        dataset = layout_of(dataset, data, LAYOUTS[task])
        if encoder is None:
            raise ValueError(
                "--encoder names the pretrained encoder, e.g. efficientnet-lite0: docs/encoders.md"
            )

        from cmx_fast.data.sets.labelled_pictures import LabelledPictures
        from cmx_fast.networks.visual_encoders import open_visual_encoder
        from cmx_fast.systems.recognition.data import MAPS, Data
        from cmx_fast.systems.recognition.evaluate import evaluate_run
        from cmx_fast.systems.recognition.train import train_model
        from cmx_fast.train.session import Session, require_a_batch

        session = Session(
            f"train {task}", recipe, preset=preset, device=device, precision=precision, loggers=logger
        )
        network = open_visual_encoder(encoder)
        splits = Data(
            task,
            dataset,
            data,
            recipe,
            network,
            session.fabric.device,
            features=features or out / MAPS,
            skip_bad=skip_bad,
            workers=workers,
        )
        opened = {split: splits.pictures(split) for split in ("train", "val", "test")}
        for split, part in opened.items():
            own = splits.own_split(split)
            called = "" if own == split else f", the split {own} of these data"
            session.say(f"{split}: {len(part)} pictures{called}{left_out(part.skipped)}")
        train = opened["train"]
        require_a_batch(len(train), recipe.batch, "pictures")
        if "two-level" in models and not (isinstance(train, LabelledPictures) and train.has_boxes):
            if "two-level" in attention:
                raise ValueError(
                    f"attention two-level learns from boxes which patches show the object; {data} has none, --dataset "
                    "cub has"
                )
            models.remove("two-level")
            session.say("two-level is left out: it needs boxes around the objects, as --dataset cub has")
        numbers = range(seed, seed + seeds)
        config = {
            "data": str(data),
            "dataset": dataset,
            "seeds": list(numbers),
            "models": models,
            "classes": train.class_names,
            "encoder": encoder,
            "encoder_fingerprint": network.fingerprint(),
            "features": None if features is None else str(features),
            "skip_bad": skip_bad,
        }
        skipping = tuple(dict.fromkeys(opened.values()))
        with session.recording(out, config, resume=resume, splits=skipping) as run:
            for number in numbers:
                for name in models:
                    train_model(session, splits, name, number)
        evaluate_run(run.finished(), splits, "test")

    train.__doc__ = explanation
    return train


def evaluation_command(task: str) -> Callable[..., None]:
    """``cmx evaluate`` of a task."""

    def evaluate(
        run: Annotated[Path, typer.Option(help=f"Run folder of cmx train {task}.")],
        data: RunData = None,
        split: Split = "test",
        encoder_file: EncoderFile = None,
        device: Device = None,
        skip_bad: SkipBad = False,
    ) -> None:
        if split not in ("val", "test"):
            raise ValueError(f"split must be val or test; got {split!r}")

        from cmx_fast.systems.recognition.data import MAPS, Data
        from cmx_fast.systems.recognition.evaluate import evaluate_run
        from cmx_fast.train.fabric import chosen_device
        from cmx_fast.train.frozen_features import run_encoder
        from cmx_fast.train.run_folder import RunFolder

        finished = RunFolder.open_finished(run, f"train {task}")
        config = finished.config
        encoder = run_encoder(finished, encoder_file)
        assert encoder is not None
        opened = Data(
            task,
            config["dataset"],
            data or Path(config["data"]),
            finished.recipe(RecognitionRecipe),
            encoder,
            chosen_device(device),
            features=Path(config["features"] or run / MAPS) if data is None else None,
            skip_bad=skip_bad,
        )
        if opened.pictures(split).class_names != config["classes"]:
            raise ValueError(
                f"{opened.root} has the classes {', '.join(opened.pictures(split).class_names[:5])}, ...; the run was "
                f"trained on {', '.join(config['classes'][:5])}, ..."
            )
        evaluate_run(finished, opened, split)

    evaluate.__doc__ = f"Evaluate a finished run of cmx train {task}: table, results.json and report.html."
    return evaluate


train_segment = training_command(
    SEGMENT,
    "Train networks to segment pictures, one per attention module, evaluate them, write report.html.",
    pictures="Pictures with masks.",
    attention="none",
)
train_classify = training_command(
    CLASSIFY,
    "Train networks to classify pictures, one per attention module, evaluate them, write report.html.",
    pictures="Pictures of classes.",
    attention="none",
)
train_detect = training_command(
    DETECT,
    "Train small detectors, one per kind of hard attention, evaluate them, write report.html.",
    pictures="Pictures with boxes around objects.",
    attention="all",
)
evaluate_segment = evaluation_command(SEGMENT)
evaluate_classify = evaluation_command(CLASSIFY)
evaluate_detect = evaluation_command(DETECT)
