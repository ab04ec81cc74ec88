"""``cmx embed`` and ``cmx search``: an index of one's own files, and the nearest of them to a picture or a sound."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cmx_fast.options import Device, EncoderFile, RunModel, RunSeed, words


def embed(
    run: Annotated[
        Path, typer.Option(help="Run folder of cmx train csir, cmac or sound2scene, or a saved model.")
    ],
    files: Annotated[list[Path], typer.Option(help="Folder of pictures, sounds, videos; repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder to write the index to.")],
    model: RunModel = None,
    seed: RunSeed = None,
    encoder_file: EncoderFile = None,
    device: Device = None,
) -> None:
    """Embed all files below the folders by a trained run, once, for cmx search.

    Files that are broken are left out and named, those of other kinds are counted.
    """
    from cmx_fast.search.embedders import open_embedder
    from cmx_fast.search.index import Index, embed_files, find_files, left_out

    console = Console()
    embedder = open_embedder(run, model=model, seed=seed, encoder_file=encoder_file, device=device)
    chosen, others = find_files(files, embedder.kinds)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("files", total=len(chosen))
        embeddings, embedded, broken = embed_files(embedder, chosen, lambda: progress.advance(task))
    paths, kinds = zip(*embedded, strict=True)
    Index(embeddings, paths, kinds, run.absolute(), model, seed).write(out)
    counted = ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).items())
    console.print(f"{out}: {counted}, {embeddings.shape[1]} numbers each", highlight=False, soft_wrap=True)
    for line in left_out(broken, others):
        console.print(line, highlight=False, soft_wrap=True)


def search(
    index: Annotated[Path, typer.Option(help="Folder that cmx embed wrote.")],
    image: Annotated[Path | None, typer.Option(help="Picture to find the nearest files to.")] = None,
    audio: Annotated[Path | None, typer.Option(help="Sound to find the nearest files to.")] = None,
    video: Annotated[Path | None, typer.Option(help="Video to find the nearest files to.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of files to find.")] = 5,
    among: Annotated[
        list[str],
        typer.Option(
            help="Kind to search: image, audio, video; default all but the query's.",
            autocompletion=words("image", "audio", "video"),
        ),
    ] = [],  # noqa: B006
    page: Annotated[
        Path | None, typer.Option(help="Page to write; default search.html in the index.")
    ] = None,
    encoder_file: EncoderFile = None,
    device: Device = None,
) -> None:
    """Print the nearest files to a picture, a sound or a video, and write a page that shows and plays them."""
    from cmx_fast.data.media.files import BrokenFileError
    from cmx_fast.search.embedders import KINDS, open_embedder
    from cmx_fast.search.index import Index
    from cmx_fast.search.page import write_page

    given = {kind: file for kind, file in (("image", image), ("audio", audio), ("video", video)) if file}
    if len(given) != 1:
        raise ValueError("give one of --image, --audio and --video")
    if wrong := [kind for kind in among if kind not in KINDS]:
        raise ValueError(f"--among must be {', '.join(KINDS)}; got {wrong[0]!r}")
    kind, query = next(iter(given.items()))
    if not query.is_file():
        raise ValueError(f"--{kind} {query}: there is no such file")
    rows = Index.read(index)
    embedder = open_embedder(
        rows.run, model=rows.model, seed=rows.seed, encoder_file=encoder_file, device=device
    )
    if kind not in embedder.kinds:
        raise ValueError(f"the index's run embeds {' and '.join(embedder.kinds)}, not {kind}")
    try:
        embedding = embedder.embed(query, kind)
    except BrokenFileError as error:
        raise ValueError(f"--{kind} {query}: {error.reason}") from error
    kinds = set(among) or set(rows.kinds) - {kind} or {kind}
    found = rows.nearest(embedding, top, kinds)
    table = Table(title=f"nearest to {query.name}", title_justify="left")
    for column in ("", "cosine", "kind", "file"):
        table.add_column(column, justify="right" if column in ("", "cosine") else "left", overflow="fold")
    for number, (row, cosine) in enumerate(found, 1):
        table.add_row(str(number), f"{cosine:.3f}", rows.kinds[row], str(rows.files[row]))
    console = Console()
    console.print(table)
    written = page or index / "search.html"
    write_page(written, (query, kind), [(rows.files[row], rows.kinds[row], cosine) for row, cosine in found])
    console.print(f"page: {written}", highlight=False, soft_wrap=True)
