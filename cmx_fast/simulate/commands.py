"""``cmx simulate``: small stand-ins for data sets; what draws and sounds is imported once a command is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmx_fast.options import words
from cmx_fast.simulate.new_folder import new_folder

#: The layouts that clips can be written in.
CLIP_LAYOUTS = ("kinetics", "vggsound")

NewFolder = Annotated[Path, typer.Option(help="Folder to write; must not exist or be empty.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same pictures and sounds.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes; does not change what is written.")]
Overwrite = Annotated[bool, typer.Option(help="Replace what is in the folder.")]


def simulate_rooms(
    out: NewFolder,
    rooms: Annotated[int, typer.Option(min=1, help="Number of spaces; every sixth is outdoors.")] = 24,
    seed: Seed = 0,
    speech: Annotated[
        Path | None, typer.Option(help="Your own dry recordings instead of synthesised speech.")
    ] = None,
    train_pairs: Annotated[
        int, typer.Option(min=1, help="Image-response pairs per space for training.")
    ] = 14,
    test_pairs: Annotated[int, typer.Option(min=1, help="Image-response pairs per space for testing.")] = 5,
    val_pairs: Annotated[
        int,
        typer.Option(min=0, help="Image-response pairs per space to choose settings on; 0: no such part."),
    ] = 2,
    image_size: Annotated[
        int, typer.Option(min=32, help="Width and height of the pictures in pixels.")
    ] = 256,
    workers: Workers = 2,
    overwrite: Overwrite = False,
) -> None:
    """Simulate rooms: pictures, impulse responses and speech in Image2Reverb's layout.

    Each space gets its own size, materials and furniture; each pair its own talker, microphone and viewpoint.
    Choose settings on val and report on test. Writes {train,val,test}_A/*_label.jpg, {train,val,test}_B/*_img.wav,
    speech/{train,val,test}/*.wav, manifest.csv (RT60 measured on the written response) and rooms.json (geometry,
    materials, positions).
    """
    if rooms < 1 or train_pairs < 1 or test_pairs < 1 or val_pairs < 0 or workers < 1 or image_size < 32:
        raise ValueError(
            f"rooms ({rooms}), train_pairs ({train_pairs}), test_pairs ({test_pairs}) and workers ({workers}) must be "
            f"at least 1, val_pairs ({val_pairs}) at least 0 and image_size ({image_size}) at least 32"
        )

    from cmx_fast.simulate.rooms.simulate import write_rooms
    from cmx_fast.simulate.rooms.speech import find_recordings

    with new_folder(out, overwrite) as folder:
        pairs = {"train": train_pairs, "test": test_pairs} | ({"val": val_pairs} if val_pairs else {})
        recordings = None if speech is None else find_recordings(speech, pairs, seed)
        write_rooms(folder, rooms, pairs, image_size, recordings, seed=seed, workers=workers)


def simulate_people(
    out: NewFolder,
    people: Annotated[
        int, typer.Option(min=5, help="Number of pictures: 4 of 5 train, 1 of 20 val, the rest test.")
    ] = 400,
    size: Annotated[
        int, typer.Option(min=32, help="Width of the pictures in pixels; they are twice as high.")
    ] = 112,
    seed: Seed = 0,
    workers: Workers = 2,
    overwrite: Overwrite = False,
) -> None:
    """Simulate people: pictures of dressed figures before clutter, with exact part masks, in ATR's layout.

    Every picture is another person: pose, build, clothes, colours, light and background. Writes
    humanparsing/JPEGImages/*.jpg, humanparsing/SegmentationClassAug/*.png (indexed, labels 0 to 17) and
    {train,val,test}_id.txt.
    """
    if people < 5 or size < 32 or workers < 1:
        raise ValueError(
            f"people ({people}) must be at least 5, size ({size}) at least 32 and workers ({workers}) at least 1"
        )

    from cmx_fast.simulate.people.simulate import write_people

    with new_folder(out, overwrite) as folder:
        parts = write_people(folder, people, size, seed=seed, workers=workers)
    typer.echo(
        f"{people} pictures of people in {out}: " + ", ".join(f"{n} {part}" for part, n in parts.items())
    )


def simulate_clips(
    out: NewFolder,
    clips: Annotated[
        int,
        typer.Option(min=16, help="Number of clips: 4 of 5 to train on, the others val; as many again test."),
    ] = 600,
    layout: Annotated[
        str,
        typer.Option(
            help="kinetics (class folders) or vggsound (one folder).", autocompletion=words(*CLIP_LAYOUTS)
        ),
    ] = "kinetics",
    width: Annotated[int, typer.Option(help="Pixels, even.")] = 128,
    height: Annotated[int, typer.Option(help="Pixels, even.")] = 96,
    seconds: Annotated[float, typer.Option(help="Length of a clip.")] = 3.0,
    fps: Annotated[int, typer.Option(help="Frames per second.")] = 24,
    distractors: Annotated[
        int, typer.Option(help="The most silent objects of a clip, which has at least one; 0: none.")
    ] = 3,
    largest: Annotated[float, typer.Option(help="Largest radius as a share of the shorter side.")] = 0.19,
    places: Annotated[int, typer.Option(help="Backgrounds that a split's clips share; 0: one per clip.")] = 0,
    video: Annotated[
        str, typer.Option(help="h264 or mpeg4.", autocompletion=words("h264", "mpeg4"))
    ] = "h264",
    audio: Annotated[
        str, typer.Option(help="aac (in MP4) or pcm (in MKV).", autocompletion=words("aac", "pcm"))
    ] = "aac",
    seed: Seed = 0,
    workers: Workers = 2,
    overwrite: Overwrite = False,
) -> None:
    """Simulate clips of moving objects: one sounds, in a way that follows from its looks; the others are silent.

    The sounding object's shape, its clip's class, is heard as timbre, its colour and height as pitch, its size as
    loudness, its place from left to right as hiss, and its beat shows in its brightness and size. Colour, size, place
    and background tell nothing about the class, and no split shares a background with another. Choose settings on val
    and report on test.

    Writes videos and lists in the layout of Kinetics-400 or VGGSound, positions.csv with the object's centre and radius
    in every frame, in pixels, and beside VGGSound's layout vggss.json, the boxes of test's middle frames as VGG-SS has
    them.
    """
    if layout not in CLIP_LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(CLIP_LAYOUTS)}; got {layout!r}")
    if clips < 16 or workers < 1:
        raise ValueError(f"clips ({clips}) must be at least 16 and workers ({workers}) at least 1")

    from cmx_fast.simulate.clips.simulate import ClipSettings, write_clips

    settings = ClipSettings(
        width=width,
        height=height,
        seconds=seconds,
        fps=fps,
        distractors=distractors,
        largest=largest,
        places=places,
        seed=seed,
        video=video,
        audio=audio,
    )
    with new_folder(out, overwrite) as folder:
        parts = write_clips(folder, clips, layout, settings, workers=workers)
    typer.echo(f"clips in {out}: " + ", ".join(f"{n} {part}" for part, n in parts.items()))
