"""A whole HyperBand sweep, whose trials give their lane back and go on later, killed in the middle and resumed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from running_thaw import TINY_DATA, numbers_of, start_thaw

from tuner.journal import read_records, read_trials

SPEC = f"""
version: 1
name: NAME
{TINY_DATA}
search:
  num_trials: 7
  freeze_depth: [0, 1, 2]
  lr: {{low: 1.0e-3, high: 3.0e-2, log: true}}
  augmentation: none
budget: {{epochs: 4, threads_per_worker: 1, concurrency: 1}}
early_stopping: {{scheduler: hyperband, reduction_factor: 2}}
"""


def sweep(home: Path, name: str, *, killed_after: int | None = None) -> dict[int, tuple[object, ...]]:
    spec = home.parent / f"{name}.yaml"
    spec.write_text(SPEC.replace("NAME", name))
    journal = home / "sweeps" / name / "journal.jsonl"
    process = start_thaw(home, "sweep", str(spec))
    if killed_after is not None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
            if journal.exists() and sum(r["event"] == "epoch" for r in read_records(journal)) >= killed_after:
                break
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        process = start_thaw(home, "resume", name)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return numbers_of(read_trials(journal))


@pytest.mark.ray
@pytest.mark.slow
def test_trials_that_wait_go_on_with_the_numbers_of_trials_that_never_waited(tmp_path: Path) -> None:
    home = tmp_path / "home"
    whole = sweep(home, "whole")
    epochs = [len(trial[2]) for trial in whole.values()]  # type: ignore[arg-type]
    # Of 4 epochs with a factor of 2: a bracket of four trials with rungs at 1 and 2, and one of three with one at 2.
    assert sorted(epochs) == [1, 1, 2, 2, 4, 4, 4], whole
    events = read_records(home / "sweeps" / "whole" / "journal.jsonl")
    begins = [record["number"] for record in events if record["event"] == "trial"]
    assert len(begins) > len(set(begins)), "some trial gave its lane back and began again"
    assert sweep(home, "broken", killed_after=5) == whole
