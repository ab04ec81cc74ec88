from __future__ import annotations

import json
import os
import re
import signal
from types import SimpleNamespace

import pytest
import torch
from forked_programs import run_program
from lightning_fabric import Fabric
from torch import nn

from cmx_fast.networks.weights import load
from cmx_fast.train import loop
from cmx_fast.train.fabric import new_fabric
from cmx_fast.train.loop import Interrupted, Pace, Stage, run_stage, warmup_and_cosine
from cmx_fast.train.run_folder import RunFolder

CONFIG = {"recipe": {"alpha": 0.6}, "seeds": [0]}


class Noisy(nn.Module):
    """Draws random numbers in training, as dropout and augmentation do."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, batch):
        return {"out": self.layers(batch["x"])}

    def losses(self, outputs, batch):
        loss = (outputs["out"] - batch["space"]).square().mean()
        return {"loss": loss, "size": outputs["out"].abs().mean()}


def stage(steps=23, at=None, signum=signal.SIGINT, poison=None) -> Stage:
    """A stage that gets a signal while it makes step ``at``, or a NaN."""

    def batches(start):
        generator = torch.Generator().manual_seed(1)
        for step in range(1, steps + 1):
            x = torch.randn(8, 4, generator=generator)
            if step <= start:
                continue
            if step == at:
                os.kill(os.getpid(), signum)
            x = x + 0.1 * torch.randn(8, 4)  # augmentation from the global generator
            yield {"x": x * float("nan") if step == poison else x, "space": torch.ones(8, 1)}

    torch.manual_seed(0)
    module = Noisy()
    return Stage(
        "seed0/noisy", module, [{"params": list(module.parameters()), "lr": 0.01}], steps, batches, seed=5
    )


def train(path, resume=False, **options) -> tuple[RunFolder, Noisy]:
    run = RunFolder(path, CONFIG, resume=resume)
    it = stage(**options)
    try:
        run_stage(Fabric(accelerator="cpu", devices=1), run, it)
    finally:
        run.close()
    return run, it.module


def timeless(run: RunFolder) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.rows()]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [1, 11, 23])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, at, signum):
    straight, module = train(tmp_path / "straight")
    with pytest.raises(Interrupted, match=f"stopped in seed0/noisy after step {at} of 23"):
        train(tmp_path / "stopped", at=at, signum=signum)
    torch.randn(100)  # whatever else has drawn from the generator
    resumed, again = train(tmp_path / "stopped", resume=True)
    assert timeless(resumed) == timeless(straight)
    assert [row["step"] for row in straight.rows()] == list(range(1, 24))
    for name, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not list((tmp_path / "stopped" / "checkpoints").rglob("*.pt"))


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    straight, _ = train(tmp_path / "straight")
    with pytest.raises(Interrupted):
        train(tmp_path / "killed", at=7)
    run = RunFolder(tmp_path / "killed", CONFIG, resume=True)
    run.log({"stage": "seed0/noisy", "step": 8, "loss": 123.0})  # written before a power cut
    run.close()
    resumed, _ = train(tmp_path / "killed", resume=True)
    assert timeless(resumed) == timeless(straight)


def test_a_finished_stage_is_loaded_not_trained(tmp_path):
    run, module = train(tmp_path)
    before = run.rows()
    again, loaded = train(tmp_path, resume=True)
    assert again.rows() == before
    assert torch.equal(loaded.layers[0].weight, module.layers[0].weight)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(tmp_path):
    with pytest.raises(ValueError, match=r"loss is nan at step 3, its batch is in .*bad-batch-3.pt"):
        train(tmp_path, poison=3)
    kept = load(tmp_path / "bad-batch-3.pt")
    assert (kept["stage"], kept["step"]) == ("seed0/noisy", 3)
    assert kept["batch"]["x"].isnan().all() and kept["batch"]["space"].eq(1).all()


def checkpoints(path):
    return sorted(path.rglob("checkpoints/**/*.pt"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda file, size: os.truncate(file, size // 2),
        lambda file, size: os.truncate(file, 0),
        lambda file, size: file.write_bytes(b"\0" * size),
        lambda file, size: file.write_bytes(file.read_bytes().replace(b"betas", b"betos")),
        lambda file, size: file.unlink(),
    ],
)
@pytest.mark.parametrize("newest_only", [True, False])
def test_damaged_checkpoints_are_told_and_passed_over(tmp_path, capsys, damage, newest_only):
    straight, _ = train(tmp_path / "straight")
    path = tmp_path / "stopped"
    for at in (7, 11):
        with pytest.raises(Interrupted):
            train(path, at=at, resume=True)
    files = checkpoints(path)
    assert [file.stem for file in files] == ["0000000007", "0000000011"]
    for file in files[-1:] if newest_only else files:
        damage(file, file.stat().st_size)
    (path / "metrics.jsonl").write_text('{"stage": "seed0/noisy", "ste')
    capsys.readouterr()
    resumed, _ = train(path, resume=True)
    assert timeless(resumed) == timeless(straight)
    said = capsys.readouterr().err
    assert ("going back to the checkpoint before it" in said) == any(file in said for file in map(str, files))


def test_one_flipped_bit_in_weights_is_noticed(tmp_path, capsys):
    straight, module = train(tmp_path)
    file = tmp_path / "seed0/noisy.pt"
    content = bytearray(file.read_bytes())
    weight = module.layers[0].weight.detach().numpy().tobytes()
    content[content.index(weight) + 5] ^= 4
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its contents|is not a readable checkpoint"):
        load(file)
    again, trained = train(tmp_path, resume=True)
    assert "this stage is trained again" in capsys.readouterr().err
    assert torch.equal(trained.layers[0].weight, module.layers[0].weight)
    assert timeless(again) == timeless(straight)


def test_a_checkpoint_never_runs_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    file = tmp_path / "evil.pt"
    torch.save({"format": 1, "module": Evil()}, file)
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        load(file)
    assert not (tmp_path / "ran").exists()


WRITE_A_LOT = """
import resource, signal, sys
from pathlib import Path
import torch
from cmx_fast.networks.weights import load, save
file = Path(sys.argv[1])
save(file, {"step": 1, "x": torch.ones(1000)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN if sys.argv[2] == "full" else signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    save(file, {"step": 2, "x": torch.ones(20000)})
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 1, 700, 8000, 60000])
@pytest.mark.parametrize("how", ["full", "killed"])
def test_the_last_file_survives_a_full_disk_and_a_kill_at_any_byte(tmp_path, how, limit):
    file = tmp_path / "state.pt"
    done = run_program(WRITE_A_LOT, str(file), how, str(limit))
    assert load(file)["step"] == 1
    if how == "full":
        assert "could not be written, the one before is untouched" in done.stdout
        assert [found.name for found in tmp_path.iterdir()] == ["state.pt"]
    else:
        assert done.returncode == -signal.SIGXFSZ


def test_two_runs_do_not_share_a_folder(tmp_path):
    run = RunFolder(tmp_path, CONFIG)
    code = f"from cmx_fast.train.run_folder import RunFolder\nRunFolder({str(tmp_path)!r}, {CONFIG!r}, resume=True)"
    second = run_program(code)
    assert f"is in use by process {os.getpid()} on" in second.stderr
    run.close()
    assert run_program(code).returncode == 0


def test_another_number_of_processes_is_said(tmp_path, capsys):
    with pytest.raises(Interrupted):
        train(tmp_path, at=7)
    state = load(checkpoints(tmp_path)[0])
    assert state["version"] and state["config"] == CONFIG
    config = {**CONFIG, "processes": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    run = RunFolder(tmp_path, {**CONFIG, "processes": 1}, resume=True)
    assert "started by 2 processes and goes on with 1" in capsys.readouterr().err
    assert json.loads((tmp_path / "config.json").read_text())["processes"] == 1
    # Two processes' generators don't fit one: it goes on from a seed, and says so above.
    newest = run.checkpoint("seed0/noisy")
    newest["rng"] = {"cpu": newest["rng"]["cpu"].repeat(2, 1)}
    run.save_checkpoint({k: v for k, v in newest.items() if k not in ("format", "rows", "config", "version")})
    run.close()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    finished, _ = train(tmp_path, resume=True)
    assert [row["step"] for row in finished.rows()] == list(range(1, 24))


def test_a_damaged_config_is_an_error(tmp_path):
    RunFolder(tmp_path, CONFIG).close()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not readable JSON"):
        RunFolder(tmp_path, CONFIG, resume=True)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"it holds list, not names and values"):
        RunFolder(tmp_path, CONFIG, resume=True)


def test_synchronised_batch_norms(tmp_path):
    with pytest.raises(
        ValueError, match=r"--sync-bn is for several processes on GPUs \(torchrun\); this is 1 on"
    ):
        new_fabric("fp32", sync_bn=True)
    run = RunFolder(tmp_path, {**CONFIG, "sync_bn": True})
    it = stage(steps=2)
    names = list(it.module.state_dict())
    run_stage(Fabric(accelerator="cpu", devices=1), run, it)  # one process: nothing to synchronise
    assert isinstance(it.module.layers[1], nn.SyncBatchNorm) and list(it.module.state_dict()) == names
    assert it.groups[0]["params"][2] is it.module.layers[1].weight
    run.close()


def test_pace_is_shown_and_not_logged(tmp_path, capsys):
    run, _ = train(tmp_path / "run")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 23
    for line in said:
        assert re.search(r"loss \d+\.\d{3}  size .*  [\d.e+]+/s  wait \d+ %$", line)
    assert set(run.rows()[0]) == {"stage", "step", "loss", "size", "lr", "seconds"}


def test_pace_counts_samples_and_waiting(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    def slow():
        for _ in range(4):
            now[0] += 0.5
            yield {"x": torch.zeros(5, 2), "space": torch.zeros(5)}

    pace, batches = Pace(processes=3), slow()
    for _ in range(4):
        pace.next(batches)
        now[0] += 1.5
    assert str(pace) == "7.5/s  wait 25 %"
    pace.restart()
    assert str(pace) == "0/s  wait 0 %"


def test_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    train(tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


def test_schedule_warms_up_and_ends_at_zero():
    factors = [warmup_and_cosine(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.2)
    assert max(factors) == pytest.approx(1, abs=0.01)
    assert factors[-1] < 0.001
    assert factors[5:] == sorted(factors[5:], reverse=True)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    RunFolder(tmp_path, CONFIG).close()
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume"):
        RunFolder(tmp_path, CONFIG)
    RunFolder(tmp_path, CONFIG, resume=True).close()
    with pytest.raises(ValueError, match=r"other settings: seeds was \[0\], now \[0, 1\]"):
        RunFolder(tmp_path, {**CONFIG, "seeds": [0, 1]}, resume=True)
    with pytest.raises(ValueError, match=r"other settings: recipe.alpha was 0.6, now 0.5$"):
        RunFolder(tmp_path, {**CONFIG, "recipe": {"alpha": 0.5}}, resume=True)


def test_csv_has_every_metric(tmp_path):
    run = RunFolder(tmp_path, CONFIG)
    run.log({"stage": "a", "step": 1, "loss": 0.5})
    run.log({"stage": "b", "step": 1, "sir R@1": 0.25})
    run.write_csv()
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "stage,step,loss,sir R@1",
        "a,1,0.5,",
        "b,1,,0.25",
    ]


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_kernel_changes_all_weights_on_a_gpu(make, device):
    fabric = SimpleNamespace(device=torch.device(device), setup_optimizers=lambda optimizer: optimizer)
    groups = [{"params": list(Noisy().parameters()), "lr": 0.01}]
    optimizer = loop.set_up_optimizer(fabric, make, groups, weight_decay=0.1)
    assert optimizer.defaults["weight_decay"] == 0.1
    assert optimizer.defaults["fused"] is (True if device == "cuda" else None)


class Falling(nn.Module):
    """A number that each step lowers by the learning rate."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return {"value": self.value}

    def losses(self, outputs, batch):
        return {"loss": outputs["value"].sum()}


def falling(lowest: float, steps: int, **more) -> Stage:
    """A stage whose evaluation is lowest where the number is ``lowest``; a step takes 1 off it."""
    module = Falling()

    def batches(start):
        while True:
            yield {"x": torch.zeros(1)}

    return Stage(
        "falling", module, [{"params": list(module.parameters()), "lr": 1.0}], steps, batches, seed=0,
        optimizer=torch.optim.SGD, labels=None, schedule=loop.constant, evaluate_every=1,
        evaluation=lambda: {"distance": abs(float(module.value.detach()) - lowest)}, **more,
    )  # fmt: skip


def run_falling(path, it: Stage, resume=False) -> tuple[RunFolder, float]:
    run = RunFolder(path, CONFIG, resume=resume)
    try:
        run_stage(Fabric(accelerator="cpu", devices=1), run, it)
    finally:
        run.close()
    return run, float(load(path / "falling.pt")["module"]["value"])


def test_the_best_weights_are_kept_and_patience_ends(tmp_path):
    assert run_falling(tmp_path / "last", falling(-3, 9))[1] == -9
    it = falling(-3, 9, best="distance")
    run, value = run_falling(tmp_path / "best", it)
    assert value == float(it.module.value) == -3
    assert run.rows()[-1]["step"] == 9
    it = falling(-3, 9, best="distance", patience=2)
    run, value = run_falling(tmp_path / "patient", it)
    assert value == float(it.module.value) == -3
    assert run.rows()[-1]["step"] == 5


@pytest.mark.parametrize("at", [2, 4, 5])
def test_the_best_weights_survive_an_interruption(tmp_path, at):
    whole = falling(-3, 9, best="distance", patience=2)
    straight, _ = run_falling(tmp_path / "straight", whole)
    it = falling(-3, 9, best="distance", patience=2)
    measure, calls = it.evaluation, []

    def stopped():
        calls.append(0)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return measure()

    it.evaluation = stopped
    with pytest.raises(Interrupted):
        run_falling(tmp_path / "stopped", it)
    again = falling(-3, 9, best="distance", patience=2)
    run, value = run_falling(tmp_path / "stopped", again, resume=True)
    assert value == -3
    assert timeless(run) == timeless(straight)


def test_gradients_of_several_batches_are_one_of_all(tmp_path):
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, batch):
            return {"out": self.layer(batch["x"])}

        def losses(self, outputs, batch):
            return {"loss": outputs["out"].square().mean()}

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 8, 3, generator=generator)

    def trained(accumulate, signal_at=None, resume=False, name=""):
        torch.manual_seed(3)
        module = Linear()
        parts = x.reshape(5 * accumulate, 8 // accumulate, 3)

        def batches(start):
            for number in range(start, len(parts)):
                if number == signal_at:
                    os.kill(os.getpid(), signal.SIGINT)
                yield {"x": parts[number]}

        groups = [{"params": list(module.parameters()), "lr": 0.1}]
        it = Stage("s", module, groups, 5, batches, 0, labels=None, accumulate=accumulate)
        run = RunFolder(tmp_path / f"{accumulate}{name}", CONFIG, resume=resume)
        try:
            run_stage(Fabric(accelerator="cpu", devices=1), run, it)
        finally:
            run.close()
        return module.layer.weight.detach(), [row["loss"] for row in run.rows()]

    one, many = trained(1), trained(4)
    torch.testing.assert_close(many[0], one[0])
    assert many[1] == pytest.approx(one[1])
    with pytest.raises(Interrupted):
        trained(4, signal_at=9, name="stopped")
    again = trained(4, resume=True, name="stopped")
    assert again[0].equal(many[0])
