"""From command to the first new result: `thaw resume` of a sweep of 1,000 finished trials, beside a sweep's cold start.

Both are the tiny spec of ``cold_start.py``, in fresh processes, in turns. The long sweep's journal is written here, as
1,000 trials of 8 epochs would have left it. At most 1.2 times as long is the bar.

    python benchmarks/resume_start.py --check
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import conclude, median, parser, report, span

BAR = 1.2
NAME = "long"
SPEC = """\
version: 1
name: long
data: {source: digits, image_size_px: 16, split: {train: 0.2, val: 0.2, test: 0.6}}
model: {backbone: lenet, weights: none}
search: {num_trials: %d}
budget: {epochs: 8}
"""


def time_start(folder: Path, num_finished: int, num_past_epochs: int) -> float:
    """Seconds from the command to the first epoch of a new trial; the rest of the sweep is not waited for."""
    home = folder / "home"
    journal = home / "sweeps" / NAME / "journal.jsonl"
    spec = folder / "long.yaml"
    spec.write_text(SPEC % (num_finished + 1))
    environment = {**os.environ, "THAW_HOME": str(home)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "tuner", *(["resume", NAME] if num_finished else ["sweep", str(spec)])]
    begun = time.time()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None:
            time.sleep(0.02)
            if journal.exists() and (when := _first_epoch(journal, num_past_epochs)) is not None:
                return when - begun
        assert process.stderr is not None
        raise SystemExit(f"thaw failed:\n{process.stderr.read()}")
    finally:
        process.kill()
        process.wait()
        time.sleep(3)  # Ray's processes follow their driver


def _first_epoch(journal: Path, num_past: int) -> float | None:
    epochs = [line for line in journal.read_text().splitlines() if '"event":"epoch"' in line]
    try:
        return float(json.loads(epochs[num_past])["time"]) if len(epochs) > num_past else None
    except ValueError:  # a line that is being written
        return None


def write_past(folder: Path, num_trials: int) -> int:
    """Begins a sweep for its files, and then writes the journal of a long one; returns its number of epochs."""
    time_start(folder, 0, 0)
    paths = folder / "home" / "sweeps" / NAME
    spec = paths / "spec.yaml"
    spec.write_text(spec.read_text().replace("num_trials: 1\n", f"num_trials: {num_trials + 1}\n"))
    (paths / "mlflow.json").unlink(missing_ok=True)
    records = [json.loads(line) for line in (paths / "journal.jsonl").read_text().splitlines()]
    start = next(record for record in records if record["event"] == "sweep")
    search = next(record for record in records if record["event"] == "search")
    point = next(record for record in records if record["event"] == "trial")["params"]
    past: list[dict[str, Any]] = [start, search]
    choose = random.Random(0)
    for number in range(num_trials):
        params = {**point, "lr": 10 ** choose.uniform(-3.5, -1.6)}
        past.append({"event": "trial", "time": 1.0, "number": number, "params": params, "metrics": {}})
        accuracy = choose.uniform(0.3, 0.9)
        for epoch in range(1, 9 if choose.random() < 0.3 else 3):
            metrics = {"val/accuracy": accuracy, "val/loss": 1.0, "train/loss": 1.0, "compute/gflops": 0.1}
            past.append({"event": "epoch", "time": 1.0, "number": number, "epoch": epoch, "metrics": metrics})
        past.append({"event": "end", "time": 1.0, "number": number, "outcome": "completed", "metrics": {}})
    past.append({"event": "interrupted", "time": 1.0, "reason": "written by a benchmark"})
    (paths / "journal.jsonl").write_text("".join(json.dumps(r, separators=(",", ":")) + "\n" for r in past))
    return sum(record["event"] == "epoch" for record in past)


def main() -> int:
    options = parser(__doc__, repeats=3)
    options.add_argument("--trials", type=int, default=1000, help="finished ones (default %(default)s)")
    wanted = options.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory(prefix="thaw-resume-") as past:
        num_epochs = write_past(Path(past), wanted.trials)
        home, as_it_was = Path(past, "home"), Path(past, "as it was")
        home.rename(as_it_was)
        for _ in range(wanted.repeats):
            with tempfile.TemporaryDirectory(prefix="thaw-resume-") as name:
                cold_s = time_start(Path(name), 0, 0)
            shutil.copytree(as_it_was, home)
            pairs.append((time_start(Path(past), wanted.trials, num_epochs), cold_s))
            shutil.rmtree(home)
    ratios = [resumed / cold for resumed, cold in pairs]
    report(
        f"Seconds from the command to the first new epoch's result; {wanted.trials} trials finished",
        ["", "s"],
        [
            ["cold start of a sweep", f"{median([cold for _, cold in pairs]):.1f}"],
            ["resume", f"{median([resumed for resumed, _ in pairs]):.1f}"],
        ],
        [f"resume / cold start: {median(ratios):.2f} ({span(ratios)}), at most {BAR}"],
    )
    case = {"trials": wanted.trials, "ratio": round(median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios]}
    return conclude("resume_start", [case], is_met=median(ratios) <= BAR, check=wanted.check)


if __name__ == "__main__":
    sys.exit(main())
