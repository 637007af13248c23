"""Sweeps under random faults for some minutes: each ends with the trials of an undisturbed one, or this says where not.

    python tests/chaos.py --minutes 10 [--seed 7] [--log chaos.log]     (or: make chaos MINUTES=10)

A fault strikes every few seconds: kill -9 of a worker, a trial's actor, Train's controller, the driver, the MLflow
server; a worker stopped for a while; a checkpoint truncated or with one byte changed; Ctrl-C. A sweep whose driver is
gone is resumed. The seed decides the order of faults, not their moments.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import IO

from faults.faults_support import NAME, SPEC, TITLES, Sweep, kill
from faults.servers import Server

_SPEC = SPEC.replace("num_trials: 6", "num_trials: 30").replace("epochs: 4", "epochs: 6")
_PAUSE_S = (1.0, 6.0)


class Chaos:
    """Does things to one sweep.

    Args:
        sweep: The sweep.
        server: Where its records go.
        choose: Decides what happens.
        log: Takes a line for each fault.
    """

    def __init__(self, sweep: Sweep, server: Server, choose: random.Random, log: IO[str]) -> None:
        self._sweep, self._server, self._choose, self._log = sweep, server, choose, log
        self.counts: Counter[str] = Counter()

    def say(self, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {text}"
        print(line, flush=True)
        self._log.write(line + "\n")
        self._log.flush()

    def run(self, deadline: float) -> None:
        """Runs the sweep to its end, disturbed until ``deadline``."""
        arguments: tuple[str, ...] = ()
        while True:
            process = self._sweep.start(*arguments)
            self._disturb(process, deadline)
            out, err = process.communicate(timeout=600)
            records = self._sweep.records()
            if records and records[-1]["event"] == "finished":
                return
            ended = sum(record["event"] == "end" for record in records)
            self.say(f"driver ended with {process.returncode}, {ended} of 30 trials; going on")
            if process.returncode not in (0, -signal.SIGKILL, 130):
                self.say(f"unexpected: {err[-2000:]}{out[-500:]}")
            # A driver that dies before its first record leaves nothing to resume.
            arguments = ("resume", NAME) if records else ()

    def _disturb(self, process: subprocess.Popen[str], deadline: float) -> None:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(self._choose.uniform(*_PAUSE_S))
            if process.poll() is None and time.monotonic() < deadline:
                fault = self._choose.choice(
                    [*TITLES, "driver", "stopped worker", "truncated", "flipped", "server", "Ctrl-C"]
                )
                if self._strike(fault, process):
                    self.counts[fault] += 1
                    self.say(fault)

    def _strike(self, fault: str, process: subprocess.Popen[str]) -> bool:
        """Whether there was something to strike at."""
        try:
            if fault in TITLES or fault == "stopped worker":
                return self._strike_process(fault)
            if fault in ("truncated", "flipped"):
                return self._damage(fault)
            if fault == "server":
                self._server.kill()
                time.sleep(self._choose.uniform(0, 5))
                self._server.start()
            else:
                process.send_signal(signal.SIGKILL if fault == "driver" else signal.SIGINT)
        except ProcessLookupError:
            return False
        return True

    def _strike_process(self, fault: str) -> bool:
        victims = sorted(self._sweep.processes(*TITLES.get(fault, TITLES["worker"])))
        if not victims:
            return False
        victim = self._choose.choice(victims)
        if fault != "stopped worker":
            kill(victim)
            return True
        os.kill(victim, signal.SIGSTOP)
        time.sleep(3)
        os.kill(victim, signal.SIGCONT)
        return True

    def _damage(self, fault: str) -> bool:
        """Damages the last state of a running trial; best weights are what an ended one is worth, and stay."""
        ended = {record["number"] for record in self._sweep.records() if record["event"] == "end"}
        states = [p for p in self._sweep.paths.trials.glob("*/last.ckpt") if int(p.parent.name) not in ended]
        if not states:
            return False
        content = bytearray(states[0].read_bytes())
        if fault == "truncated":
            content = content[: len(content) // 2]
        else:
            content[self._choose.randrange(len(content))] ^= 1
        states[0].write_bytes(content)
        return True


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options.add_argument("--log", type=Path, default=None, help="also write the lines there")
    wanted = options.parse_args()
    choose = random.Random(wanted.seed)
    deadline = time.monotonic() + 60 * wanted.minutes
    counts: Counter[str] = Counter()
    num_sweeps, num_wrong = 0, 0
    with tempfile.TemporaryDirectory(prefix="thaw-chaos-") as folder, Path(wanted.log or os.devnull).open("a") as log:
        print(f"seed {wanted.seed}: first an undisturbed sweep", flush=True)
        undisturbed = Sweep(_made(folder, "undisturbed"), _SPEC)
        undisturbed.finish()
        while time.monotonic() < deadline:
            place = _made(folder, f"sweep-{num_sweeps}")
            server = Server(place)
            server.start()
            sweep = Sweep(place, _SPEC, MLFLOW_TRACKING_URI=server.uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
            chaos = Chaos(sweep, server, choose, log)
            try:
                chaos.run(deadline)
                is_right = sweep.numbers() == undisturbed.numbers()
                if is_right:
                    sweep.assert_nothing_is_left()
            finally:
                server.kill()
            num_sweeps, num_wrong = num_sweeps + 1, num_wrong + (not is_right)
            counts += chaos.counts
            chaos.say(f"sweep {num_sweeps}: {'the trials of an undisturbed one' if is_right else 'WRONG'}")
        faults = ", ".join(f"{number} x {fault}" for fault, number in sorted(counts.items()))
        summary = f"seed {wanted.seed}: {num_sweeps} sweeps, {num_wrong} wrong; {counts.total()} faults: {faults}"
        print(summary)
        log.write(summary + "\n")
    return int(num_wrong > 0)


def _made(folder: str, name: str) -> Path:
    place = Path(folder, name)
    place.mkdir()
    return place


if __name__ == "__main__":
    sys.exit(main())
