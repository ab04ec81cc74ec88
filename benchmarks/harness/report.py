"""Shows records as a table for a terminal, as JSON, and as a plot."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .provider import OURS
from .registry import CASES, DEVICE_CASES

SCHEMA = 1
WIDTH = 100
Record = Mapping[str, Any]


def _number(value: float | None, pattern: str) -> str:
    return "-" if value is None else format(value, pattern)


# heading, key in the row, format, width
COLUMNS = (
    ("ms", "ms", ".4g", 8),
    ("forward", "forward_ms", ".4g", 9),
    ("backward", "backward_ms", ".4g", 9),
    ("U", "units", ".2f", 7),
    ("x first", "times", ".2f", 8),
    ("spread", "spread", ".0%", 7),
    ("peak MB", "peak_mb", ".1f", 10),
    ("error", "error", ".1e", 10),
)


def table(record: Record) -> str:
    """A table of one case: a line per provider and a line per goal, at most 100 columns wide."""
    rows = {name: dict(row) for name, row in record["providers"].items()}
    base = next((row["ms"] for row in rows.values() if "ms" in row), None)
    for row in rows.values():
        if base is not None and "ms" in row:
            row["times"] = base / row["ms"]
    columns = [column for column in COLUMNS if any(column[1] in row for row in rows.values())]
    unit = f"   (1 U, {record['unit']}: {record['unit_ms']:.3g} ms)" if "unit_ms" in record else ""
    lines = [
        record["title"] + unit,
        " " * 32 + "".join(f"{heading:>{width}}" for heading, _, _, width in columns),
    ]
    for name, row in rows.items():
        label = f"{name} {row.get('version', '')}".strip()
        cells = "".join(f"{_number(row.get(key), pattern):>{width}}" for _, key, pattern, width in columns)
        if not row.get("finite", True):
            cells += " not finite"
        text = f" {row['skipped']}" if "skipped" in row else cells
        lines.append(f"  {label:30.30}{text}"[:WIDTH])
    for goal in record["goals"]:
        verdict = "reached" if goal["met"] else "NOT REACHED"
        provider = "" if goal["of"] == OURS else f"{goal['of']}: "
        lines.append(f"  {provider}{goal['what']}: {_number(goal['measured'], '.3g')}, {verdict}")
    return "\n".join(lines)


def summary(cases: Mapping[str, Record]) -> str:
    """Every goal in a line of its own, with its measured figure."""
    lines = [f"{'case':34}{'goal':48}{'measured':>10}  "]
    for name, record in cases.items():
        for goal in record["goals"]:
            against = goal["against"].replace("'s formula", "")
            asked = {
                "speedup": f">= {goal['least']:g}x {against}",
                "units": f"<= {goal['least']:g} U",
                "ms": f"<= {goal['least']:g} ms",
                "peak_mb": f"<= {goal['least']:g} MB",
                "memory_share": f"<= {goal['least']:g} of the memory of {against}",
                "working_share": f"<= {goal['least']:g} of the working memory of {against}",
                "error": f"<= {goal['least']:g}x the error of {against}",
            }[goal["kind"]]
            what = f"{asked} (reach {goal['reach']:g})"
            measured = _number(goal["measured"], ".3g")
            lines.append(f"{name:34}{what:48}{measured:>10}  {'ok' if goal['met'] else 'MISSED'}")
    return "\n".join(lines)


def load(path: Path) -> dict[str, Any]:
    """A results file.

    Raises:
        ValueError: the file is not a results file of this schema.
    """
    document = json.loads(path.read_text())
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a results file of schema {SCHEMA}; move it away and measure again")
    return document


def save(folder: Path, machine: Mapping[str, Any], cases: Mapping[str, Record]) -> Path:
    """Put the records into ``<folder>/<machine>.json``; other cases in the file stay, each with its own date."""
    path = folder / f"{machine['name']}.json"
    merged = {**(load(path)["cases"] if path.exists() else {}), **cases}
    order = {case.name: place for place, case in enumerate((*CASES, *DEVICE_CASES))}
    merged = dict(sorted(merged.items(), key=lambda item: order.get(item[0], len(order))))
    document = {"schema": SCHEMA, "machine": machine, "cases": merged}
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(part, path)
    return path


def _asked(record: Record) -> list[float]:
    """The goals on the time, in U."""
    asked = [goal["least"] for goal in record["goals"] if goal["kind"] == "units"]
    for goal in record["goals"]:
        against = record["providers"].get(goal["against"], {})
        if goal["kind"] == "speedup" and "units" in against:
            asked.append(against["units"] / goal["least"])
    return asked


def plot(document: Mapping[str, Any], path: Path) -> None:
    """Bars of the time in U of every provider, one panel per timed case, ours in colour."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    timed = {name: case for name, case in document["cases"].items() if "unit_ms" in case}
    if not timed:
        return
    columns = 3
    lines = -(-len(timed) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(15, 2.5 * lines), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(timed) :]:
        axis.set_visible(False)
    for axis, case in zip(axes.flat, timed.values(), strict=False):
        rows = {name: row for name, row in case["providers"].items() if "units" in row}
        units = [row["units"] for row in rows.values()]
        colours = ["#c2410c" if name.startswith(OURS) else "#94a3b8" for name in rows]
        bars = axis.barh(list(rows), units, color=colours)
        axis.bar_label(
            bars,
            [f"{row['units']:.1f} U, {row['ms']:.3g} ms" for row in rows.values()],
            padding=3,
            fontsize=8,
        )
        for units_asked in _asked(case):
            axis.axvline(units_asked, color="#0f766e", linestyle=":", linewidth=1)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.4 * max(units))
        axis.set_title(f"{case['title']}\n1 U = {case['unit_ms']:.3g} ms", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    machine = document["machine"]
    figure.suptitle(
        "Forward + backward, time in U (one N x N x D float32 torch.mm, of maps one copy, in the same process), less "
        "is better; "
        "dotted: asked of cmx_fast\n"
        f"{machine.get('gpu') or machine['cpu']}, {machine['threads']} CPU threads, torch {machine['torch']}",
        fontsize=11,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
