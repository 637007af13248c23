"""What one more trial costs beyond its training: on a warm lane, and with a ``TorchTrainer`` of its own.

The trials are tiny (one epoch of LeNet on some hundred digits), so that nearly all of their time is the fixed cost:
the wall time from the end of one trial to the end of the next, less the seconds that the trial reports for its epoch.
The other side is the pattern of Ray's guide to Tune with Train: each trial is a Tune function that fits a
``TorchTrainer`` and reports through ``TuneReportCallback``. It trains a network of the same size, reads no files,
writes no checkpoints and asks no searcher, all of which Thaw does. At least 50 times less is the bar.

    python benchmarks/trial_overhead.py --check
    python benchmarks/trial_overhead.py --gpu --workers 1
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from measuring import conclude, median, parser, report, span

BAR = 50
# The first trials of a sweep find cold caches: the plan of the network, the views, the first import of a module.
WARM_AFTER = 2
SPEC = """\
version: 1
name: overhead
data: {source: digits, image_size_px: 16, split: {train: 0.2, val: 0.2, test: 0.6}}
model: {backbone: lenet, weights: none}
search: {augmentation: none, batch_size: 32}
early_stopping: {scheduler: none}
"""


def thaw_overheads(workers: int, num_trials: int, folder: Path, device: str) -> list[float]:
    """Fixed seconds of each trial of a sweep, but for its first ones."""
    spec, home = folder / "overhead.yaml", folder / "home"
    spec.write_text(SPEC + f"budget: {{epochs: 1, workers_per_trial: {workers}, device: {device}}}\n")
    environment = {**os.environ, "THAW_HOME": str(home)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "tuner", "sweep", str(spec), "--set", f"search.num_trials={num_trials}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"thaw sweep failed:\n{done.stderr}")
    journal = home / "sweeps" / "overhead" / "journal.jsonl"
    trained: dict[int, float] = {}
    ended: dict[int, float] = {}
    for record in map(json.loads, journal.read_text().splitlines()):
        if record["event"] == "epoch":
            trained[record["number"]] = record["metrics"]["time/train_s"] + record["metrics"]["time/val_s"]
        elif record["event"] == "end":
            ended[record["number"]] = record["time"]
    return _overheads([(when, trained[number]) for number, when in ended.items()])[WARM_AFTER:]


def _overheads(trials: list[tuple[float, float]]) -> list[float]:
    """From each trial's end and training seconds, in order: what each but the first cost beyond its training."""
    return [end - before - trained for (before, _), (end, trained) in pairwise(trials)]


def plain_overheads(workers: int, num_trials: int, folder: Path, device: str) -> list[float]:
    """Fixed seconds of each trial but the first, with a ``TorchTrainer`` per trial; in a fresh process."""
    command = [sys.executable, __file__, "--plain", str(folder), "--workers", str(workers)]
    command += ["--plain-trials", str(num_trials), *(["--gpu"] if device == "cuda" else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the plain pattern failed:\n{done.stderr}")
    return _overheads(json.loads(done.stdout.splitlines()[-1]))


def train_plainly(settings: dict[str, Any]) -> None:
    """One epoch of a small network, on one of a trial's workers."""
    import ray.train
    import ray.train.torch
    import torch
    from torch import nn

    torch.set_num_threads(settings["threads"])
    started = time.perf_counter()
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    model = ray.train.torch.prepare_model(nn.Sequential(*layers, nn.Linear(16 * 8 * 8, 10)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["lr"])
    device = ray.train.torch.get_device()
    for _ in range(11):
        images, labels = torch.randn(32, 3, 16, 16, device=device), torch.randint(10, (32,), device=device)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ray.train.report({"loss": loss.item(), "train_s": time.perf_counter() - started})


def plain_trial(settings: dict[str, Any]) -> None:
    """Tune's function trial: a ``TorchTrainer`` of its own."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    name = f"trial-{time.time_ns()}"
    # Next to no CPUs, because Ray 2.60 may leave a trial's placement group behind and starve the next one; of the GPU
    # as little where one worker has it to itself (NCCL does not take two on one).
    share = {"CPU": 0.02, "GPU": 0.02} if settings["gpu"] and settings["workers"] == 1 else {"CPU": 0.02}
    TorchTrainer(
        train_plainly,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=settings["workers"], use_gpu=settings["gpu"], resources_per_worker=share
        ),
        run_config=RunConfig(name=name, storage_path=settings["storage"], callbacks=[TuneReportCallback()]),
    ).fit()


def run_plain(workers: int, num_trials: int, folder: Path, *, gpu: bool) -> None:
    """The plain pattern, in this process; prints each trial's end and training seconds."""
    import ray
    from ray import tune

    ended: list[tuple[float, float]] = []

    class Clock(tune.Callback):
        def on_trial_complete(self, *_: Any, trial: Any, **__: Any) -> None:
            ended.append((time.time(), trial.last_result["train_s"]))

    ray.init(include_dashboard=False, log_to_driver=False)
    threads = max(1, (os.cpu_count() or 1) // workers)
    settings = {"workers": workers, "threads": threads, "storage": str(folder / "storage"), "gpu": gpu}
    results = tune.Tuner(
        tune.with_resources(plain_trial, {"CPU": 0.1}),
        param_space={**settings, "lr": tune.loguniform(1e-4, 1e-2)},
        tune_config=tune.TuneConfig(num_samples=num_trials, max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0, callbacks=[Clock()]),
    ).fit()
    if results.errors:
        raise SystemExit(str(results.errors[0]))
    ray.shutdown()
    print(json.dumps(ended))


def measure(workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turns; per turn the mean over its trials, because a sweep pays for all of them."""
    thaw, plain = [], []
    device = "cuda" if options.gpu else "cpu"
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as folder:
            thaw.append(statistics.mean(thaw_overheads(workers, options.trials, Path(folder), device)))
        print(f"{workers} worker(s): {thaw[-1]:.3f} s on a warm lane", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as folder:
            plain.append(statistics.mean(plain_overheads(workers, options.plain_trials, Path(folder), device)))
        print(f"{workers} worker(s): {plain[-1]:.1f} s with a TorchTrainer per trial", file=sys.stderr, flush=True)
    ratios = [long / short for long, short in zip(plain, thaw, strict=True)]
    return {
        "workers": workers,
        "warm_lane_s": [round(seconds, 3) for seconds in thaw],
        "plain_s": [round(seconds, 2) for seconds in plain],
        "times_less": round(median(ratios), 1),
    }


def parse_options() -> argparse.Namespace:
    options = parser(__doc__, repeats=2)
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of one trial (default: 1 and 2)")
    options.add_argument("--trials", type=int, default=30, help="of the sweep (default %(default)s)")
    options.add_argument("--plain-trials", type=int, default=3, help="of the other side (default %(default)s)")
    options.add_argument("--gpu", action="store_true", help="both sides on a GPU per worker")
    options.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    return options.parse_args()


def main() -> int:
    options = parse_options()
    if options.plain:
        run_plain(options.workers[0], options.plain_trials, options.plain, gpu=options.gpu)
        return 0
    results = [measure(workers, options) for workers in options.workers]
    rows = [
        [f"{r['workers']} worker(s)", span(r["warm_lane_s"], 3), span(r["plain_s"], 1), f"{r['times_less']:.0f}"]
        for r in results
    ]
    columns = ["", "warm lane", "TorchTrainer per trial", "times less"]
    report("Fixed cost per trial, in seconds beyond its training", columns, rows, [f"at least {BAR} times less"])
    is_met = all(result["times_less"] >= BAR for result in results)
    return conclude("trial_overhead", results, is_met=is_met, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
