"""``cmx bench``: measures operators, training steps and the loading of files; they are imported once one is called."""

from __future__ import annotations

import gc
import json
import os
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

COMMITTED = Path(__file__).resolve().parent / "results"
#: The repository's own results where the command runs from its tree; from a wheel, a folder where one is.
RESULTS = COMMITTED if COMMITTED.is_dir() else Path("results")
QUICK_ROWS = 1024


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="Operators or the beginnings of case names (info_nce/bank).")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Small sizes, a few seconds; the goals don't apply.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for <machine>.json and .png.")] = RESULTS,
    seconds: Annotated[float, typer.Option(help="Time for the rounds of one case.")] = 20.0,
    threads: Annotated[int, typer.Option(help="CPU threads for every contender.")] = 2,
    older: Annotated[
        bool, typer.Option("--older", help="Measure nothing: list the results older than their kernels.")
    ] = False,
) -> None:
    """Measure time, memory and error of the operators, forward and backward, beside what their users run today."""
    import torch

    from .harness import gate, machine, report
    from .harness.measure import measure
    from .harness.registry import select

    if older:
        list_older(out)
        return
    torch.set_num_threads(threads)
    try:
        cases = select(names or [])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if quick:
        cases, seconds = [case.resized(QUICK_ROWS) for case in cases], min(seconds, 1.0)
    about = machine.describe()
    if quick:
        about["name"] += "-quick"
    print(machine.header(about))
    verdicts = {}
    for operator in dict.fromkeys(case.operator for case in cases):
        verdicts[operator] = verdict = gate.run_tests(operator)
        print(
            f"{operator}: {'tests pass' if verdict.passed else 'NOT REPORTED, its tests fail'} ({verdict.reason})"
        )
    records = {}
    for case in cases:
        if not verdicts[case.operator].passed:
            continue
        records[case.name] = measure(case, seconds=seconds)
        print(f"\n{report.table(records[case.name])}", flush=True)
        path = report.save(out, about, {case.name: records[case.name]})
    if records:
        if not quick:
            print(f"\n{report.summary(records)}")
        picture = path.with_suffix(".png")
        report.plot(report.load(path), picture)
        print(f"\n{path}\n{picture}")
    if not all(verdict.passed for verdict in verdicts.values()):
        raise typer.Exit(1)


def list_older(folder: Path) -> None:
    """Print the rows of a folder's results that were measured before their kernel last changed."""
    from .harness import report, sources

    documents = {path.name: report.load(path) for path in sorted(folder.glob("*.json"))}
    rows = list(sources.older_rows(documents))
    for row in rows:
        print(row)
    total = sum(len(document["cases"]) for document in documents.values())
    unknown = sum(row.changed is None for row in rows)
    print(f"{len(rows) - unknown} of {total} rows are older than their kernel, {unknown} unknown")


def bench_steps(
    systems: Annotated[
        list[str] | None, typer.Argument(help="csir, cmac, c2l, sound2scene; default all.")
    ] = None,
    preset: Annotated[str, typer.Option(help="paper or demo; default paper on a GPU, else demo.")] = "",
    batch: Annotated[int, typer.Option(min=0, help="Samples of a step; 0: the preset's.")] = 0,
    precision: Annotated[str, typer.Option(help="fp32 or bf16 (mixed).")] = "fp32",
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the networks.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each contender.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Folder for steps/<machine>.json.")] = None,
) -> None:
    """Time whole training steps, and each part of them, with the kernels and with the formulas."""
    import torch

    from cmx_fast.train.fabric import PRECISIONS, new_fabric

    from .harness import machine
    from .steps import SYSTEMS, measure, table

    unknown = [name for name in systems or [] if name not in SYSTEMS]
    if unknown:
        raise typer.BadParameter(f"systems are {', '.join(SYSTEMS)}; got {', '.join(unknown)}")
    if precision not in PRECISIONS:
        raise typer.BadParameter(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    torch.set_num_threads(threads)
    fabric = new_fabric(precision)
    preset = preset or ("paper" if fabric.device.type == "cuda" else "demo")
    if preset not in ("paper", "demo"):
        raise typer.BadParameter(f"preset must be paper or demo; got {preset!r}")
    about = machine.describe(fabric.device.type)
    print(f"{about.get('gpu') or about['cpu']}, {threads} CPU threads, torch {about['torch']}")
    print(f"{preset} sizes, {precision}{', torch.compile' if compile else ''}; peak: beyond weights and data")
    records, differ = {}, False
    for name in systems or SYSTEMS:
        record = measure(
            name, preset, fabric, batch=batch or None, precision=precision, compile=compile, rounds=rounds
        )
        records[name] = record
        differ |= "differ" in record
        print(f"\n{table(record)}", flush=True)
        gc.collect()
    if out is not None:
        path = out / "steps" / f"{about['name']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        settings = {"preset": preset, "precision": precision, "compile": compile}
        document = {"machine": about, "date": date.today().isoformat(), **settings, "systems": records}
        path.write_text(json.dumps(document, indent=1) + "\n")
        print(f"\n{path}")
    if differ:
        raise typer.Exit(1)


def bench_data(
    folder: Annotated[
        Path, typer.Argument(help="Folder of videos, sounds or pictures.", exists=True, file_okay=False)
    ],
    clips: Annotated[int, typer.Option(help="Clips, sounds or pictures per round.", min=1)] = 128,
    workers: Annotated[int, typer.Option(help="Our loader's processes.", min=1)] = min(
        8, os.cpu_count() or 1
    ),
    seed: Annotated[int, typer.Option(help="Seed of the files and moments.")] = 0,
) -> None:
    """Load your own files by our loaders, TorchCodec, PyAV, torchaudio and Pillow, and show the parts of our time."""
    from .media.loading import bench_folder

    bench_folder(folder, clips, workers, seed)
