"""The two sides of ``versus_plain_ray.py``: a whole search by the plain program and one by Thaw, each from cold.

In: a `Task` (which pictures, which network, how much) and a seed. Out: one JSON-able record of what the search reached
and when. Both sides get the same folder of pictures, the same file of weights and a process of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from neighbours import Neighbours

REPOSITORY = Path(__file__).resolve().parents[1]
# What torchvision's ImageFolder takes for a picture: Thaw would read more, and the pictures are to be the same.
_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_FIRST_BASELINE = 10_000
Record = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One search, whoever runs it.

    Attributes:
        images: Folder with train/CLASS and val/CLASS.
        weights: A torchvision state dict.
        model: Torchvision's name of the network.
        px: Side of the square that the network sees.
        trials: Trials in all.
        epochs: Most epochs of one trial.
        batch_size: Pictures per step.
        is_bf16: Autocast to bfloat16 on both sides.
        is_gpu: Trains on a GPU.
    """

    images: Path
    weights: Path
    model: str
    px: int
    trials: int
    epochs: int
    batch_size: int
    is_bf16: bool
    is_gpu: bool

    def settings(self) -> dict[str, Any]:
        """What two records must share to be compared."""
        return {**asdict(self), "images": digest_of(self.images), "weights": self.weights.name}

    @property
    def num_val(self) -> int:
        """Validation pictures."""
        return sum(path.is_file() for path in (self.images / "val").glob("*/*"))


def lay_out_folder(source: Path, target: Path) -> None:
    """Copies train/ and val/ without the files that torchvision's ImageFolder would leave out."""
    for path in sorted(source.glob("*/*/*")):
        if path.suffix.lower() in _ENDINGS:
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def digest_of(folder: Path) -> str:
    """Names the pictures of a folder: their places and bytes."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*/*")):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def product_digest() -> str:
    """Names the state of Thaw's own code: records of another state are not reused."""
    digest = hashlib.sha256()
    for room in ("trainables", "search_spaces", "tuner"):
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            digest.update(f"{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def warm_disk(task: Task) -> None:
    """Reads what both sides read, so that neither finds it on disk only because it came first."""
    task.weights.read_bytes()
    digest_of(task.images)


# --- the plain program ---------------------------------------------------------------------------------------------


def run_plain(program: Path, task: Task, seed: int, timeout_s: float) -> Record:
    """One search by the plain program; its seconds are its own, which begin after its imports."""
    command = [sys.executable, str(program), "--images", str(task.images), "--weights", str(task.weights)]
    command += ["--model", task.model, "--px", str(task.px), "--trials", str(task.trials)]
    command += ["--epochs", str(task.epochs), "--batch-size", str(task.batch_size), "--concurrent", "1"]
    command += ["--seed", str(seed), *(["--bf16"] if task.is_bf16 else []), *(["--gpu"] if task.is_gpu else [])]
    with tempfile.TemporaryDirectory(prefix="thaw-versus-") as folder:
        ran = _run([*command, "--storage", f"{folder}/storage"], Path(folder), {}, timeout_s)
    said = json.loads(ran.output.splitlines()[-1])
    curve = [[seconds, round(accuracy * task.num_val)] for seconds, accuracy in said["best_over_time"]]
    return {
        "seconds": said["seconds"],
        "wall_s": round(ran.seconds, 2),
        "curve": curve,
        "epochs": said["epochs"],
        "trials": said["trials"],
        "errors": said["errors"],
        "best": said["best"],
        "neighbours": ran.neighbours,
        "load_before": ran.load_before,
    }


# --- Thaw ----------------------------------------------------------------------------------------------------------


def build_spec(task: Task, seed: int, num_views: int, concurrency: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The plain program's search as a spec; ``changes`` are dotted places with other values."""
    spec: dict[str, Any] = {
        "version": 1,
        "name": "versus",
        # The folder's val is all for choosing, as in the plain program: nothing is kept back for a test.
        "data": {
            "source": f"folder:{task.images}",
            "image_size_px": task.px,
            "fit": "crop",  # as torchvision's transforms in the plain program
            "split": {"test_share_of_val": 0},
        },
        "model": {"backbone": task.model, "weights": str(task.weights)},
        "search": {
            "num_trials": task.trials,
            "freeze_depth": {"low": 0, "high": "all"},
            "lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "weight_decay": {"low": 1e-5, "high": 1e-2, "log": True},
            "augmentation": ["none", "flip_crop", "randaugment"],
            "magnitude": {"low": 3, "high": 11},
            "num_views": num_views,
            "batch_size": task.batch_size,
            "optimizer": "adamw",
            "backbone_lr_ratio": 1.0,
            "label_smoothing": 0.0,
            "warmup_epochs": 0.0,
            "grad_clip_norm": None,
        },
        "budget": {
            "epochs": task.epochs,
            "concurrency": concurrency,
            "device": "cuda" if task.is_gpu else "cpu",
        },
        "compute": dict.fromkeys(("precision", "prefix_precision"), "bf16" if task.is_bf16 else "fp32"),
        "early_stopping": {"scheduler": "asha", "grace_period": min(2, task.epochs), "reduction_factor": 3},
        "baselines": [],
        "seed": seed,
    }
    for place, value in changes.items():
        *parents, last = place.split(".")
        part = spec
        for parent in parents:
            part = part.setdefault(parent, {})
        part[last] = value
    return spec


def run_thaw(spec: Mapping[str, Any], task: Task, timeout_s: float, patches: Sequence[str] = ()) -> Record:
    """One ``thaw sweep`` in a fresh home; its seconds begin with its process and end when that has ended.

    Args:
        spec: From `build_spec`.
        task: The same search.
        timeout_s: Longest time.
        patches: What ``ablations/sitecustomize.py`` takes out of the product.
    """
    paths = [str(Path(__file__).parent / "ablations")] if patches else []
    with tempfile.TemporaryDirectory(prefix="thaw-versus-") as name:
        folder = Path(name)
        (folder / "spec.yaml").write_text(yaml.safe_dump(dict(spec)))
        environment = {
            "THAW_HOME": str(folder / "home"),
            "PYTHONPATH": os.pathsep.join([*paths, str(REPOSITORY)]),
            "THAW_ABLATIONS": ",".join(patches),
            "THAW_ABLATION_IMAGES": str(task.images),
        }
        command = [sys.executable, "-m", "tuner", "sweep", str(folder / "spec.yaml")]
        ran = _run(command, folder, environment, timeout_s)
        records = [
            json.loads(line)
            for line in (folder / "home" / "sweeps" / str(spec["name"]) / "journal.jsonl").read_text().splitlines()
        ]
    if records[-1]["event"] != "finished":
        raise SystemExit(f"thaw sweep did not finish: {records[-1]}")
    return {**_read_journal(records, ran.begun, task.num_val), **ran.as_fields()}


def _read_journal(records: Sequence[Record], begun: float, num_val: int) -> Record:
    """What the search reached and when, in seconds since ``begun``."""
    (sweep,) = (record for record in records if record["event"] == "sweep")
    if (sweep["params"]["num_val"], sweep["params"]["num_test"]) != (num_val, 0):
        raise SystemExit(f"Thaw validates on {sweep['params']['num_val']} pictures, the plain program on {num_val}")
    searched = [
        record
        for record in records
        if record["event"] in ("trial", "epoch", "end") and record["number"] < _FIRST_BASELINE
    ]
    epochs = [record for record in searched if record["event"] == "epoch"]
    curve: list[list[float]] = []
    for record in epochs:
        correct = round(record["metrics"]["val/accuracy"] * num_val)
        if not curve or correct > curve[-1][1]:
            curve.append([round(record["time"] - begun, 2), correct])
    totals = {
        name: sum(record["metrics"].get(f"compute/{name}", 0.0) for record in epochs)
        for name in sorted({key[8:] for record in epochs for key in record["metrics"] if key.startswith("compute/")})
    }
    return {
        "curve": curve,
        "epochs": len(epochs),
        "trials": len({record["number"] for record in searched if record["event"] == "trial"}),
        "errors": sum(record["event"] == "end" and record["outcome"] == "failed" for record in searched),
        # The first trial's begin, the last one's end, the champion written, the champion registered.
        "milestones": {
            "search_begins": round(searched[0]["time"] - begun, 2),
            "search_ends": round(searched[-1]["time"] - begun, 2),
            **{
                name: round(record["time"] - begun, 2)
                for record in records
                for name in ("champion", "finished")
                if record["event"] == name
            },
        },
        "compute": totals,
        "by_trial": _by_trial(searched, begun, num_val),
    }


def _by_trial(searched: Sequence[Record], begun: float, num_val: int) -> list[Record]:
    trials: dict[int, Record] = {}
    for record in searched:
        trial = trials.setdefault(record["number"], {"number": record["number"], "epochs": 0, "correct": 0})
        if record["event"] == "trial":
            trial |= {"began_s": round(record["time"] - begun, 2), "params": record["params"]}
        elif record["event"] == "epoch":
            trial["epochs"] += 1
            trial["correct"] = max(trial["correct"], round(record["metrics"]["val/accuracy"] * num_val))
        elif record["event"] == "end":
            trial |= {"ended_s": round(record["time"] - begun, 2), "outcome": record["outcome"]}
    return list(trials.values())


# --- a process -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ran:
    begun: float
    seconds: float
    output: str
    neighbours: float | None
    load_before: float

    def as_fields(self) -> Record:
        seconds = round(self.seconds, 2)
        return {
            "seconds": seconds,
            "wall_s": seconds,
            "neighbours": self.neighbours,
            "load_before": self.load_before,
        }


def _run(command: Sequence[str], folder: Path, environment: Mapping[str, str], timeout_s: float) -> _Ran:
    """Runs a program to its end; what it prints of its way goes to a file, to be shown should it fail."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "RAY_ADDRESS", "MLFLOW_TRACKING_URI") and not name.startswith("THAW_")
    }
    load, begun, log = round(os.getloadavg()[0], 2), time.time(), folder / "stderr.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, cwd=folder, env={**kept, **environment}, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            with Neighbours(process.pid) as neighbours:
                output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            # An interrupt first: both sides then take their Ray down with them.
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
            raise SystemExit(f"not done after {timeout_s:.0f} s: {' '.join(command)}") from None
    seconds = time.time() - begun
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}:\n{log.read_text()[-4000:]}")
    share = None if neighbours.share is None else round(neighbours.share, 3)
    return _Ran(begun, seconds, output, share, load)
