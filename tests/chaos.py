"""Sweeps under random faults for some minutes: each ends with the trials of an undisturbed one, or this says where not.

    python tests/chaos.py --minutes 10 [--seed 7] [--log chaos.log]     (or: make chaos MINUTES=10)

A fault strikes every few seconds: kill -9 of a worker, a trial's actor, Train's controller, the driver, the MLflow
server; a worker or the MLflow server stopped for a while; a checkpoint truncated or with one byte changed; Ctrl-C. A
sweep whose driver is gone is resumed. The seed decides the order of faults, not their moments.

The minutes count from the end of the undisturbed sweep. After them the sweep under way goes on undisturbed to its end.
A sweep that gets nowhere for ten minutes is stuck, which is as wrong as other numbers; nothing else here depends on how
fast the machine is.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import IO

from faults.faults_support import NAME, SPEC, TITLES, Sweep, kill
from faults.servers import Server

_NUM_TRIALS = 30
# A worker that is slow, or stopped for a while, must not be taken for one that hangs: those cost their trial.
_SPEC = (
    SPEC.replace("num_trials: 6", f"num_trials: {_NUM_TRIALS}")
    .replace("epochs: 4", "epochs: 6")
    .replace("trial_timeout_s: 6", "trial_timeout_s: 600")
)
_PAUSE_S = (1.0, 6.0)
_STUCK_S = 600.0
_SERVER = ("server killed", "server stopped")
_DRIVER = ("driver", "Ctrl-C")
_EARLY = 0.2
"""Share of the faults that end a driver which strike one that has not trained yet, or a slow machine never would."""
_FAULTS = [*TITLES, *_DRIVER, "stopped worker", "truncated", "flipped", *_SERVER]
_ORDERLY = (0, -signal.SIGKILL, -signal.SIGINT, 130)
_MOST_KILLS = 2
"""Processes of a trial killed between two epochs: a trial whose worker dies a third time in one epoch is given up."""


class StuckError(Exception):
    """A sweep gets nowhere."""


class Log:
    """Lines with the time since the start, each written at once, so that a run that is cut off has said all it knew.

    Args:
        file: Where to write besides the terminal.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._start = time.monotonic()

    def say(self, text: str) -> None:
        """Writes one line."""
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        line = f"{minutes:3d}:{seconds:02d}  {text}"
        print(line, flush=True)
        self._file.write(line + "\n")
        self._file.flush()


class Chaos:
    """Does things to one sweep.

    Args:
        sweep: The sweep.
        server: Where its records go.
        choose: Decides what happens.
        log: Takes a line for each fault.
    """

    def __init__(self, sweep: Sweep, server: Server, choose: random.Random, log: Log) -> None:
        self._sweep, self._server, self._choose, self._say = sweep, server, choose, log.say
        self._seen, self._seen_at = 0, time.monotonic()
        self._begun = 0
        self._kills: Counter[int] = Counter()
        self.counts: Counter[str] = Counter()

    def run(self, deadline: float) -> None:
        """Runs the sweep to its end, disturbed until ``deadline``.

        Raises:
            StuckError: It does not come to its end.
        """
        arguments: tuple[str, ...] = ()
        while True:
            process = self._sweep.start(*arguments)
            self._begun = self._num_epochs()
            said: list[str] = []
            # Someone must read what it says: a driver whose pipe is full waits.
            reader = threading.Thread(target=lambda to=said, of=process: to.extend(of.communicate()), daemon=True)
            reader.start()
            try:
                self._disturb(process, deadline)
            except StuckError:
                process.kill()
                reader.join(60)
                raise StuckError("".join(said)[-3000:]) from None
            reader.join(60)
            records = self._sweep.records()
            if records and records[-1]["event"] == "finished":
                return
            ended = sum(record["event"] == "end" for record in records)
            self._say(f"driver ended with {process.returncode}, {ended} of {_NUM_TRIALS} trials; going on")
            if process.returncode not in _ORDERLY:
                self._say("unexpected: " + "".join(said)[-2500:])
            # A driver that dies before its first record leaves nothing to resume.
            arguments = ("resume", NAME) if records else ()

    def _disturb(self, process: subprocess.Popen[str], deadline: float) -> None:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(self._choose.uniform(*_PAUSE_S))
            self._check_progress()
            self._keep_server()
            if process.poll() is None and time.monotonic() < deadline:
                fault = self._choose.choice(_FAULTS)
                if self._strike(fault, process):
                    self.counts[fault] += 1
                    self._say(fault)

    def _check_progress(self) -> None:
        num_records = len(self._sweep.records())
        if num_records != self._seen:
            self._seen, self._seen_at = num_records, time.monotonic()
        elif time.monotonic() - self._seen_at > _STUCK_S:
            raise StuckError

    def _keep_server(self) -> None:
        """Starts the server again where it ended by itself: without one no sweep ends."""
        if (code := self._server.ended()) is not None:
            self._say(f"the MLflow server had ended with {code}; started again")
            self._server.start()

    def _num_epochs(self) -> int:
        return sum(record["event"] == "epoch" for record in self._sweep.records())

    def _strike(self, fault: str, process: subprocess.Popen[str]) -> bool:
        """Whether there was something to strike at."""
        if fault in _DRIVER and self._num_epochs() == self._begun and self._choose.random() > _EARLY:
            return False
        try:
            if fault in TITLES or fault == "stopped worker":
                return self._strike_process(fault)
            if fault in ("truncated", "flipped"):
                return self._damage(fault)
            if fault in _SERVER:
                self._strike_server(fault)
            else:
                process.send_signal(signal.SIGKILL if fault == "driver" else signal.SIGINT)
        except ProcessLookupError:
            return False
        return True

    def _strike_server(self, fault: str) -> None:
        seconds = self._choose.uniform(0, 5)
        if fault == "server stopped":
            self._server.send(signal.SIGSTOP)
            time.sleep(seconds)
            self._server.send(signal.SIGCONT)
        else:
            self._server.kill()
            time.sleep(seconds)
            self._server.start()

    def _strike_process(self, fault: str) -> bool:
        victims = sorted(self._sweep.processes(*TITLES.get(fault, TITLES["worker"])))
        if not victims:
            return False
        victim = self._choose.choice(victims)
        if fault != "stopped worker":
            num_epochs = self._num_epochs()
            if self._kills[num_epochs] == _MOST_KILLS:
                return False
            kill(victim)
            self._kills[num_epochs] += 1
            return True
        os.kill(victim, signal.SIGSTOP)
        time.sleep(3)
        os.kill(victim, signal.SIGCONT)
        return True

    def _damage(self, fault: str) -> bool:
        """Damages the last state of a running trial; best weights are what an ended one is worth, and stay."""
        ended = {record["number"] for record in self._sweep.records() if record["event"] == "end"}
        states = [p for p in self._sweep.paths.trials.glob("*/last.ckpt") if int(p.parent.name) not in ended]
        try:
            content = bytearray(states[0].read_bytes())
        except (IndexError, FileNotFoundError):  # a trial may end, and its state go, in between
            return False
        if fault == "truncated":
            content = content[: len(content) // 2]
        else:
            content[self._choose.randrange(len(content))] ^= 1
        states[0].write_bytes(content)
        return True


def _verdict(chaos: Chaos, sweep: Sweep, undisturbed: Sweep, deadline: float) -> str | None:
    """What is wrong with a sweep after all that was done to it; None for nothing."""
    try:
        chaos.run(deadline)
        numbers, whole = sweep.numbers(), undisturbed.numbers()
        other = sorted(number for number in numbers.keys() | whole.keys() if numbers.get(number) != whole.get(number))
        if other:
            shown = "; ".join(f"{number}: {numbers.get(number)} is not {whole.get(number)}" for number in other[:3])
            return f"trials {other} differ. {shown}"
        ended = [record for record in sweep.records() if record["event"] == "end"]
        ends = Counter(record["number"] for record in ended if record["outcome"] != "interrupted")
        if twice := sorted(number for number, count in ends.items() if count > 1):
            return f"trials {twice} ended twice"
        sweep.assert_nothing_is_left(timeout_s=300)
    except StuckError as stuck:
        return f"stuck for {_STUCK_S:.0f} s: {stuck}"
    except AssertionError as left:
        return f"something is left: {left}"
    return None


def main() -> int:
    """Runs sweep after sweep until the minutes are over; 1 if one of them is wrong."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options.add_argument("--log", type=Path, default=None, help="also write the lines there")
    wanted = options.parse_args()
    choose = random.Random(wanted.seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and end what was started
    counts: Counter[str] = Counter()
    num_sweeps, num_wrong = 0, 0
    with (
        tempfile.TemporaryDirectory(prefix="thaw-chaos-", ignore_cleanup_errors=True) as folder,
        Path(wanted.log or os.devnull).open("a") as file,
    ):
        log = Log(file)
        log.say(f"seed {wanted.seed}: first an undisturbed sweep")
        undisturbed = Sweep(_made(folder, "undisturbed"), _SPEC)
        try:
            undisturbed.finish(timeout_s=1800)
        finally:
            undisturbed.end()
        log.say(f"undisturbed: {len(undisturbed.trials())} trials; from here on {wanted.minutes:g} minutes of faults")
        deadline = time.monotonic() + 60 * wanted.minutes
        while time.monotonic() < deadline:
            place = _made(folder, f"sweep-{num_sweeps}")
            server = Server(place)
            server.start()
            server.await_answer()  # killed while it makes its tables, MLflow leaves a database that it refuses for ever
            sweep = Sweep(place, _SPEC, MLFLOW_TRACKING_URI=server.uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
            chaos = Chaos(sweep, server, choose, log)
            try:
                wrong = _verdict(chaos, sweep, undisturbed, deadline)
            finally:
                server.kill()
                sweep.end()
            num_sweeps, num_wrong = num_sweeps + 1, num_wrong + (wrong is not None)
            counts += chaos.counts
            verdict = "the trials of an undisturbed one" if wrong is None else f"WRONG: {wrong}"
            log.say(f"sweep {num_sweeps}, {chaos.counts.total()} faults: {verdict}")
        faults = ", ".join(f"{number} x {fault}" for fault, number in sorted(counts.items()))
        log.say(f"seed {wanted.seed}: {num_sweeps} sweeps, {num_wrong} wrong; {counts.total()} faults: {faults}")
    return int(num_wrong > 0)


def _made(folder: str, name: str) -> Path:
    place = Path(folder, name)
    place.mkdir()
    return place


if __name__ == "__main__":
    sys.exit(main())
