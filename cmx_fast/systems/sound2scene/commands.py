"""``cmx train`` and ``evaluate sound2scene``, and what its users make of it: ``cmx generate``, ``edit``, ``invert``.

What trains, measures and generates is imported once a command is called.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from cmx_fast.data.sets.layouts import layout_of
from cmx_fast.data.sets.names import SOUNDING
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.options import (
    FSDP,
    BatchSize,
    Compile,
    Device,
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
    SyncBN,
    Workers,
    layout,
    words,
)
from cmx_fast.systems.sound2scene.ablation import ABLATIONS, AblationScores, chosen_rows
from cmx_fast.systems.sound2scene.options import (
    INVERSION_STEPS,
    WEIGHT,
    ClipModel,
    ClipPrompt,
    ClipWeights,
    FinishedRunFolder,
    GeneratorPath,
    Inception,
    InversionSteps,
    NoiseSeed,
    PictureEncoderPath,
    PictureOut,
    SystemRun,
    check_picture,
)
from cmx_fast.systems.sound2scene.recipe import Sound2SceneRecipe
from cmx_fast.train.settings import changes


def train_sound2scene(
    data: Annotated[Path, typer.Option(help="Pictures with sound, e.g. from cmx simulate clips.")],
    icgan: Annotated[Path, typer.Option(help="A cmx train icgan folder, or IC-GAN's G_ema*.pth.")],
    dataset: Annotated[str | None, layout(SOUNDING)] = None,
    out: Out = Path("runs/sound2scene"),
    preset: Preset = "paper",
    classes: Annotated[
        Path | None, typer.Option(help="Names of the classes to keep, one a line; default: all of the data.")
    ] = None,
    picture_encoder: Annotated[
        Path | None,
        typer.Option(help="Picture encoder's weights, if not where the generator's run had them."),
    ] = None,
    audio_encoder: Annotated[
        str | None,
        typer.Option(help="Pretrained audio encoder, FAMILY:FILE, to train a layer on: docs/encoders.md."),
    ] = None,
    sounds: Annotated[
        Path | None,
        typer.Option(help="Labelled sounds, <class>/*, that the sound encoder learns to tell apart first."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="The authors' sound2scene.pth: evaluated as a run of this data; nothing is trained."
        ),
    ] = None,
    selection: Annotated[
        Path | None, typer.Option(help="JSON of each video's best frames: cmx select, or the authors'.")
    ] = None,
    ablation: Annotated[
        list[str],
        typer.Option(
            help=f"Rows of Table 2 to train instead, repeatable: {', '.join(ABLATIONS)}, or all of them.",
            autocompletion=words(*ABLATIONS, "all"),
        ),
    ] = [],  # noqa: B006
    seed: FirstSeed = 0,
    seeds: Seeds = 1,
    inception: Inception = None,
    clip_weights: ClipWeights = None,
    clip_model: ClipModel = None,
    clip_prompt: ClipPrompt = "{}",
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    device: Device = None,
    workers: Workers = None,
    precision: Precision = "fp32",
    compile: Compile = False,
    sync_bn: SyncBN = False,
    fsdp: FSDP = False,
    logger: Loggers = [],  # noqa: B006
    resume: Resume = False,
    set: Annotated[Set, Sound2SceneRecipe] = [],  # noqa: B006
) -> None:
    """Train Sound2Scene's sound encoder against a fixed picture encoder, generate from held-out sounds, report.

    The generator and the picture encoder are those of cmx train icgan. Scenes that are broken or silent are left out
    and named.
    """
    if weights is not None and (audio_encoder is not None or sounds is not None or ablation):
        raise ValueError(
            "--weights is a trained sound encoder: it takes no --audio-encoder, --sounds or --ablation"
        )
    if audio_encoder is not None and sounds is not None:
        raise ValueError("give --audio-encoder or --sounds, not both: each teaches the sound encoder to hear")
    if seeds > 1 and not ablation:
        raise ValueError(f"--seeds {seeds} is for --ablation; without it give each run its --seed")
    recipe = Sound2SceneRecipe.preset(preset, **changes(set, Sound2SceneRecipe, batch=batch_size, lr=lr))
    dataset = layout_of(dataset, data, SOUNDING)
    rows = chosen_rows(ablation, recipe, selection)

    from cmx_fast.data.sets.scenes import read_classes
    from cmx_fast.systems.sound2scene.published_networks import PublishedNetworks
    from cmx_fast.systems.sound2scene.train import Plan, train_run

    plan = Plan(
        data=data,
        icgan=icgan,
        dataset=dataset,
        preset=preset,
        recipe=recipe,
        classes=None if classes is None else read_classes(classes),
        picture_encoder=picture_encoder,
        audio_encoder=audio_encoder,
        sounds=sounds,
        weights=weights,
        selection=selection,
        published=PublishedNetworks(inception, clip_weights, clip_model, clip_prompt),
        device=device,
        workers=workers,
        precision=precision,
        compile=compile,
        sync_bn=sync_bn,
        fsdp=fsdp,
        loggers=logger,
        resume=resume,
    )
    if not ablation:
        train_run(plan, out, seed)
        return
    scores = AblationScores()
    for row in rows:
        for number in range(seed, seed + seeds):
            own = dataclasses.replace(plan, **row.changes(recipe))
            scores.add(
                row, train_run(own, out / row.folder / f"seed{number}", number, features=out / row.features)
            )
    if scores.measured:
        scores.write(out)


def evaluate_sound2scene(
    run: FinishedRunFolder,
    data: RunData = None,
    icgan: GeneratorPath = None,
    picture_encoder: PictureEncoderPath = None,
    device: Device = None,
    inception: Inception = None,
    clip_weights: ClipWeights = None,
    clip_model: ClipModel = None,
    clip_prompt: ClipPrompt = "{}",
) -> None:
    """Evaluate a finished run on the held-out split: Table 1, controls, results.json and report.html."""
    from cmx_fast.data.sets.selection import read_selection
    from cmx_fast.systems.sound2scene.checkpoints import open_sound2scene
    from cmx_fast.systems.sound2scene.evaluate import evaluate_run
    from cmx_fast.systems.sound2scene.published_networks import PublishedNetworks
    from cmx_fast.systems.sound2scene.sound_features import TITLES, check_selection, open_splits, selected
    from cmx_fast.train.fabric import chosen_device
    from cmx_fast.train.run_folder import RunFolder

    finished = RunFolder.open_finished(run, "train sound2scene")
    published = PublishedNetworks(inception, clip_weights, clip_model, clip_prompt)
    system = open_sound2scene(run, icgan, picture_encoder).to(chosen_device(device))
    config, recipe = finished.config, finished.recipe(Sound2SceneRecipe)
    selection = None if config["selection"] is None else read_selection(config["selection"])
    splits = open_splits(
        config["dataset"],
        data or Path(config["data"]),
        recipe,
        system.picture_encoder.size,
        selection,
        config.get("classes"),
    )
    if selection is not None:
        check_selection(config["selection"], selection, splits["train"], splits["test"])
    for split, scenes in splits.items():
        print(
            f"{TITLES[split]}: {len(scenes)} scenes{selected(scenes)}{left_out(scenes.skipped)}",
            file=sys.stderr,
        )
    evaluate_run(finished, splits["train"], splits["test"], system=system, published=published)


def generate_picture(
    audio: Annotated[Path, typer.Option(help="Sound or video file.")],
    out: PictureOut,
    run: SystemRun = Path("runs/sound2scene"),
    volume: Annotated[float, typer.Option(help="Volume of the sound, in dB.")] = 0.0,
    mix_with: Annotated[Path | None, typer.Option("--mix", help="Second sound, added to the first.")] = None,
    mix_volume: Annotated[float, typer.Option(help="Volume of the second sound, in dB.")] = 0.0,
    image: Annotated[Path | None, typer.Option(help="Picture to mix in.")] = None,
    weight: Annotated[
        float, typer.Option(help="Weight of the picture: 0 the sound alone, 1 the picture.")
    ] = WEIGHT,
    samples: Annotated[
        int, typer.Option(min=1, help="Pictures to make, side by side, each of other noise.")
    ] = 1,
    seed: NoiseSeed = 0,
    icgan: GeneratorPath = None,
    picture_encoder: PictureEncoderPath = None,
    device: Device = None,
) -> None:
    """Paint the source of a sound, of two mixed sounds, or of a sound in a given scene."""
    for option, changed, needed in (
        ("--mix-volume", mix_volume != 0 and mix_with is None, "--mix"),
        ("--weight", weight != WEIGHT and image is None, "--image"),
    ):
        if changed:
            raise ValueError(f"{option} has no effect without {needed}")
    check_picture(out)

    import torch

    from cmx_fast.systems.sound2scene.checkpoints import open_sound2scene
    from cmx_fast.systems.sound2scene.controls import change_volume, interpolate, mix
    from cmx_fast.systems.sound2scene.inference import open_picture, read_sound, write_pictures
    from cmx_fast.train.fabric import chosen_device

    system = open_sound2scene(run, icgan, picture_encoder).to(chosen_device(device))
    waves = [change_volume(read_sound(audio, system), volume)]
    if mix_with is not None:
        waves.append(change_volume(read_sound(mix_with, system), mix_volume))
    with torch.no_grad():
        features = system.encode_sound(mix(*waves)[None])
        if image is not None:
            features = interpolate(system.encode_picture(open_picture(image, system)), features, weight)
        pictures = system.generate(features.expand(samples, -1), system.noise(samples, seed))
    write_pictures(pictures, out)


def edit_picture(
    audio: Annotated[Path, typer.Option(help="Sound that goes with the picture.")],
    out: PictureOut,
    run: SystemRun = Path("runs/sound2scene"),
    image: Annotated[Path | None, typer.Option(help="Picture to edit, which is inverted first.")] = None,
    inverted: Annotated[
        Path | None, typer.Option(help="File that cmx invert --save wrote of a picture, in place of --image.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Sound that the picture is to have; default: the same.")
    ] = None,
    volume: Annotated[float, typer.Option(help="Volume of the sound it is to have, in dB.")] = 0.0,
    strength: Annotated[float, typer.Option(help="Strength of the change; 0: the picture as it is.")] = 1.0,
    steps: InversionSteps = INVERSION_STEPS,
    seed: NoiseSeed = 0,
    icgan: GeneratorPath = None,
    picture_encoder: PictureEncoderPath = None,
    device: Device = None,
) -> None:
    """Edit a picture, --image or --inverted, by the difference of two sounds: its features are moved.

    Writes the picture as the generator can make it, beside the edited one.
    """
    if to is None and volume == 0:
        raise ValueError("nothing to edit: give the sound it is to have, --to, or another --volume")
    if (image is None) == (inverted is None):
        raise ValueError(
            "give the picture to edit by --image, or by --inverted what cmx invert --save wrote of it"
        )
    if inverted is not None and (steps != INVERSION_STEPS or seed):
        raise ValueError(
            "--steps and --seed are of the inversion, which --inverted has done: they have no effect"
        )
    check_picture(out)

    import torch

    from cmx_fast.systems.sound2scene.checkpoints import open_sound2scene
    from cmx_fast.systems.sound2scene.controls import change_volume, edit
    from cmx_fast.systems.sound2scene.inference import (
        inverted_picture,
        read_latents,
        read_sound,
        write_pictures,
    )
    from cmx_fast.train.fabric import chosen_device

    system = open_sound2scene(run, icgan, picture_encoder).to(chosen_device(device))
    current, sought = read_sound(audio, system), read_sound(to or audio, system)
    if image is not None:
        features, noise = inverted_picture(image, system, steps, seed)
    else:
        assert inverted is not None
        features, noise = read_latents(inverted, system)
    with torch.no_grad():
        target = system.encode_sound(change_volume(sought, volume)[None])
        moved = edit(features, target, system.encode_sound(current[None]), strength)
        pictures = torch.cat([system.generate(h, noise) for h in (features, moved)])
    write_pictures(pictures, out)


def invert_picture(
    image: Annotated[Path, typer.Option(help="Picture to invert.")],
    out: PictureOut,
    run: SystemRun = Path("runs/sound2scene"),
    save_to: Annotated[
        Path | None, typer.Option("--save", help="File to write features and noise to.")
    ] = None,
    steps: InversionSteps = INVERSION_STEPS,
    seed: NoiseSeed = 0,
    icgan: GeneratorPath = None,
    picture_encoder: PictureEncoderPath = None,
    device: Device = None,
) -> None:
    """Find features and noise from which the generator makes a picture (GAN inversion); write what it makes."""
    check_picture(out)

    import torch

    from cmx_fast.networks.weights import save
    from cmx_fast.systems.sound2scene.checkpoints import open_sound2scene
    from cmx_fast.systems.sound2scene.inference import inverted_picture, write_pictures
    from cmx_fast.train.fabric import chosen_device

    system = open_sound2scene(run, icgan, picture_encoder).to(chosen_device(device))
    features, noise = inverted_picture(image, system, steps, seed)
    with torch.no_grad():
        write_pictures(system.generate(features, noise), out)
    if save_to is not None:
        save(save_to, {"features": features, "noise": noise})
