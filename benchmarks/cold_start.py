"""From command to first result: ``thaw sweep`` of a tiny spec against a bare start of Ray and one ``TorchTrainer``.

Both run in fresh processes, one after the other, in turns. Thaw's time ends when the first epoch's result is in the
journal; the bare start's when its workers reach their first line, before they have done anything. At most 1.2 times as
long is the bar. The bare start has no dashboard, as Thaw has none: that makes the bar harder, not easier.

Where Thaw's seconds go is read from outside: the phases that it prints, the times in its journal, and when the kernel
says that Ray's processes began. Nothing in Thaw exists for this benchmark.

    python benchmarks/cold_start.py --check
    python benchmarks/cold_start.py --workers 1 2 --repeats 5
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import conclude, median, parser, report, span
from neighbours import processes_below

BAR = 1.2
SPEC = """\
version: 1
name: cold
data: {source: digits, image_size_px: 16, split: {train: 0.2, val: 0.2, test: 0.6}}
model: {backbone: lenet, weights: none}
search: {num_trials: 1, augmentation: none, batch_size: 32}
"""
# What is looked for in the lines that `thaw sweep` prints, and what it means that one appears.
PHASES = {
    "starting Ray": "imports done, Ray starts",
    "training worker": "Ray is up, lanes start",
    "waiting for the first lane": "pictures ready, search starts",
}
# Titles of Ray's processes, and what it means that one begins.
PROCESSES = {
    "ray::TrainController": "process of Train's controller",
    "ray::RayTrainWorker": "process of the (first) worker",
    "ray::LaneTrial": "process of Tune's trial",
}


def time_thaw(workers: int, folder: Path) -> dict[str, float]:
    """Runs a tiny sweep in a fresh process and home; seconds from the command to each milestone."""
    spec = folder / "cold.yaml"
    spec.write_text(SPEC + f"budget: {{epochs: 1, workers_per_trial: {workers}}}\n")
    home = folder / "home"
    environment = {**os.environ, "THAW_HOME": str(home)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    begun = time.time()
    command = [sys.executable, "-m", "tuner", "sweep", str(spec)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    watch = ProcessWatch(process.pid)
    seen: dict[str, float] = {}
    lines = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        for text, meaning in PHASES.items():
            if text in line:
                seen.setdefault(meaning, time.time() - begun)
    watch.stop()
    if process.wait() != 0:
        raise SystemExit("thaw sweep failed:\n" + "".join(lines))
    seen |= {PROCESSES[title]: when - begun for title, when in watch.began.items()}
    seen |= _from_journal(home / "sweeps" / "cold" / "journal.jsonl", begun)
    return seen


def _from_journal(path: Path, begun: float) -> dict[str, float]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    first = {record["event"]: record for record in reversed(records)}
    epoch = first["epoch"]
    trained_s = epoch["metrics"]["time/train_s"] + epoch["metrics"]["time/val_s"]
    return {
        "Tune has a trial": first["trial"]["time"] - begun,
        "the epoch begins": epoch["time"] - begun - trained_s,
        "first epoch's result": epoch["time"] - begun,
        "end of the whole sweep": records[-1]["time"] - begun,
    }


class ProcessWatch:
    """Notes when the first process of each title under one process began, by the kernel's clock."""

    def __init__(self, root: int) -> None:
        self.began: dict[str, float] = {}
        self._root = root
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the watching."""
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        ticks = os.sysconf("SC_CLK_TCK")
        boot = time.time() - float(Path("/proc/uptime").read_text().split()[0])
        # Twice a second is enough: the times are the kernel's, and looking costs little.
        while not self._is_over.wait(0.5):
            for title, start in _descendants(self._root):
                for wanted in PROCESSES:
                    if title.startswith(wanted):
                        self.began[wanted] = min(boot + start / ticks, self.began.get(wanted, float("inf")))


def _descendants(root: int) -> Iterator[tuple[str, int]]:
    """Title and start (in clock ticks since boot) of ``root`` and every process under it."""
    for process in processes_below(root):
        try:
            title = Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        yield title, process.start


def time_bare(workers: int, folder: Path) -> dict[str, float]:
    """Runs the bare start in a fresh process; seconds from the command to each milestone."""
    begun = time.time()
    command = [sys.executable, __file__, "--bare", str(folder), "--workers", str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the bare start failed:\n{done.stderr}")
    return {name: when - begun for name, when in json.loads(done.stdout.splitlines()[-1]).items()}


def start_bare(workers: int, folder: Path) -> None:
    """The bare start itself, in this process; prints when what was reached."""
    times: dict[str, Any] = {"process runs": time.time()}
    import ray

    times["ray imported"] = time.time()
    ray.init(include_dashboard=False, log_to_driver=False)
    times["Ray is up"] = time.time()
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def first_line(settings: dict[str, str]) -> None:
        import time

        import ray.train

        rank = ray.train.get_context().get_world_rank()
        with open(f"{settings['folder']}/rank{rank}", "w") as file:  # noqa: PTH123
            file.write(str(time.time()))

    times["fit() called"] = time.time()
    TorchTrainer(
        first_line,
        train_loop_config={"folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.9}),
        run_config=RunConfig(name="bare", storage_path=str(folder / "storage")),
    ).fit()
    times["workers' first line"] = max(float((folder / f"rank{rank}").read_text()) for rank in range(workers))
    ray.shutdown()
    print(json.dumps(times))


def measure(workers: int, repeats: int) -> dict[str, Any]:
    """Both sides in turns."""
    thaw, bare = [], []
    for _ in range(repeats):
        for timings, run in ((bare, time_bare), (thaw, time_thaw)):
            with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as folder:
                timings.append(run(workers, Path(folder)))
    ratios = [
        real["first epoch's result"] / plain["workers' first line"] for real, plain in zip(thaw, bare, strict=True)
    ]
    return {
        "workers": workers,
        "ratio": round(median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "thaw_s": _middle(thaw),
        "bare_s": _middle(bare),
    }


def _middle(timings: list[dict[str, float]]) -> dict[str, float]:
    names = set.intersection(*(set(timing) for timing in timings))
    medians = {name: round(median([timing[name] for timing in timings]), 2) for name in names}
    return dict(sorted(medians.items(), key=lambda item: item[1]))


def parse_options() -> argparse.Namespace:
    options = parser(__doc__, repeats=3)
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of one trial (default: 1 and 2)")
    options.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    return options.parse_args()


def main() -> int:
    options = parse_options()
    if options.bare:
        start_bare(options.workers[0], options.bare)
        return 0
    results = [measure(workers, options.repeats) for workers in options.workers]
    for result in results:
        rows = [[name, f"{when:.1f}"] for name, when in result["bare_s"].items()]
        report(f"Bare start, {result['workers']} worker(s): seconds from the command", ["", "s"], rows)
        rows = [[name, f"{when:.1f}"] for name, when in result["thaw_s"].items()]
        note = f"first result / bare start: {span(result['ratios'])}, at most {BAR}"
        report(f"thaw sweep, {result['workers']} worker(s): seconds from the command", ["", "s"], rows, [note, ""])
    is_met = all(result["ratio"] <= BAR for result in results)
    return conclude("cold_start", results, is_met=is_met, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
