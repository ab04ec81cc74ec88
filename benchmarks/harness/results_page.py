"""Writes the page of results from the committed files: ``python -m benchmarks.harness.results_page``.

It writes docs/results.md, its pictures in docs/results, and the README's table, and measures nothing.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..device import roofline
from . import recordings_table, report
from .provider import OURS
from .registry import CASES, DEVICE_CASES

ROOT = Path(__file__).resolve().parents[2]
Record = Mapping[str, Any]
Points = dict[str, list[tuple[int, float]]]
#: Panels over N: an operator, and the figure that is drawn.
PANELS = (("info_nce", "ms"), ("supcon", "ms"), ("info_nce", "peak_mb"))
#: Parts of a training step, in their order, and their colours.
PARTS = {
    "data": "#cbd5e1", "clusters": "#a16207", "forward": "#0f766e", "loss": "#c2410c", "backward": "#0369a1",
    "optimiser": "#7c3aed",
}  # fmt: skip
UNITS = {"ms": "milliseconds", "peak_mb": "peak MB beyond the inputs"}
COMPILED = "torch.compile of it"
TODAY_COLOUR, COMPILED_COLOUR, OURS_COLOUR = "#475569", "#94a3b8", "#c2410c"
#: The README's rows: case -> its name there. People use the first provider of a case today.
HEADLINE = {
    "info_nce/symmetric": "CLIP's loss, 8,192 pairs x 256",
    "info_nce/bank": "MoCo's loss, 1,024 x 65,536 negatives x 128",
    "supcon/labels": "SupCon, 8,192 rows x 128",
    "kmeans/maps": "k-means over maps, 1.28 million x 128, 20 clusters",
    "band_spectrogram/log-mel": "log-mel, 32 waves of 6 s",
}
#: Between these the README's table stands.
README_MARKS = ("<!-- measured: python -m benchmarks.harness.results_page -->", "<!-- end of measured -->")
GREYS = ("#475569", "#94a3b8", "#0f766e", "#7c3aed", "#0369a1", "#a16207", "#be185d", "#65a30d")


def over_rows(document: Mapping[str, Any], operator: str, figure: str) -> tuple[str, Points]:
    """A figure over N for every provider, at the width and dtype with the most points: a title, and the points.

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
    return f"{operator}, D={d}, {dtype}", {name: sorted(values) for name, values in points.items()}


def reached(document: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Our cases on a GPU whose ceilings were measured: title, operations per byte and operations per second.

    They are the cost model's operations and bytes; in float32 only the bytes are comparable, not the rate.
    """
    cases = {case.name: case for case in DEVICE_CASES}
    points = []
    for name, record in document["cases"].items():
        cost = roofline.cost(cases[name]) if name in cases else None
        ms = record["providers"].get(OURS, {}).get("ms")
        if cost is not None and ms is not None and cost.products and record["dtype"] == "bfloat16":
            points.append((record["title"], cost.products / cost.bytes, cost.products / (ms / 1e3)))
    return points


def _colour(name: str, place: int) -> str:
    return "#c2410c" if name.startswith(OURS) else GREYS[place % len(GREYS)]


def draw(document: Mapping[str, Any], path: Path) -> bool:
    """Draw the panels of one machine; False where there is nothing to draw."""
    from matplotlib.figure import Figure

    panels = [(figure, *over_rows(document, operator, figure)) for operator, figure in PANELS]
    panels = [panel for panel in panels if panel[2]]
    rates = document["machine"].get("ceilings")
    columns = len(panels) + (rates is not None)
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
    if rates is not None:
        _roof(axes[-1], document, rates)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    drawn.suptitle(_label(document["machine"]), fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=110)
    return True


def _roof(axis: Any, document: Mapping[str, Any], rates: Mapping[str, float]) -> None:
    """Draw the rates of the run's own large copy and product, and those that the cases reached."""
    corner = rates["bfloat16"] / rates["copy"]
    points = reached(document)
    low = min([corner / 30, *(intensity / 2 for _, intensity, _ in points)])
    high = max([corner * 30, *(intensity * 2 for _, intensity, _ in points)])
    axis.plot(
        [low, corner, high],
        [low * rates["copy"], rates["bfloat16"], rates["bfloat16"]],
        color="#475569",
    )
    for title, intensity, rate in points:
        axis.plot(intensity, rate, "o", color="#c2410c", markersize=4)
        axis.annotate(
            title.split(",")[0], (intensity, rate), fontsize=6, xytext=(3, -8), textcoords="offset points"
        )
    axis.set(xscale="log", yscale="log", title=f"{OURS}, bfloat16, at this run's ceilings")
    axis.set(xlabel="operations per byte (cost model)", ylabel="operations per second")


def draw_steps(document: Mapping[str, Any], path: Path) -> bool:
    """Draw bars of a training step's parts, a panel for each system; False where there is nothing to draw."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    systems = {
        record["title"]: {
            contender: row for contender, row in record["contenders"].items() if "parts_ms" in row
        }
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
            for contender, row in rows.items():
                length = row["parts_ms"].get(part, 0.0)
                axis.barh(contender, length, left=starts[contender], color=colour)
                starts[contender] += length
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


def _steps(document: Mapping[str, Any], page_path: Path) -> list[str]:
    """The lines about one machine's training steps: a picture of their parts, and a table."""
    compiled = ", `torch.compile`" if document["compile"] else ""
    lines = [f"### Training steps, {document['preset']} sizes, {document['precision']}{compiled}", ""]
    lines += [f"Measured {document['date']} by `cmx bench steps`.", ""]
    picture = f"steps-{document['machine']['name']}.png"
    if draw_steps(document, page_path.parent / "results" / picture):
        lines += [f"![Parts of the systems' training steps](results/{picture})", ""]
    rows = []
    for record in document["systems"].values():
        measured = [record["contenders"].get(contender, {}) for contender in ("formulas", OURS)]
        if all("ms" in row for row in measured):
            theirs, ours = (row["ms"] for row in measured)
            peaks = " | ".join("-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}" for row in measured)
            rows.append(f"| {record['title']} | {theirs:.3g} | {ours:.3g} | {theirs / ours:.2f} | {peaks} |")
    if rows:
        lines += ["| | formulas, ms | ours, ms | times faster | formulas, peak MB | ours |"]
        lines += ["|---|---|---|---|---|---|", *rows, ""]
    return lines


def _label(machine: Mapping[str, Any]) -> str:
    if machine["device"] == "cuda":
        return f"GPU: {machine['gpu']}, torch {machine['torch']}"
    return f"CPU: {machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}; no GPU"


def headline_table(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """The README's table: :data:`HEADLINE` on the first machine that measured all of it, or no lines."""
    document = _headline_document(documents)
    if document is None:
        return []
    lines = [
        "One call, with its backward pass where there is one. MB: its peak beyond the inputs, gradients included.",
        f"{_label(document['machine'])}.",
        "",
        "| | today | `torch.compile` of the formula | cmx_fast | faster | MB, today | MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, title in HEADLINE.items():
        rows = document["cases"][name]["providers"]
        today, ours, compiled = next(iter(rows)), rows[OURS], rows.get(COMPILED)
        theirs = rows[today]
        cells = [
            title,
            f"{_figures(theirs['ms'])} ms ({today})",
            "-" if compiled is None else f"{_figures(compiled['ms'])} ms",
            f"**{_figures(ours['ms'])} ms**",
            f"**{theirs['ms'] / ours['ms']:.1f}x**",
            _figures(theirs["peak_mb"]),
            f"**{_figures(ours['peak_mb'])}**",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _headline_document(documents: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((document for document in documents if document["cases"].keys() >= HEADLINE.keys()), None)


def draw_headline(documents: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw time and memory of each row of :data:`HEADLINE` as shares of today's; False if there is nothing to draw."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    document = _headline_document(documents)
    if document is None:
        return False
    drawn = Figure(figsize=(11, 4.6), layout="constrained")
    axes = drawn.subplots(1, 2, sharey=True)
    panels = (
        ("ms", "time of a step, share of today's", "ms"),
        ("peak_mb", "peak memory, share of today's", "MB"),
    )
    for axis, (figure, title, unit) in zip(axes, panels, strict=True):
        for place, name in enumerate(HEADLINE):
            rows = document["cases"][name]["providers"]
            whole = rows[next(iter(rows))][figure]
            for line, (provider, colour) in enumerate(
                ((next(iter(rows)), TODAY_COLOUR), (COMPILED, COMPILED_COLOUR), (OURS, OURS_COLOUR))
            ):
                if provider in rows:
                    share = rows[provider][figure] / whole
                    height = place + (line - 1) * 0.27
                    axis.barh(height, share, 0.25, color=colour)
                    label = f"{_figures(rows[provider][figure])} {unit}"
                    if provider == OURS:
                        label += f", {1 / share:.1f}x " + ("faster" if figure == "ms" else "less")
                    axis.text(share + 0.01, height, label, va="center", fontsize=8, color="#1e293b")
        axis.set_xlim(0, 1.18)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xticks([])
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.tick_params(length=0, labelsize=9)
    axes[0].set_yticks(range(len(HEADLINE)), [title.replace(", ", ",\n", 1) for title in HEADLINE.values()])
    axes[0].invert_yaxis()
    keys = {
        "what people use today": TODAY_COLOUR,
        "torch.compile of the formula": COMPILED_COLOUR,
        OURS: OURS_COLOUR,
    }
    drawn.legend(
        handles=[Patch(color=colour, label=label) for label, colour in keys.items()],
        loc="outside upper center", ncols=3, fontsize=9, frameon=False,
    )  # fmt: skip
    drawn.supxlabel(_label(document["machine"]), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=130)
    return True


def write(results: Path, page_path: Path) -> str:
    """Write the page and its pictures from every results file; returns the page's text."""
    documents = {path.stem: report.load(path) for path in sorted(results.glob("*.json"))}
    lines = [
        "# Results",
        "",
        "Every figure here is read from `benchmarks/results` by `python -m benchmarks.harness.results_page`.",
        "`cmx bench` measures them anew on your machine; `cmx bench --older` names those that were measured before",
        "their kernel last changed. [performance.md](performance.md#on-a-cpu) says how they are measured and why some",
        "are low.",
        "",
    ]
    if not any(document["machine"]["device"] == "cuda" for document in documents.values()):
        lines += [
            "**Nothing here ran on a GPU**: all figures are a CPU's. What the GPU kernels should reach is",
            "computed, not measured, in [performance.md](performance.md).",
            "",
        ]
    if draw_headline([*documents.values()], page_path.parent / "results" / "speed.png"):
        lines += ["![Time and memory of five cases beside what people use today](results/speed.png)", ""]
    for stem, document in documents.items():
        dates = sorted({record["date"] for record in document["cases"].values()})
        measured = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        lines += [f"## {_label(document['machine'])}", "", f"Measured {measured}.", ""]
        if draw(document, page_path.parent / "results" / f"{stem}.png"):
            lines += [f"![Time and memory over N, {_label(document['machine'])}](results/{stem}.png)", ""]
            lines += ["Both axes are logarithmic; less is better.", ""]
        records = _in_order(document)
        lines += _times(records) + _memory(records) + _errors(records) + _goals(records)
        of_steps = results / "steps" / f"{document['machine']['name']}.json"
        if of_steps.exists():
            lines += _steps(json.loads(of_steps.read_text()), page_path)
        lines += _versions(document["machine"])
    of_recordings = results / "recordings" / "systems.json"
    if of_recordings.exists():
        lines += recordings_table.lines(json.loads(of_recordings.read_text()))
    text = "\n".join(lines).rstrip() + "\n"
    page_path.write_text(text)
    return text


def write_readme(results: Path, readme: Path) -> str:
    """Put :func:`headline_table` between the README's two marks; returns the README's text.

    Raises:
        ValueError: the marks are not there.
    """
    table = headline_table([report.load(path) for path in sorted(results.glob("*.json"))])
    before, mark, rest = readme.read_text().partition(README_MARKS[0])
    _, end, after = rest.partition(README_MARKS[1])
    if not mark or not end:
        raise ValueError(f"{readme} lacks the marks {README_MARKS[0]} and {README_MARKS[1]}")
    text = "\n".join([before + mark, *table[:-1], end + after])
    readme.write_text(text)
    return text


def _in_order(document: Mapping[str, Any]) -> list[Record]:
    """The records in the order of the registry, each with a title that no other has."""
    order: dict[str, int] = {}
    for case in (*CASES, *DEVICE_CASES):  # some cases are in both
        order.setdefault(case.name, len(order))
    records: dict[str, Record] = {}
    for name in sorted(document["cases"], key=lambda name: order.get(name, len(order))):
        record = document["cases"][name]
        title = record["title"]
        if title in records:
            title += f", {name.partition('/')[2]}"
        records[title] = {**record, "title": title}
    return [*records.values()]


def _figures(value: float | None) -> str:
    """A number with three figures, without an exponent."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _times(records: Iterable[Record]) -> list[str]:
    """The table of every timed case: ours, the formula or package of today, the fastest other, and peaks of memory."""
    rows = []
    for record in records:
        timed = {name: row for name, row in record["providers"].items() if "ms" in row}
        others = {name: row for name, row in timed.items() if not name.startswith(OURS)}
        if OURS in timed and others:
            today = next(iter(others))
            best = min(others, key=lambda name: others[name]["ms"])
            ours = timed[OURS]["ms"]
            cells = [record["title"], _figures(ours)]
            for name in (today, best):
                cells += [name, _figures(others[name]["ms"]), f"{others[name]['ms'] / ours:.2f}"]
            if best == today:
                cells[-3:] = ["the same", "", ""]
            peaks = [row.get("peak_mb") for row in (timed[OURS], others[today])]
            cells += [_figures(peak) for peak in peaks]
            rows.append(f"| {' | '.join(cells)} |")
    if not rows:
        return []
    return [
        "A step, forward and backward where there is a backward, in milliseconds; MB at its peak beyond the inputs.",
        "",
        "| | ms | today | its ms | times faster | fastest other | its ms | times faster | MB | today's MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _memory(records: Iterable[Record]) -> list[str]:
    """The table of the cases that measure memory alone."""
    rows = [
        f"| {record['title']} | {name} | {_figures(row['peak_mb'])} |"
        for record in records
        if not any("ms" in row for row in record["providers"].values())
        for name, row in record["providers"].items()
        if row.get("peak_mb") is not None
    ]
    return ["Memory alone:", "", "| | | MB |", "|---|---|---|", *rows, ""] if rows else []


def _errors(records: Iterable[Record]) -> list[str]:
    """The table of the cases that measure the gradient's error alone, beside the first other provider's."""
    rows = []
    for record in records:
        providers = record["providers"]
        others = [name for name in providers if not name.startswith(OURS)]
        measured = OURS in providers and "error" in providers[OURS]
        if measured and others and not any("ms" in row for row in providers.values()):
            theirs, ours = providers[others[0]]["error"], providers[OURS]["error"]
            rows.append(
                f"| {record['title']} | {ours:.1e} | {others[0]} | {theirs:.1e} | {ours / theirs:.2g} |"
            )
    if not rows:
        return []
    return [
        "Relative error of the gradient, measured against float64:",
        "",
        "| | error | today | its error | ratio |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def _goals(records: Iterable[Record]) -> list[str]:
    """The lines with the number of reached goals, and the goals that are not reached."""
    goals = [(record["title"], goal) for record in records for goal in record["goals"]]
    missed = [
        f"- {title}: {goal['what']}; measured {_figures(goal['measured'])}"
        for title, goal in goals
        if not goal["met"]
    ]
    if not goals:
        return []
    lines = [
        f"Each case has goals (`benchmarks/cases`); {len(goals) - len(missed)} of {len(goals)} are reached. 1 U is a",
        "plain product or copy of the case's size, timed in the same process ([glossary.md](glossary.md)).",
        "",
    ]
    return lines + (["Not reached:", "", *missed, ""] if missed else [])


def _versions(machine: Mapping[str, Any]) -> list[str]:
    """The line with the packages of the run."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    isa = ", ".join(machine["isa"])
    return [f"Python {machine['python']}; {packages}. The processor has {isa}.", ""]


if __name__ == "__main__":
    print(write(ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"), end="")
    write_readme(ROOT / "benchmarks" / "results", ROOT / "README.md")
