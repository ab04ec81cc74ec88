"""``cmx demo-page``: a local web page that tries a trained run on files dropped into it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmx_fast.options import Device, EncoderFile

#: The page can be reached from this machine alone.
HOST = "127.0.0.1"


def demo_page(
    run: Annotated[
        Path | None,
        typer.Option(
            help="Run folder or saved model; default the index's. Of c2l and segment without --index."
        ),
    ] = None,
    index: Annotated[Path | None, typer.Option(help="Folder that cmx embed wrote, to search in.")] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page; 0: any that is free.")
    ] = 7860,
    encoder_file: EncoderFile = None,
    device: Device = None,
) -> None:
    """Serve a page on this machine where a dropped picture, sound or video finds the nearest of the indexed files.

    Of a run that segments, it shows a dropped picture under its labels. Nothing is fetched from or sent to elsewhere.
    """
    from cmx_fast._extras import require
    from cmx_fast.demo.app import new_app, searching, segmenting
    from cmx_fast.search.embedders import open_embedder
    from cmx_fast.search.index import Index
    from cmx_fast.segment.segmenters import open_segmenter

    make_server = require("werkzeug.serving", "demo").make_server
    if index is not None:
        rows = Index.read(index)
        embedder = open_embedder(
            run or rows.run, model=rows.model, seed=rows.seed, encoder_file=encoder_file, device=device
        )
        title = f"Searching {len(rows.files)} files by {(run or rows.run).absolute().name}"
        app = new_app(title, embedder.kinds, searching(embedder, rows))
    elif run is not None:
        try:
            segmenter = open_segmenter(run, encoder_file=encoder_file, device=device)
        except ValueError as error:
            raise ValueError(f"{error}; to search, give --index, that cmx embed wrote") from error
        app = new_app(f"Segmenting pictures by {run.absolute().name}", ("image",), segmenting(segmenter))
    else:
        raise ValueError("give --index, that cmx embed wrote, or --run of a run that segments")
    server = make_server(HOST, port, app)  # one request at a time: the model is one
    typer.echo(f"http://{HOST}:{server.server_port}   (Ctrl-C ends it)")
    server.serve_forever()
