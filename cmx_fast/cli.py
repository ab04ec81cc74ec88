"""The ``cmx`` command: knows where each subcommand lives and imports only the one that runs."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from cmx_fast._extras import MissingExtraError
from cmx_fast.train.config_file import recipe_of, with_config

# group -> help, then command -> (the function that declares its own options, one line for the overview)
GROUPS = {
    "simulate": "Write small data sets in the layouts of the real ones.",
    "prepare": "Write the tables of a data set from files that stay where they are.",
    "train": "Train a system; the run folder holds checkpoints, metrics and report.html.",
    "evaluate": "Evaluate a trained run.",
    "bench": "Time the operators (cmx bench [NAMES]), loading your own files (data DIR), or training steps (steps).",
}
COMMANDS = {
    ("info",): (
        "cmx_fast.info:main",
        "Versions, the native build, and the implementations that run on each device.",
    ),
    ("recipe",): (
        "cmx_fast.recipe:print_recipe",
        "Every number of a system's preset, with its meaning and where it comes from.",
    ),
    ("simulate", "rooms"): (
        "cmx_fast.simulate.commands:simulate_rooms",
        "Rooms with impulse responses, pictures and speech (Image2Reverb layout).",
    ),
    ("simulate", "people"): (
        "cmx_fast.simulate.commands:simulate_people",
        "Dressed figures with exact part masks (ATR layout).",
    ),
    ("simulate", "clips"): (
        "cmx_fast.simulate.commands:simulate_clips",
        "Videos of moving objects of which one sounds (Kinetics, VGGSound layouts).",
    ),
    ("prepare", "image2reverb"): (
        "cmx_fast.prepare.commands:prepare_image2reverb",
        "Image2Reverb divided anew within its spaces, with dry speech by speaker (CSIR's paper).",
    ),
    ("prepare", "rooms"): (
        "cmx_fast.prepare.commands:prepare_rooms",
        "Pairs from your own photographs by kind of room, impulse responses and speech.",
    ),
    ("prepare", "shards"): (
        "cmx_fast.prepare.commands:prepare_shards",
        "Pictures, sounds and videos of tar shards (webdataset) as files and a table.",
    ),
    ("prepare", "huggingface"): (
        "cmx_fast.prepare.commands:prepare_huggingface",
        "Pictures, sounds and videos of a Hugging Face data set as files and a table.",
    ),
    ("train", "csir"): (
        "cmx_fast.systems.csir.commands:train_csir",
        "Image-speech retrieval of rooms (CSIR, DSCMR).",
    ),
    ("train", "c2l"): (
        "cmx_fast.systems.c2l.commands:train_c2l",
        "Human parsing without masks (C2L, its ablation, PiCIE, DFF).",
    ),
    ("train", "cmac"): (
        "cmx_fast.systems.cmac.commands:train_cmac",
        "Video and sound that learn from each other (CMAC and its ablation).",
    ),
    ("train", "segment"): (
        "cmx_fast.systems.recognition.commands:train_segment",
        "Segmentation with attention modules beside one another (SE, CBAM, DANet, OCNet, ...).",
    ),
    ("train", "classify"): (
        "cmx_fast.systems.recognition.commands:train_classify",
        "Classification with attention modules beside one another (SE, FCAN, RA-CNN, ...).",
    ),
    ("train", "detect"): (
        "cmx_fast.systems.recognition.commands:train_detect",
        "Small detectors on a pretrained encoder: default boxes (SSD), region proposals (RPN).",
    ),
    ("train", "icgan"): (
        "cmx_fast.systems.sound2scene.icgan.commands:train_icgan",
        "A generator of pictures from the features of pictures (IC-GAN).",
    ),
    ("train", "localiser"): (
        "cmx_fast.systems.sound2scene.localiser.commands:train_localiser",
        "The places in pictures that sounds come from (LVS), to select moments by.",
    ),
    ("train", "sound2scene"): (
        "cmx_fast.systems.sound2scene.commands:train_sound2scene",
        "Pictures from sound: the sound encoder of Sound2Scene, given a generator.",
    ),
    ("evaluate", "csir"): (
        "cmx_fast.systems.csir.commands:evaluate_csir",
        "Retrieval figures of a CSIR run.",
    ),
    ("evaluate", "c2l"): ("cmx_fast.systems.c2l.commands:evaluate_c2l", "Accuracy and mIoU of a C2L run."),
    ("evaluate", "cmac"): (
        "cmx_fast.systems.cmac.commands:evaluate_cmac",
        "Retrieval, localisation and linear classification of a CMAC run.",
    ),
    ("evaluate", "sound2scene"): (
        "cmx_fast.systems.sound2scene.commands:evaluate_sound2scene",
        "Pictures, retrieval and controls of a Sound2Scene run.",
    ),
    ("evaluate", "localiser"): (
        "cmx_fast.systems.sound2scene.localiser.commands:evaluate_localiser",
        "Where a localiser points (VGG-SS, Flickr-SoundNet), and what it answers to silence and noise.",
    ),
    ("evaluate", "segment"): (
        "cmx_fast.systems.recognition.commands:evaluate_segment",
        "Accuracy, mIoU and costs of the networks of a segmentation run.",
    ),
    ("evaluate", "classify"): (
        "cmx_fast.systems.recognition.commands:evaluate_classify",
        "Accuracy and costs of the networks of a classification run.",
    ),
    ("evaluate", "detect"): (
        "cmx_fast.systems.recognition.commands:evaluate_detect",
        "Average precision and costs of the networks of a detection run.",
    ),
    ("evaluate", "retrieval"): (
        "cmx_fast.systems.cmac.commands:evaluate_retrieval",
        "Videos of the same class by a CMAC run's frozen encoder (UCF101, HMDB51, ...).",
    ),
    ("evaluate", "linear"): (
        "cmx_fast.systems.cmac.commands:evaluate_linear",
        "Sounds by a linear classifier on a CMAC run's frozen encoder (ESC-50, DCASE2013).",
    ),
    ("evaluate", "finetune"): (
        "cmx_fast.systems.cmac.commands:evaluate_finetune",
        "Action recognition by fine-tuning a CMAC run's video encoder.",
    ),
    ("embed",): (
        "cmx_fast.search.commands:embed",
        "Embed your own pictures, sounds and videos by a trained run.",
    ),
    ("search",): (
        "cmx_fast.search.commands:search",
        "The nearest of the embedded files to a picture, a sound or a video; a table and a page.",
    ),
    ("segment",): (
        "cmx_fast.segment.commands:segment",
        "Your own pictures as label maps by a trained run; overlays, a table and a page.",
    ),
    ("demo-page",): (
        "cmx_fast.demo.commands:demo_page",
        "A local web page where a dropped file finds the nearest of the indexed ones, or is segmented.",
    ),
    ("gradcam",): (
        "cmx_fast.explain.commands:gradcam",
        "The pixels and the parts of a sound that their similarity comes from, as a PNG.",
    ),
    ("select",): (
        "cmx_fast.systems.sound2scene.localiser.commands:select",
        "The moments of videos that agree best with their sound, as JSON.",
    ),
    ("generate",): (
        "cmx_fast.systems.sound2scene.commands:generate_picture",
        "A picture from a sound, perhaps with a second one or a picture.",
    ),
    ("edit",): (
        "cmx_fast.systems.sound2scene.commands:edit_picture",
        "Edit a picture by the difference of two sounds.",
    ),
    ("invert",): (
        "cmx_fast.systems.sound2scene.commands:invert_picture",
        "The features and noise that a generator makes a picture of.",
    ),
    ("bench", "operators"): (
        "cmx_fast.benchmarks.commands:bench",
        "Time the operators against what people use today; the word may be left out.",
    ),
    ("bench", "data"): (
        "cmx_fast.benchmarks.commands:bench_data",
        "Time loading your own videos, sounds and pictures against plain loops.",
    ),
    ("bench", "steps"): (
        "cmx_fast.benchmarks.commands:bench_steps",
        "Time whole training steps with the kernels and with the formulas.",
    ),
}


class _Group(TyperGroup):
    """Lists its commands by COMMANDS alone, and opens the one that is called or completed."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name is None:  # nothing to complete
            return name, command, rest
        path = (self.name, name) if self.name in GROUPS else (name,)
        return name, open_command(path) if path in COMMANDS else command, rest


class _BenchGroup(_Group):
    """``cmx bench`` with names of operators, or none, means ``cmx bench operators``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        completing = ctx.resilient_parsing and not args
        if args[:1] != ["--help"] and not completing and (not args or args[0] not in self.commands):
            args = ["operators", *args]
        return super().parse_args(ctx, args)


def open_command(path: tuple[str, ...]) -> TyperCommand:
    """The command at ``path`` of COMMANDS with its options: imports the module that declares them."""
    module, name = COMMANDS[path][0].split(":")
    function = getattr(importlib.import_module(module), name)
    if recipe_of(function) is not None:
        function = with_config(function, " ".join(path))
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(path[-1])(function)
    command = typer.main.get_command(alone)
    assert isinstance(command, TyperCommand)
    return command


def new_app() -> typer.Typer:
    """The application with the commands of GROUPS and COMMANDS."""
    app = typer.Typer(
        cls=_Group,
        help="Fast kernels and training for audio-visual contrastive learning.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        callback=_root,
    )
    groups = {}
    for name, text in GROUPS.items():
        groups[name] = typer.Typer(help=text, no_args_is_help=True)
        app.add_typer(groups[name], name=name, cls=_BenchGroup if name == "bench" else _Group)
    for path, (_, text) in COMMANDS.items():
        parent = groups[path[0]] if len(path) == 2 else app
        parent.command(path[-1], help=text)(_listed)
    return app


def _listed() -> None:
    """A command's place in the overview; the group opens the command itself."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cmx_fast {version('cmx-fast')}")
        raise typer.Exit


def _root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
) -> None:
    """The options of ``cmx`` itself; ``main`` reads ``--traceback``, since errors end there."""


app = new_app()


def main() -> None:
    """Run ``cmx``. Errors that the user can mend (a file, a value, a missing extra) end in one line."""
    try:
        app(prog_name="cmx")
    except (MissingExtraError, OSError, ValueError) as error:
        if "--traceback" in sys.argv[1:]:
            raise
        sys.exit(f"cmx: {error}")
