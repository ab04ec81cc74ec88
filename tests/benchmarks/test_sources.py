"""Rows of results that are older than the kernel they speak of are found, and only those."""

import json

import pytest

from cmx_fast.benchmarks.commands import bench
from cmx_fast.benchmarks.harness import report, sources
from cmx_fast.benchmarks.harness.registry import CASES


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("operator", dict.fromkeys(case.operator for case in CASES))
def test_every_operator_has_its_own_kernel(operator, device):
    files = sources.source_files(operator, device)
    stems = sources.STEMS.get(operator, (operator,))
    if operator in sources.LAYERS:
        assert files == sorted(sources.LAYERS[operator])
        return
    for stem in stems:
        assert f"cmx_fast/ops/{stem}.py" in files
        if device == "cpu":
            assert f"csrc/cpu/ops/{stem}_kernel.cpp" in files
        else:
            assert {f"kernels/{stem}.py", f"kernels/{stem}/launchers.py"} & set(files)
    others = {case.operator for case in CASES} - {operator, "encoding", "gates"} - set(stems)
    # That of the clusters is built on that of k-means.
    others -= {"kmeans"} if operator == "cluster_cross_entropy" else set()
    assert not {f"csrc/cpu/ops/{other}_kernel.cpp" for other in others} & set(files)
    folders = tuple(f"kernels/{other}{end}" for other in others for end in (".py", "/"))
    assert not [file for file in files if file.startswith(folders)]


def test_what_a_kernel_is_built_of_is_followed():
    on_cpu = sources.source_files("info_nce", "cpu")
    assert {
        "csrc/cpu/products/products.h",
        "csrc/cpu/products/products.cpp",
        "csrc/cpu/simd/vector_kernels.h",
    } <= set(on_cpu)
    assert not any(path.startswith("kernels/") for path in on_cpu)
    assert "csrc/cpu/tiles/frame_kernels.h" not in on_cpu
    on_gpu = sources.source_files("info_nce", "cuda")
    assert {"kernels/info_nce/backward.py", "kernels/common/tiles.py"} <= set(on_gpu)
    assert not any(path.startswith("csrc/cpu/") for path in on_gpu)
    # By the include path, not by the including file's folder.
    assert {"csrc/cuda/kmeans_step.cuh", "csrc/cuda/matrix_unit.cuh"} <= set(
        sources.source_files("kmeans", "cuda")
    )


def planted(folder, **changes):
    """A results file whose one row was measured on today's sources, but for the changes."""
    record = {
        "operator": "info_nce",
        "date": "2026-01-01",
        "sources": sources.source_hashes("info_nce", "cuda"),
    }
    for path, fingerprint in changes.pop("hashes", {}).items():
        record["sources"][path] = fingerprint
    document = {
        "schema": report.SCHEMA,
        "machine": {"name": "planted", "device": "cuda"},
        "cases": {"info_nce/planted": record | changes},
    }
    (folder / "planted.json").write_text(json.dumps(document))


def listing(folder, capsys):
    bench(out=folder, older=True)
    return capsys.readouterr().out


def test_a_row_of_todays_sources_is_not_listed(tmp_path, capsys):
    planted(tmp_path, hashes={"csrc/cpu/a_file_of_long_ago.cpp": "0" * 16})
    assert listing(tmp_path, capsys) == "0 of 1 rows are older than their kernel, 0 unknown\n"


def test_a_row_older_than_one_file_of_its_kernel_is_listed(tmp_path, capsys):
    planted(tmp_path, hashes={"kernels/common/tiles.py": "0" * 16})
    assert listing(tmp_path, capsys) == (
        "planted.json: info_nce/planted (2026-01-01): older than kernels/common/tiles.py\n"
        "1 of 1 rows are older than their kernel, 0 unknown\n"
    )


def test_a_row_without_hashes_is_unknown(tmp_path, capsys):
    planted(tmp_path, sources={})
    assert "info_nce/planted (2026-01-01): unknown" in listing(tmp_path, capsys)


def test_a_changed_kernel_makes_its_rows_older(tmp_path, capsys, monkeypatch):
    planted(tmp_path)
    before = sources._hash
    monkeypatch.setattr(
        sources, "_hash", lambda path: "changed" if path == "kernels/info_nce/launchers.py" else before(path)
    )
    assert "older than kernels/info_nce/launchers.py" in listing(tmp_path, capsys)
