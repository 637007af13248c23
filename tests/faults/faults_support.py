"""Sweeps that something is done to, and what must not be left of them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from running_thaw import TINY_DATA, numbers_of, start_thaw

from tuner.paths import HomePaths
from tuner.records.journal import Record, TrialRecord, read_records, read_trials

PLANTED = Path(__file__).parent / "planted"
NAME = "faulty"
SPEC = f"""
version: 1
name: faulty
{TINY_DATA}
search:
  num_trials: 6
  lr: {{low: 1.0e-3, high: 3.0e-2, log: true}}
  augmentation: [none, flip_crop]
  batch_size: [16, 32]
budget: {{epochs: 4, threads_per_worker: 1, trial_timeout_s: 6}}
early_stopping: {{scheduler: none}}
keep_checkpoints: 100
"""

TITLES = {
    # The Trainable's actor is called by either name, between calls and within one.
    "trial's actor": ("ray::LaneTrial", "ray::ResourceTrainable"),
    "controller": ("ray::TrainController",),
    "worker": ("ray::RayTrainWorker",),
}
"""What the processes of a running trial are called."""

_Seen = TypeVar("_Seen")


class Sweep:
    """One sweep in a home of its own, run as a user would run it."""

    def __init__(self, folder: Path, spec: str = SPEC, **environment: str) -> None:
        self.home = HomePaths.at(folder / "home")
        self.paths = self.home.sweep(NAME)
        self._faults = folder / "faults"
        self._spec = folder / "spec.yaml"
        self._spec.write_text(spec)
        self._environment = environment
        self._started: list[subprocess.Popen[str]] = []

    @property
    def environment(self) -> dict[str, str]:
        """What its processes find in theirs."""
        return {"THAW_HOME": self.home.root, **self._environment}

    def plant(self, faults: Sequence[str], **environment: str) -> None:
        """Has the first trials fail: ``<epoch>-<kind>`` each; see ``planted/sitecustomize.py``."""
        self._faults.mkdir()
        for number, fault in enumerate(faults):
            (self._faults / f"{number}-{fault}").touch()
        python_path = os.pathsep.join(filter(None, [str(PLANTED), os.environ.get("PYTHONPATH")]))
        self._environment |= {"THAW_PLANTED_FAULTS": str(self._faults), "PYTHONPATH": python_path, **environment}

    def await_pause(self, process: subprocess.Popen[str]) -> None:
        """Until a trial has come to a planted ``pause``."""
        self.wait_until(self.has_paused, process, 120)

    def has_paused(self) -> bool:
        """Whether a trial is at a planted ``pause``."""
        return (self._faults / "paused").exists()

    def go_on(self) -> None:
        """Ends the pause."""
        (self._faults / "paused").unlink()

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """``thaw sweep``, or the command of the arguments, in a process group of its own."""
        arguments = arguments or ("sweep", str(self._spec))
        process = start_thaw(Path(self.home.root), *arguments, **{**self._environment, **environment})
        self._started.append(process)
        return process

    def end(self) -> None:
        """Ends what a failed test left running."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def command(self) -> str:
        """``thaw sweep`` for a shell."""
        return shlex.join([sys.executable, "-m", "tuner", "sweep", str(self._spec)])

    def finish(self, *arguments: str, timeout_s: float = 240, **environment: str) -> str:
        """Runs to the end; returns what was printed, errors first."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=timeout_s)
        assert process.returncode == 0, err
        return err + out

    def records(self) -> list[Record]:
        """The journal so far."""
        return read_records(self.paths.journal) if self.paths.journal.exists() else []

    def trials(self) -> list[TrialRecord]:
        """The trials that the journal knows."""
        return read_trials(self.paths.journal)

    def numbers(self) -> dict[int, tuple[object, ...]]:
        """See `numbers_of`; what trials failed of is printed, for the one who wonders why they differ."""
        trials = self.trials()
        for trial in trials:
            if trial.outcome == "failed":
                print(f"trial {trial.number} failed after {len(trial.epochs)} epochs: {trial.reason}")
        return numbers_of(trials)

    def await_record(
        self, is_wanted: Callable[[Record], Any], process: subprocess.Popen[str], timeout_s: float = 120
    ) -> Record | None:
        """The first record of a kind; fails when the process ends before."""
        return self.wait_until(lambda: next(filter(is_wanted, self.records()), None), process, timeout_s)

    def wait_until(
        self, look: Callable[[], _Seen], process: subprocess.Popen[str] | None, timeout_s: float = 120
    ) -> _Seen:
        """What a look gives when it first gives something; fails when the process, if there is one, ends before."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            has_ended = process is not None and process.poll() is not None
            if seen := look():
                return seen
            assert process is None or not has_ended, process.communicate()[1]
            time.sleep(0.02)
        raise AssertionError("what was waited for did not come")

    def processes(self, *names: str) -> dict[int, str]:
        """This sweep's processes, by their environment: id and title, those whose title holds one of the names."""
        own = _processes(f"THAW_HOME={self.home.root}\0")
        return {pid: title for pid, title in own if not names or any(name in title for name in names)}

    def note_recovery(self, fault: str, since: float) -> None:
        """Adds to the file that ``THAW_RECOVERIES`` names how long no trial got anywhere after a fault.

        Args:
            fault: What was done.
            since: When, by the clock of `time.time`.
        """
        if file := os.environ.get("THAW_RECOVERIES"):
            later = [record["time"] - since for record in self.records() if record["event"] == "epoch"]
            seconds = min(after for after in later if after > 0)
            with Path(file).open("a") as lines:
                lines.write(f"{seconds:6.1f} s  {fault}\n")

    def assert_nothing_is_left(self, timeout_s: float = 40) -> None:
        """No process, no temporary file, no claim, no lock on the journal."""
        deadline = time.monotonic() + timeout_s
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert sorted(title[:60] for title in self.processes().values()) == []
        left = [path for pattern in (".*.tmp", "*.partial", "*.lease") for path in self.home.local.rglob(pattern)]
        assert left == [], left
        from tuner.records.journal import Journal

        Journal.open(self.paths.journal).close()


def _processes(wanted: str) -> Iterator[tuple[int, str]]:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (path / "environ").read_text(errors="replace"):
                title = (path / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
                if title:  # what has ended and is not reaped has none
                    yield int(path.name), title
        except OSError:
            continue


def kill(pid: int) -> None:
    """As the kernel does when memory runs out."""
    os.kill(pid, signal.SIGKILL)
