"""The fuzzer finds nothing in a short run, and finds what is planted."""

from __future__ import annotations

import pytest
from forked_programs import run_program

pytest.importorskip("soundfile")
from cmx_fast.benchmarks.robustness import fuzz, fuzz_losses

QUICK = [
    "checkpoint",
    "run folder",
    "selection json",
    *(name for name in fuzz.OPERATORS if name not in fuzz_losses.EXTREMES),
]

FUZZ = "from cmx_fast.benchmarks.robustness import fuzz; fuzz.main()"


def test_nothing_is_found():
    done = run_program(FUZZ, "--tries", "60", "--only", *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line[:24].strip(): line[24:].split() for line in done.stdout.splitlines() if len(line) > 30}
    assert rows["all"][0] == str(60 * len(QUICK))
    # Neither refuses everything nor takes everything.
    assert all(int(rows[name][1]) and int(rows[name][2]) for name in QUICK)


def test_losses_of_all_magnitudes_are_right():
    names = list(fuzz_losses.EXTREMES)
    done = run_program(FUZZ, "--tries", "150", "--only", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-2].split() == ["all", *[str(150 * len(names))] * 2, "0", "0"]


PLANTED = """
import os, sys, time
sys.argv = ["fuzz", "--tries", "6", "--only", "attention"]
from cmx_fast.benchmarks.robustness import fuzz
def one(seed):
    if seed == 1: raise KeyError("column")
    if seed == 2: os._exit(11)
    if seed == 3: time.sleep(9)
    if seed == 4: raise fuzz.Wrong("seven")
    if seed == 5: raise ValueError("a named argument")
fuzz.PATIENCE = 1.0
fuzz.OPERATORS["attention"] = one
fuzz.main()
"""


def test_errors_crashes_hangs_and_wrong_answers_are_found():
    done = run_program(PLANTED)
    assert done.returncode == 1
    assert done.stdout.splitlines()[1].split() == ["attention", "6", "1", "1", "4"]
    for finding in (
        "seed 1: KeyError: ",
        "seed 2: the process ends with 11",
        "seed 3: hangs",
        "seed 4: wrong: seven",
    ):
        assert finding in done.stdout


def test_mutations_differ_and_come_again():
    import random

    content = bytes(range(256)) * 4
    made = [fuzz.mutate(content, random.Random(seed)) for seed in range(50)]
    assert len(set(made)) > 40 and content not in made[:5]
    assert made == [fuzz.mutate(content, random.Random(seed)) for seed in range(50)]
