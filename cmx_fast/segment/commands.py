"""``cmx segment``: pictures of one's own as label maps, by a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmx_fast.options import Device, EncoderFile, RunSeed


def segment(
    run: Annotated[Path, typer.Option(help="Run folder of cmx train c2l or segment, or a saved model.")],
    files: Annotated[list[Path], typer.Option(help="Folder of pictures; repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder to write label maps, overlays, table and page to.")],
    model: Annotated[str | None, typer.Option(help="The run's model; default c2l, or its first.")] = None,
    seed: RunSeed = None,
    encoder_file: EncoderFile = None,
    device: Device = None,
) -> None:
    """Segment all pictures below the folders by a trained run, and write a page that shows them.

    Files that are broken are left out and named, those of other kinds are counted.
    """
    from rich.console import Console
    from rich.progress import Progress

    from cmx_fast.search.index import find_files, left_out
    from cmx_fast.segment.files import names_below, segment_files, write_shares
    from cmx_fast.segment.page import write_page
    from cmx_fast.segment.segmenters import open_segmenter

    console = Console()
    segmenter = open_segmenter(run, model=model, seed=seed, encoder_file=encoder_file, device=device)
    found, others = find_files(files, ("image",))
    pictures = [file for file, _ in found if not file.is_relative_to(out.absolute())]
    named = list(zip(pictures, names_below(pictures, files), strict=True))
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("pictures", total=len(named))
        segmented, broken = segment_files(segmenter, named, out, lambda: progress.advance(task))
    write_shares(out / "shares.csv", segmented, segmenter.classes)
    page = out / "segments.html"
    write_page(page, segmented, segmenter.classes, f"{len(segmented)} pictures by {run.absolute().name}")
    console.print(
        f"{out}: {len(segmented)} pictures, {len(segmenter.classes)} classes", highlight=False, soft_wrap=True
    )
    for line in left_out(broken, others):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"page: {page}", highlight=False, soft_wrap=True)
