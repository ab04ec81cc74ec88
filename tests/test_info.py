"""cmx info says what is true of this installation, within 100 columns."""

from __future__ import annotations

import importlib.util
import json
import platform
from pathlib import Path

import pytest
import torch

from cmx_fast import info, ops
from cmx_fast._extras import MissingExtraError, require


def test_fits_and_names_what_matters(capsys):
    info.main()
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    for needed in (torch.__version__, *ops.implementations(), *(row[0] for row in info.OPTIONAL)):
        assert needed in shown


def test_operators_report_what_auto_takes():
    rows = {(op, device): (chosen, reason) for op, device, chosen, reason in info.operators()}
    for op, devices in ops.implementations().items():
        for device, (chosen, reason) in devices.items():
            assert rows[op, device][0] == chosen
            assert rows[op, device][1].startswith(reason)


def test_native_build_or_its_absence(monkeypatch):
    if importlib.util.find_spec("cmx_fast._host") is not None:
        assert dict(info.native_build())["built against"].endswith("torch >= 2.11")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pure-Python" in dict(info.native_build())["cmx_fast._C"]


def test_gpu_state_comes_from_stored_results(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_loader("benchmarks", loader=None, is_package=True)
    spec.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    choices = {op: {"cuda": ("triton", "fused")} for op in ("info_nce", "supcon")}
    monkeypatch.setattr(ops, "implementations", lambda: choices)

    def reasons():
        return {op: reason for op, _, _, reason in info.operators()}

    assert set(reasons().values()) == {"fused; compiled ahead of time, never run on a GPU yet"}
    results = tmp_path / "results"
    results.mkdir()
    for name, machine in (("gpu", {"gpu": "Some GPU"}), ("cpu", {"cpu": "Some CPU"})):
        operator = "supcon" if name == "gpu" else "info_nce"
        content = {"machine": machine, "cases": {"case": {"operator": operator}}}
        (results / f"{name}.json").write_text(json.dumps(content))
    assert reasons()["supcon"] == "fused; measured on Some GPU"
    assert "never run on a GPU" in reasons()["info_nce"]


def test_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setattr(info, "OPTIONAL", (("Thing", "no_such_module", ("no-such-distribution",), "media"),))
    assert list(info.optional_packages()) == [("Thing", "not installed", "media")]
    with pytest.raises(MissingExtraError, match=r"no_such_module is not installed; .*cmx-fast\[media\]"):
        require("no_such_module", "media")


@pytest.mark.skipif(importlib.util.find_spec("cmx_fast._host") is None, reason="the extension is not built")
def test_host_library_knows_build_and_processor():
    from cmx_fast import _host

    build, features = _host.build_info(), _host.cpu_features()
    assert build["isa"].split()[0] == "baseline"
    assert not any("/" in value for value in build.values()), "a path would make builds differ"
    if platform.machine() == "x86_64":
        assert "avx512f" in build["isa"]
        flags = set(Path("/proc/cpuinfo").read_text().split())
        assert features == {name: name in flags for name in features}
