"""Runs the command as a user would, and reads what must not depend on how often it was interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tuner.paths import HomePaths
from tuner.records.journal import TrialRecord

# Few pictures, a network that trains in seconds, random weights.
TINY_DATA = """
data:
  source: digits
  exclude_classes: [0, 1, 2, 3, 4]
  image_size_px: 16
  split: {train: 0.3, val: 0.3, test: 0.4}
model: {backbone: lenet, weights: none}
"""


def start_thaw(home: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, so that a Ctrl-C can be sent to it as a terminal would."""
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "tuner", *arguments],
        env={**inherited, "THAW_HOME": str(home), **environment},
        cwd=home.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_sweep_to_its_end(home: Path, spec: Path, timeout_s: float) -> tuple[HomePaths, str, str]:
    """One sweep: its home and what it printed, on standard output and beside it."""
    process = start_thaw(home, "sweep", str(spec))
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, err
    return HomePaths.at(home), out, err


def numbers_of(trials: Sequence[TrialRecord]) -> dict[int, tuple[object, ...]]:
    """What must not depend on interruptions, by trial: point, outcome, every metric but times and what was computed."""
    return {
        trial.number: (
            trial.params,
            trial.outcome,
            [
                {name: value for name, value in epoch.items() if name.startswith(("train/", "val/"))}
                for epoch in trial.epochs
            ],
        )
        for trial in trials
    }
