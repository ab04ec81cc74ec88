"""``cmx bench`` measures, prints, and writes results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from .harness import gate, machine, report, sources
from .harness.measure import measure
from .harness.registry import select

RESULTS = Path(__file__).resolve().parent / "results"
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
    documents = {path.name: report.load(path) for path in sorted(folder.glob("*.json"))}
    rows = list(sources.older_rows(documents))
    for row in rows:
        print(row)
    total = sum(len(document["cases"]) for document in documents.values())
    unknown = sum(row.changed is None for row in rows)
    print(f"{len(rows) - unknown} of {total} rows are older than their kernel, {unknown} unknown")


if __name__ == "__main__":
    typer.run(bench)
