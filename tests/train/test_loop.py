from __future__ import annotations

import os
import signal

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from cmx_fast.train.loop import Interrupted, Stage, run_stage, warmup_and_cosine
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
    run_stage(Fabric(accelerator="cpu", devices=1), run, it)
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
    assert not (tmp_path / "stopped" / "checkpoint.pt").exists()


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    straight, _ = train(tmp_path / "straight")
    with pytest.raises(Interrupted):
        train(tmp_path / "killed", at=7)
    run = RunFolder(tmp_path / "killed", CONFIG, resume=True)
    run.log({"stage": "seed0/noisy", "step": 8, "loss": 123.0})  # written before a power cut
    resumed, _ = train(tmp_path / "killed", resume=True)
    assert timeless(resumed) == timeless(straight)


def test_a_finished_stage_is_loaded_not_trained(tmp_path):
    run, module = train(tmp_path)
    before = run.rows()
    again, loaded = train(tmp_path, resume=True)
    assert again.rows() == before
    assert torch.equal(loaded.layers[0].weight, module.layers[0].weight)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(ValueError, match="loss is nan at step 3; lower the learning rates"):
        train(tmp_path, poison=3)


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
    RunFolder(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume"):
        RunFolder(tmp_path, CONFIG)
    RunFolder(tmp_path, CONFIG, resume=True)
    with pytest.raises(ValueError, match=r"other settings: seeds was \[0\], now \[0, 1\]"):
        RunFolder(tmp_path, {**CONFIG, "seeds": [0, 1]}, resume=True)


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
