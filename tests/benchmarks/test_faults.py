"""Runs survive what ``python -m benchmarks.robustness.faults`` does to them, and it notices what they don't survive."""

from __future__ import annotations

from forked_programs import run_program

RUN = "import sys; sys.argv = ['faults', '--faults', '{faults}', '--seed', '7']; {before}; from cmx_fast.benchmarks.robustness import faults; faults.main()"  # noqa: E501


def run(faults, before="pass"):
    return run_program(RUN.format(faults=faults, before=before))


def test_nothing_is_lost():
    done = run(30)
    assert done.returncode == 0, done.stdout + done.stderr
    counted = {line.rsplit(maxsplit=1)[0].strip(): line.split()[-1] for line in done.stdout.splitlines()}
    assert counted["checkpoints lost"] == counted["results that differ"] == "0"
    assert "30 in 6 runs" in done.stdout


def test_a_loop_that_forgets_its_random_numbers_is_noticed():
    done = run(20, "import cmx_fast.train.loop as loop; loop.restore_rng = lambda *a: None")
    assert done.returncode == 1
    assert "results that differ          0" not in done.stdout
