"""Packages with GPU kernels: called as their signatures say (stand-ins), and named where they are left out."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import math
import re
import subprocess
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from cmx_fast.benchmarks.device import suite
from cmx_fast.benchmarks.device.limit_cases import LIMIT_CASES
from cmx_fast.benchmarks.harness import report, timing
from cmx_fast.benchmarks.harness.case import PROVIDERS, Case
from cmx_fast.benchmarks.harness.measure import PEER_TOLERANCE, measure, result_error
from cmx_fast.benchmarks.harness.provider import OURS, Provider, captured

CLIP = Case("floors/small", "info_nce", "clip", 96, 64, measures=("time", "error"))
STEP = Case(
    "floors/step", "kmeans", "step of maps", 2, 32, clusters=5, size=(8, 8), measures=("time", "error")
)


def cross_entropy(query, key):
    return F.cross_entropy(query.float() @ key.float().T, torch.arange(len(query)), reduction="none")


class MemoryEfficientCLIPLoss(torch.nn.Module):
    """memeff 0.3.1."""

    def __init__(
        self, temperature=0.07, normalized_inputs=False, stable=True, tau_plus=0.0, label_smoothing=0.0
    ):
        super().__init__()
        assert normalized_inputs and not stable, "the default's gradient is not the loss's"
        self.temperature = temperature

    def forward(self, image_features, text_features, tau_plus=None):
        both = (image_features, text_features), (text_features, image_features)
        return sum(cross_entropy(x / self.temperature, y).mean() for x, y in both) / 2


def cal_inf_loss(q, k, labels=None, scale=None, head_dim=256):
    """inf_cl 1.2.1."""
    assert scale is None, "needs a process group"
    assert q.shape[1] % head_dim == 0
    return cross_entropy(q, k).mean()


def linear_cross_entropy(
    e,
    c,
    targets,
    ignore_index=-100,
    softcap=None,
    reduction="mean",
    shift=False,
    filter_eps="high",
    impl="cce",
):
    """cut-cross-entropy 25.1.1."""
    assert filter_eps is None, "leaves out gradients"
    return F.cross_entropy((e @ c.T).float(), targets)


def fused_siglip_loss(img_features, txt_features, log_temperature, bias, use_fp8=False, backend="auto"):
    """siglip-kernel 0.1.2, its own reference."""
    logits = img_features @ txt_features.T * log_temperature.exp() + bias
    return -F.logsigmoid((2 * torch.eye(len(logits)) - 1) * logits).sum() / len(logits)


def lloyd(x, centroids):
    labels = torch.cdist(x, centroids).argmin(1)
    return torch.stack(
        [x[labels == k].mean(0) if (labels == k).any() else c for k, c in enumerate(centroids)]
    )


def batch_kmeans_Euclid(
    x, n_clusters, max_iters=100, tol=0.0, init_centroids=None, verbose=False, *, use_heuristic=True
):
    """flash-kmeans 0.3.1."""
    assert max_iters == 1 and init_centroids.shape == (1, n_clusters, x.shape[2])
    return None, lloyd(x[0], init_centroids[0])[None], 1


def euclid_assign_triton(x, centroids, x_sq, out=None, c_sq=None, *, use_heuristic=True):
    assert x_sq.shape == x.shape[:2] and x.is_contiguous()
    return torch.cdist(x, centroids).argmin(2).int()


def triton_centroid_update_sorted_euclid(x, cluster_ids, old_centroids, *, BLOCK_N=256, calculate_new=True):
    one_hot = F.one_hot(cluster_ids[0].long(), old_centroids.shape[1]).to(x.dtype)
    counts = one_hot.sum(0)[:, None]
    return torch.where(counts > 0, one_hot.T @ x[0] / counts.clamp_min(1), old_centroids[0])[None]


def knn_gpu(res, xq, xb, k, **options):
    """faiss-gpu 1.15.1, with its PyTorch interface."""
    assert xq.is_contiguous() and xb.is_contiguous() and k == 1
    distance, index = torch.cdist(xq, xb).square().min(1, keepdim=True)
    return distance, index


class KMeans:
    """cuml-cu13 26.10."""

    def __init__(self, *, n_clusters=8, max_iter=300, tol=1e-4, init="scalable-k-means++", n_init="auto"):
        assert len(init) == n_clusters and n_init == 1 and max_iter == 1
        self.start = init

    def fit(self, X, y=None):
        self.cluster_centers_ = lloyd(X, self.start)
        return self


STAND_INS = {
    "memeff": {"MemoryEfficientCLIPLoss": MemoryEfficientCLIPLoss},
    "inf_cl": {"cal_inf_loss": cal_inf_loss},
    "cut_cross_entropy": {"linear_cross_entropy": linear_cross_entropy},
    "siglip_kernel": {"fused_siglip_loss": fused_siglip_loss},
    "flash_kmeans": {
        "batch_kmeans_Euclid": batch_kmeans_Euclid,
        "triton_centroid_update_sorted_euclid": triton_centroid_update_sorted_euclid,
    },
    "flash_kmeans.assign_euclid_triton": {"euclid_assign_triton": euclid_assign_triton},
    "faiss": {"knn_gpu": knn_gpu, "StandardGpuResources": object},
    "faiss.contrib.torch_utils": {},
    "cuml.cluster": {"KMeans": KMeans},
    "cupy": {"asarray": torch.as_tensor},
}


@pytest.fixture
def installed(monkeypatch):
    """Stand-ins for all of them, with version 1."""
    for name, contents in STAND_INS.items():
        module = ModuleType(name)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    real = importlib.metadata.version
    packages = {provider.package for task in PROVIDERS.values() for provider in task.values()}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1" if name in packages else real(name))


@pytest.mark.parametrize("case", [CLIP, STEP], ids=["clip", "step"])
def test_adapters_compute_what_their_truth_says(installed, case):
    peers = {
        name: provider
        for name, provider in PROVIDERS[case.task].items()
        if provider.package and not name.startswith("open_clip")
    }
    assert len(peers) == 4
    for name, provider in peers.items():
        assert result_error(case, provider) < 1e-5, name
    record = measure(dataclasses.replace(case, providers=(*peers, OURS)), seconds=0)
    rows = record["providers"]
    assert all(row["version"] == "1" and row["ms"] > 0 for name, row in rows.items() if name in peers), rows
    if case is CLIP:
        assert rows["memeff"]["forward_ms"] > 0 and rows["memeff"]["backward_ms"] > 0


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, PEER_TOLERANCE)])
def test_the_clustering_pass_computes_the_same_in_every_way(dtype, most):
    case = next(case for case in LIMIT_CASES if case.name == "floors/clustering-pass")
    small = dataclasses.replace(case.resized(2048), dtype=dtype)
    for name, provider in small.contenders().items():
        if provider.package is None or importlib.util.find_spec("faiss"):
            assert result_error(small, provider) < most, name


def test_peers_that_are_missing_fail_or_compute_something_else_are_named(installed, monkeypatch):
    def refuses(image, text):
        raise ValueError("features must be CUDA tensors\nand more")

    def wrong(*args, **options):
        return 2 * linear_cross_entropy(*args, **options)

    monkeypatch.setattr(MemoryEfficientCLIPLoss, "forward", lambda self, x, y: refuses(x, y))
    monkeypatch.setattr(sys.modules["cut_cross_entropy"], "linear_cross_entropy", wrong)
    monkeypatch.setitem(sys.modules, "siglip_kernel", None)
    known = importlib.metadata.version

    def version(name):
        if name == "inf_cl":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    names = ("memeff", "inf_cl", "cut-cross-entropy", "siglip-kernel (sigmoids)", f"{OURS}, a graph", OURS)
    record = measure(dataclasses.replace(CLIP, providers=names), seconds=0)
    rows = record["providers"]
    assert rows["memeff"]["skipped"] == "ValueError: features must be CUDA tensors"
    assert rows["inf_cl"]["skipped"] == "inf_cl is not installed"
    assert "from float64's" in rows["cut-cross-entropy"]["skipped"]
    assert "siglip_kernel is not installed" in rows["siglip-kernel (sigmoids)"]["skipped"]
    assert "needs a CUDA device" in rows[f"{OURS}, a graph"]["skipped"]
    assert rows[OURS]["ms"] > 0 and not any("ms" in rows[name] for name in names[:-1])
    assert all(re.search(f"{re.escape(name)}.*:|installed", report.table(record)) for name in names[:-1])


def test_our_own_failure_is_no_peer_left_out(monkeypatch):
    def fails(p):
        raise RuntimeError("our kernel")

    monkeypatch.setitem(PROVIDERS["clip"], OURS, Provider(fails, PROVIDERS["clip"][OURS].truth))
    with pytest.raises(RuntimeError, match="our kernel"):
        measure(dataclasses.replace(CLIP, providers=(OURS,)), seconds=0)


def test_an_error_that_is_not_finite_is_said(monkeypatch):
    right = PROVIDERS["clip"][OURS]
    broken = dataclasses.replace(right, bind=lambda p: lambda: right.bind(p)() * math.nan)
    monkeypatch.setitem(PROVIDERS["clip"], OURS, broken)
    case = next(case for case in LIMIT_CASES if case.temperature == 0.005)
    record = measure(dataclasses.replace(case, n=64, providers=(OURS,), goals=()), seconds=0)
    assert record["providers"][OURS] == {"error": None, "finite": False}
    assert "not finite" in report.table(record)


def test_our_loss_is_finite_at_a_temperature_of_0_005():
    case = dataclasses.replace(next(case for case in LIMIT_CASES if case.temperature == 0.005), n=256)
    formula, ours = (result_error(case, PROVIDERS["clip"][name]) for name in ("OpenCLIP's formula", OURS))
    assert ours <= 1.5 * formula
    assert "temperature 0.005" in case.title


def test_floors_are_asked_of_what_is_measured():
    for case in LIMIT_CASES:
        names = set(case.providers)
        assert names <= set(PROVIDERS[case.task]), case.name
        assert case.goals and all({goal.provider, goal.against or OURS} <= names for goal in case.goals), (
            case.name
        )
        assert case.title.count("K=") == (case.clusters > 0)


def test_halves_are_timed_apart():
    import time

    forward, backward = timing.halves(lambda: time.sleep(0.002), lambda _: time.sleep(0.01), seconds=0)
    assert 0.002 <= forward < 0.01 <= backward < 0.1


class FakeGraph:
    """A graph as far as its use goes: what ran inside is not run again by a replay."""

    replays = 0

    def replay(self):
        FakeGraph.replays += 1


def test_a_captured_step_is_replayed(monkeypatch):
    import contextlib

    class Stream:
        def wait_stream(self, other):
            pass

    calls = []
    provider = Provider(lambda p: lambda: calls.append(1) or p["query"].sum(), lambda p: p["query"].sum())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    problem = CLIP.problem(provider)
    step = captured(provider).step(problem)
    assert len(calls) == 4  # three to warm up, one captured
    assert step().item() == pytest.approx(problem["query"].sum().item())
    assert len(calls) == 4 and FakeGraph.replays == 1 and problem["query"].grad is not None


def test_no_peer_is_imported_before_it_is_asked_for():
    modules = (
        "memeff",
        "inf_cl",
        "cut_cross_entropy",
        "siglip_kernel",
        "flash_kmeans",
        "cuml",
        "cupy",
        "lightly",
    )
    code = "import sys, cmx_fast.benchmarks.harness.registry, cmx_fast.benchmarks.harness.measure; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {*modules, "faiss"} & set(done.stdout.split())


def test_wheels_are_installed_from_a_folder_alone(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"has no \*\.whl"):
        suite.install_wheels(tmp_path)
    (tmp_path / "memeff-0.3.1-py3-none-any.whl").touch()
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command))
    suite.install_wheels(tmp_path)
    assert {"--no-index", "--no-deps"} < set(ran[0]) and ran[0][-1].endswith("any.whl")


def test_every_wheel_is_pinned():
    text = (suite.ROOT / "benchmarks/peers/wheels.txt").read_text()
    pins = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z_-]+==[\d.]+", pin) for pin in pins)
    carried = {pin.split("==")[0] for pin in pins}
    assert {"memeff", "inf_cl", "siglip-kernel", "cut-cross-entropy", "flash-kmeans"} < carried
