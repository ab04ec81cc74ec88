"""The page of results: CPU figures are said to be a CPU's, and a GPU's own rates become a roofline."""

from __future__ import annotations

import dataclasses
import json

import pytest

from cmx_fast.benchmarks.harness import machine, recordings_table, report, results_page
from cmx_fast.benchmarks.harness.measure import measure
from cmx_fast.benchmarks.harness.provider import OURS
from cmx_fast.benchmarks.harness.registry import CASES

GPU = {"bfloat16": 7e14, "float32": 5e13, "copy": 4e12}


@pytest.fixture(scope="module")
def records():
    """Two small in-batch losses, one with memory."""
    records = {}
    for name, n in (("info_nce/small-128", 32), ("info_nce/small-256", 64)):
        case = next(case for case in CASES if case.name == name)
        records[name] = measure(
            dataclasses.replace(case.resized(n), providers=("OpenCLIP's formula", OURS)), seconds=0
        )
    return records


def test_a_cpu_s_figures_are_a_cpu_s(records, tmp_path):
    report.save(tmp_path / "measured", machine.describe(), records)
    text = results_page.write(tmp_path / "measured", tmp_path / "docs.md")
    assert "Nothing here ran on a GPU" in text and "## CPU: " in text and "no GPU" in text
    (picture,) = (tmp_path / "results").glob("*.png")
    assert f"(results/{picture.name})" in text and picture.stat().st_size > 10_000
    assert "| info_nce N=64, D=128, float32 |" in text
    title, points = results_page.over_rows({"cases": records}, "info_nce", "ms")
    assert title == "info_nce, D=128, float32" and [n for n, _ in points[OURS]] == [32, 64]


def test_a_gpu_with_ceilings_gets_a_roofline(records, tmp_path):
    about = machine.describe() | {
        "device": "cuda",
        "gpu": "NVIDIA H200",
        "name": "nvidia-h200",
        "ceilings": GPU,
    }
    floor = records["info_nce/small-256"] | {"dtype": "bfloat16"}
    path = report.save(tmp_path / "measured", about, {"floors/info_nce-small-4096": floor})
    document = json.loads(path.read_text())
    ((_, intensity, rate),) = results_page.reached(document)
    ms = floor["providers"][OURS]["ms"]
    assert rate == pytest.approx(6 * 2 * 4096**2 * 256 / (ms / 1e3)) and intensity > 100
    text = results_page.write(tmp_path / "measured", tmp_path / "docs.md")
    assert "Nothing here ran on a GPU" not in text and "## GPU: NVIDIA H200" in text
    assert (tmp_path / "results" / "nvidia-h200.png").exists()


def test_training_steps_are_drawn_by_their_parts(records, tmp_path):
    about = machine.describe()
    results = report.save(tmp_path / "measured", about, records).parent
    parts = {"data": 1.0, "forward": 20.0, "loss": 4.0, "backward": 40.0, "optimiser": 3.0}
    rows = {"formulas": {"ms": 70.0, "peak_mb": 600.0, "parts_ms": parts | {"loss": 6.0}}}
    rows[OURS] = {"ms": 35.0, "peak_mb": None, "parts_ms": parts}
    fits = {"title": "CSIR, 48 pairs", "contenders": rows}
    large = {"title": "CMAC, 32 clips", "contenders": rows | {"formulas": {"skipped": "does not fit"}}}
    document = {
        "machine": about,
        "date": "2026-11-22",
        "preset": "demo",
        "precision": "fp32",
        "compile": False,
    }
    (results / "steps").mkdir()
    path = results / "steps" / f"{about['name']}.json"
    path.write_text(json.dumps(document | {"systems": {"csir": fits, "cmac": large}}))
    text = results_page.write(results, tmp_path / "docs.md")
    assert (
        "### Training steps, demo sizes, fp32" in text
        and "| CSIR, 48 pairs | 70 | 35 | 2.00 | 600 | - |" in text
    )
    picture = tmp_path / "results" / f"steps-{about['name']}.png"
    assert picture.stat().st_size > 5_000 and f"(results/{picture.name})" in text
    assert "CMAC, 32 clips |" not in text  # one contender alone is drawn, and not compared


def test_the_committed_page_is_of_the_committed_results(tmp_path):
    made = results_page.write(results_page.ROOT / "benchmarks" / "results", tmp_path / "results.md")
    assert made == (results_page.ROOT / "docs" / "results.md").read_text(), (
        "python -m benchmarks.harness.results_page"
    )


def test_the_systems_figures_are_those_of_their_pages(tmp_path):
    """Every figure of the table on real recordings stands in the section of the page that its row links."""
    docs = results_page.ROOT / "docs"
    path = results_page.ROOT / "benchmarks" / "results" / "recordings" / "systems.json"
    rows = json.loads(path.read_text())["rows"]
    assert {row["system"] for row in rows} == {"C2L", "CSIR", "CMAC", "Sound2Scene"}
    for row in rows:
        page, _, anchor = row["page"].partition("#")
        title = next(
            line
            for line in (docs / page).read_text().splitlines()
            if line.startswith("#") and line.lstrip("# ").lower().replace(" ", "-") == anchor
        )
        section = (docs / page).read_text().partition(f"{title}\n")[2].partition("\n###")[0]
        for kind in ("method", "baselines", "chance"):
            for name, figure in row[kind].items():
                assert recordings_table.written(figure) in section, (row["page"], row["measure"], name)
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "systems.json").write_text(path.read_text())
    text = results_page.write(tmp_path, tmp_path / "docs.md")
    assert "## On real recordings" in text and text.count("](systems/") == len(rows)


def test_the_readme_s_table_is_of_the_committed_results(tmp_path):
    readme = results_page.ROOT / "README.md"
    copy = tmp_path / "README.md"
    copy.write_text(readme.read_text())
    made = results_page.write_readme(results_page.ROOT / "benchmarks" / "results", copy)
    assert made == readme.read_text(), "python -m benchmarks.harness.results_page"
    for title in results_page.HEADLINE.values():
        assert f"| {title} |" in made


def test_a_readme_without_the_marks_is_refused(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Something else")
    with pytest.raises(ValueError, match="lacks the marks"):
        results_page.write_readme(tmp_path, readme)


def test_the_page_names_what_misses_its_goal_and_what_measures_accuracy_or_memory_alone(records, tmp_path):
    goal = {"what": "at least 9 times faster", "met": False, "measured": 1.234, "kind": "speedup"}
    slow = records["info_nce/small-128"] | {"goals": [goal]}
    error = {name: {"error": value} for name, value in (("OpenCLIP's formula", 4e-6), (OURS, 1e-6))}
    exact = slow | {"title": "at loss 1", "providers": error, "goals": []}
    small = slow | {"title": "large", "providers": {OURS: {"peak_mb": 12.345}}, "goals": []}
    cases = {
        "info_nce/small-128": slow,
        "info_nce/error": exact,
        "info_nce/memory": small,
        "info_nce/other": slow,
    }
    report.save(tmp_path / "measured", machine.describe(), cases)
    text = results_page.write(tmp_path / "measured", tmp_path / "docs.md")
    assert f"- {slow['title']}: at least 9 times faster; measured 1.23\n" in text
    assert "0 of 2 are reached" in text
    assert "| at loss 1 | 1.0e-06 | OpenCLIP's formula | 4.0e-06 | 0.25 |" in text
    assert f"| large | {OURS} | 12.3 |" in text
    assert f"| {slow['title']}, other |" in text
    assert "speed.png" not in text  # not every row of the headline was measured
