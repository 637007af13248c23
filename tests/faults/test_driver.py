"""kill -9 of the driver at random moments: with its own Ray, and on a cluster that has another sweep as well.

Twenty of them, each a start of fifteen seconds; ``THAW_DRIVER_KILLS=5`` for as few as one likes.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults_support import NAME, SPEC, Sweep, kill
from heads import STORE, running_head
from servers import reported, rows, told

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]

NUM_MOMENTS = int(os.environ.get("THAW_DRIVER_KILLS", "20"))
NUM_SWEEPS = 2
PATIENT = SPEC.replace("trial_timeout_s: 6", "trial_timeout_s: 300, cpus_per_worker: 1")
START_S = 8.0
"""About how long a driver takes until it trains: a moment in there is chosen by the clock, a later one by progress."""


def progress(sweep: Sweep) -> int:
    """How far a sweep has come, however often it was begun."""
    return len({(record["event"], record.get("number"), record.get("epoch")) for record in sweep.records()})


class Killer:
    """Runs a sweep, kills its driver, resumes it, and so on.

    Args:
        sweep: The sweep.
        environment: Where its drivers find the cluster.
        choose: Draws the moments.

    Attributes:
        struck: How often, by what was last written down.
        is_called_off: Whether nothing more is to be started.
    """

    def __init__(self, sweep: Sweep, environment: Mapping[str, str], choose: random.Random) -> None:
        self.sweep, self._environment, self._choose = sweep, environment, choose
        self.struck: Counter[str] = Counter()
        self.is_called_off = False

    def run(self, num_moments: int, end: int) -> None:
        """Strikes so often, evenly over all that happens up to ``end``, and then lets the sweep finish."""
        # The last records are the champion and the end: whoever waits for those may find the driver gone.
        for stage in sorted(self._choose.choices(range(end - 2), k=num_moments)):
            if not self.is_called_off:
                self._strike(stage)
        if not self._is_finished() and not self.is_called_off:
            resumed_at = time.time()
            self.sweep.finish(*self._command(), **self._environment)
            if "epoch" in [record["event"] for record in self.sweep.records() if record["time"] > resumed_at]:
                self.sweep.note_recovery("kill -9 of the driver, from `thaw resume` on", resumed_at)

    def _strike(self, stage: int) -> None:
        # The first has a Ray of its own, which ends with it: `thaw sweep` without a cluster.
        environment = self._environment if self.sweep.records() else {}
        process = self.sweep.start(*self._command(), **environment)
        is_early = progress(self.sweep) >= stage or self._choose.random() < 1 / 4
        deadline = time.monotonic() + (self._choose.uniform(0, START_S) if is_early else 200)
        while process.poll() is None and time.monotonic() < deadline and (is_early or progress(self.sweep) < stage):
            time.sleep(0.01)
        if process.poll() is None:
            kill(process.pid)
            self.struck[str((self.sweep.records() or [{"event": "nothing"}])[-1]["event"])] += 1
        _, err = process.communicate(timeout=60)
        assert process.returncode in (0, -9), err

    def _command(self) -> tuple[str, ...]:
        return ("resume", NAME) if self.sweep.records() else ()

    def _is_finished(self) -> bool:
        return any(record["event"] == "finished" for record in self.sweep.records())


def check(sweep: Sweep, undisturbed: Sweep) -> None:
    """The numbers of an undisturbed sweep, and everything once, in MLflow too."""
    assert sweep.numbers() == undisturbed.numbers()
    ends = Counter(record["number"] for record in sweep.records() if record["event"] == "end")
    assert set(ends.values()) == {1}, "a trial ended twice"
    database = sweep.home.mlflow_db
    assert reported(sweep.trials()) == {n: points for n, points in told(database).items() if n.startswith("trial")}
    names = rows(database, "SELECT name FROM runs")
    assert len(names) == len(set(names))
    assert rows(database, "SELECT name, version FROM model_versions") == [(NAME, 1)]


@pytest.mark.timeout(1500)
def test_the_driver_at_random_moments(undisturbed: Sweep, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    end = progress(undisturbed)
    homes = [tmp_path / str(number) for number in range(NUM_SWEEPS)]
    with running_head(4, STORE) as head, ThreadPoolExecutor(NUM_SWEEPS) as executor:
        environment = {**head.environ, "RAY_ADDRESS": head.gcs}
        killers = []
        for number, home in enumerate(homes):
            home.mkdir()
            killers.append(Killer(Sweep(home, PATIENT), environment, random.Random(seed + number)))
        try:
            began = time.monotonic()
            for each in [executor.submit(killer.run, NUM_MOMENTS // NUM_SWEEPS, end) for killer in killers]:
                each.result()
            print(f"{time.monotonic() - began:.0f} s", *(killer.struck for killer in killers))
            found = killers[0].sweep.finish("doctor", **environment)
            assert "placement groups, none of a driver that has ended" in found
        finally:
            for killer in killers:
                killer.is_called_off = True
                killer.sweep.end()
    for killer in killers:
        check(killer.sweep, undisturbed)
        killer.sweep.assert_nothing_is_left()
    # One that ended by itself between two looks was not struck.
    assert sum(killer.struck.total() for killer in killers) >= NUM_MOMENTS - 2
