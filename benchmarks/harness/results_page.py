"""The page of plots, drawn from the committed results: ``python -m benchmarks.harness.results_page``.

Writes docs/results.md and a picture for each machine beside it. It measures nothing.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..device import roofline
from . import report
from .provider import OURS
from .registry import CASES, DEVICE_CASES

ROOT = Path(__file__).resolve().parents[2]
Record = Mapping[str, Any]
Points = dict[str, list[tuple[int, float]]]
#: Panels over N: what a record is of, and the figure that is drawn.
PANELS = (("info_nce", "ms"), ("supcon", "ms"), ("info_nce", "peak_mb"))
#: Parts of a training step, in their order, and their colours.
PARTS = {
    "data": "#cbd5e1", "clusters": "#a16207", "forward": "#0f766e", "loss": "#c2410c", "backward": "#0369a1",
    "optimiser": "#7c3aed",
}  # fmt: skip
UNITS = {"ms": "milliseconds", "peak_mb": "peak MB beyond the inputs"}
GREYS = ("#475569", "#94a3b8", "#0f766e", "#7c3aed", "#0369a1", "#a16207", "#be185d", "#65a30d")


def over_rows(document: Mapping[str, Any], operator: str, figure: str) -> tuple[str, Points]:
    """A figure over N for every provider, at the width and dtype that has most points, in words and as points.

    Only in-batch losses: a bank has another size that counts.
    """
    by_kind: dict[tuple[int, str], Points] = defaultdict(lambda: defaultdict(list))
    for record in document["cases"].values():
        if record["operator"] != operator or record["shape"]["bank"] or "at loss" in record["title"]:
            continue
        for name, row in record["providers"].items():
            if row.get(figure) is not None:
                kind = by_kind[record["shape"]["d"], record["dtype"]]
                kind[name].append((record["shape"]["n"], row[figure]))
    if not by_kind:
        return "", {}
    (d, dtype), points = max(by_kind.items(), key=lambda item: max(map(len, item[1].values())))
    return f"{operator}, D={d}, {dtype}", {name: sorted(found) for name, found in points.items()}


def reached(document: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Of ours on a GPU whose ceilings were measured: title, operations per byte and operations per second.

    By the cost model's operations and bytes, so for float32 the bytes, not the rate, are comparable.
    """
    cases = {case.name: case for case in DEVICE_CASES}
    found = []
    for name, record in document["cases"].items():
        cost = roofline.cost(cases[name]) if name in cases else None
        ms = record["providers"].get(OURS, {}).get("ms")
        if cost is not None and ms is not None and cost.products and record["dtype"] == "bfloat16":
            found.append((record["title"], cost.products / cost.bytes, cost.products / (ms / 1e3)))
    return found


def _colour(name: str, place: int) -> str:
    return "#c2410c" if name.startswith(OURS) else GREYS[place % len(GREYS)]


def draw(document: Mapping[str, Any], path: Path) -> bool:
    """The panels of one machine; whether there was anything to draw."""
    from matplotlib.figure import Figure

    panels = [(figure, *over_rows(document, operator, figure)) for operator, figure in PANELS]
    panels = [panel for panel in panels if panel[2]]
    ceilings = document["machine"].get("ceilings")
    columns = len(panels) + (ceilings is not None)
    if not columns:
        return False
    drawn = Figure(figsize=(5 * columns, 4), layout="constrained")
    axes = drawn.subplots(1, columns, squeeze=False)[0]
    for axis, (figure, title, points) in zip(axes, panels, strict=False):
        for place, (name, line) in enumerate(points.items()):
            rows, values = zip(*line, strict=True)
            axis.plot(rows, values, "o-", label=name, color=_colour(name, place), markersize=4)
        axis.set(xscale="log", yscale="log", title=title, xlabel="N", ylabel=UNITS[figure])
        axis.set_xticks(sorted({n for line in points.values() for n, _ in line}))
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.legend(fontsize=7, frameon=False)
    if ceilings is not None:
        _roof(axes[-1], document, ceilings)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    drawn.suptitle(_label(document["machine"]), fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=110)
    return True


def _roof(axis: Any, document: Mapping[str, Any], ceilings: Mapping[str, float]) -> None:
    """What a byte and an operation allow by the run's own large copy and product, and what was reached."""
    corner = ceilings["bfloat16"] / ceilings["copy"]
    found = reached(document)
    low = min([corner / 30, *(intensity / 2 for _, intensity, _ in found)])
    high = max([corner * 30, *(intensity * 2 for _, intensity, _ in found)])
    axis.plot(
        [low, corner, high],
        [low * ceilings["copy"], ceilings["bfloat16"], ceilings["bfloat16"]],
        color="#475569",
    )
    for title, intensity, rate in found:
        axis.plot(intensity, rate, "o", color="#c2410c", markersize=4)
        axis.annotate(
            title.split(",")[0], (intensity, rate), fontsize=6, xytext=(3, -8), textcoords="offset points"
        )
    axis.set(xscale="log", yscale="log", title=f"{OURS}, bfloat16, at this run's ceilings")
    axis.set(xlabel="operations per byte (cost model)", ylabel="operations per second")


def draw_steps(document: Mapping[str, Any], path: Path) -> bool:
    """Bars of a training step's parts, a panel for each system; whether there was anything to draw."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    systems = {
        record["title"]: {who: row for who, row in record["contenders"].items() if "parts_ms" in row}
        for record in document["systems"].values()
    }
    systems = {title: rows for title, rows in systems.items() if rows}
    if not systems:
        return False
    drawn = Figure(figsize=(10, 1.25 * len(systems) + 0.9), layout="constrained")
    axes = drawn.subplots(len(systems), 1, squeeze=False)[:, 0]
    for axis, (title, rows) in zip(axes, systems.items(), strict=True):
        starts = dict.fromkeys(rows, 0.0)
        for part, colour in PARTS.items():
            for who, row in rows.items():
                length = row["parts_ms"].get(part, 0.0)
                axis.barh(who, length, left=starts[who], color=colour)
                starts[who] += length
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("milliseconds of a training step")
    keys = [Patch(color=colour, label=part) for part, colour in PARTS.items()]
    drawn.legend(handles=keys, loc="outside upper center", ncols=len(PARTS), fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=110)
    return True


def _steps(document: Mapping[str, Any], page: Path) -> list[str]:
    """Whole training steps of one machine: a picture of their parts, and a table."""
    compiled = ", `torch.compile`" if document["compile"] else ""
    lines = [f"### Training steps, {document['preset']} sizes, {document['precision']}{compiled}", ""]
    lines += [f"Measured {document['date']} by `cmx bench steps`.", ""]
    picture = f"steps-{document['machine']['name']}.png"
    if draw_steps(document, page.parent / "results" / picture):
        lines += [f"![Parts of the systems' training steps](results/{picture})", ""]
    rows = []
    for record in document["systems"].values():
        found = [record["contenders"].get(who, {}) for who in ("formulas", OURS)]
        if all("ms" in row for row in found):
            theirs, ours = (row["ms"] for row in found)
            peaks = " | ".join("-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}" for row in found)
            rows.append(f"| {record['title']} | {theirs:.3g} | {ours:.3g} | {theirs / ours:.2f} | {peaks} |")
    if rows:
        lines += ["| | formulas, ms | ours, ms | times faster | formulas, peak MB | ours |"]
        lines += ["|---|---|---|---|---|---|", *rows, ""]
    return lines


def _label(machine: Mapping[str, Any]) -> str:
    if machine["device"] == "cuda":
        return f"GPU: {machine['gpu']}, torch {machine['torch']}"
    return f"CPU: {machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}; no GPU"


def write(results: Path, page: Path) -> str:
    """The page and its pictures, from every results file; the page's text."""
    documents = {path.stem: report.load(path) for path in sorted(results.glob("*.json"))}
    lines = [
        "# Benchmarks in pictures",
        "",
        "Drawn by `python -m benchmarks.harness.results_page` from `benchmarks/results`.",
    ]
    lines += ["Forward and backward; less is better. Both axes are logarithmic.", ""]
    if not any(document["machine"]["device"] == "cuda" for document in documents.values()):
        lines += [
            "**Nothing here ran on a GPU**: all figures are a CPU's. What the GPU kernels should reach is",
            "computed, not measured, in [performance.md](performance.md).",
            "",
        ]
    for stem, document in documents.items():
        dates = sorted({record["date"] for record in document["cases"].values()})
        measured = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        lines += [f"## {_label(document['machine'])}", "", f"Measured {measured}.", ""]
        if draw(document, page.parent / "results" / f"{stem}.png"):
            lines += [f"![Time and memory over N, {_label(document['machine'])}](results/{stem}.png)", ""]
        lines += _fastest(document)
        of_steps = results / "steps" / f"{document['machine']['name']}.json"
        if of_steps.exists():
            lines += _steps(json.loads(of_steps.read_text()), page)
    text = "\n".join(lines).rstrip() + "\n"
    page.write_text(text)
    return text


def _fastest(document: Mapping[str, Any]) -> list[str]:
    """Every timed case: ours, the fastest other, and how many times faster ours is."""
    order = [case.name for case in (*CASES, *DEVICE_CASES)]
    rows = []
    for name in sorted(
        document["cases"], key=lambda name: order.index(name) if name in order else len(order)
    ):
        record = document["cases"][name]
        timed = {other: row["ms"] for other, row in record["providers"].items() if "ms" in row}
        others = {other: ms for other, ms in timed.items() if not other.startswith(OURS)}
        if OURS in timed and others:
            best = min(others, key=lambda other: others[other])
            ours = timed[OURS]
            rows.append(
                f"| {record['title']} | {ours:.3g} | {best} | {others[best]:.3g} | {others[best] / ours:.2f} |"
            )
    if not rows:
        return []
    heads = ["| | ms | fastest other | its ms | times faster |", "|---|---|---|---|---|"]
    return [*heads, *rows, ""]


if __name__ == "__main__":
    print(write(ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"), end="")
