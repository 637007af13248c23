"""A whole search against what a careful user writes from Ray's guide: seconds in all, and to the same accuracy.

Runs ``plain_ray.py`` (unchanged) and ``thaw sweep`` one after the other, each from cold: a process of its own, a fresh
home, nothing cached. Both get the same pictures, weights, network, search space, number of trials and epochs, batch
size, precision, early stopping and seed, and validate on all pictures of the folder's val/. Thaw's other settings are
fixed to what the plain program does (AdamW, one rate for everything that learns, no smoothing, no clipping, no
warm-up). One difference is left: the plain program draws new random views each epoch, Thaw has ``--num-views`` of them.

The clocks: the plain program's own, which begins after its imports; Thaw's from the start of its process, and for the
whole until that process has ended, with the champion's model written and registered.

A pair takes ten minutes and more, so ``--results FILE`` keeps each half as one line and ``--resume`` reuses the lines
that fit: same settings, and for Thaw the same code.

    python benchmarks/versus_plain_ray.py --results versus.jsonl --resume --check
    python benchmarks/versus_plain_ray.py --only thaw --sets bees --seeds 0
    python benchmarks/versus_plain_ray.py --ablation --sets bees --seeds 0 --results versus.jsonl --resume
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from halves import REPOSITORY, Record, Task, build_spec, lay_out_folder, product_digest, run_plain, run_thaw, warm_disk
from measuring import conclude, median, report, span

GOAL = 10.0
LEAST_TO_ACCURACY = 5.0
LEAST_IN_ALL = 3.0
WEIGHTS = {
    "mobilenet_v2": "mobilenet_v2_imagenet1k_from-tflite-uint8.pth",
    "squeezenet1_1": "squeezenet1_1_imagenet1k_from-caffe-fp16.pth",
}
SOURCES = {"bees": "hymenoptera_data", "tiles": "magnetic_tile"}
_SHARED = REPOSITORY.parent / "shared"


class Ablation(NamedTuple):
    """One thing taken away: places of the spec with other values, and what is patched out of the product."""

    changes: dict[str, Any]
    patches: tuple[str, ...] = ()


ABLATIONS = {
    "lanes": Ablation({}, ("lanes",)),
    "packed images": Ablation({}, ("packed_images",)),
    "bf16": Ablation({"compute.precision": "fp32", "compute.prefix_precision": "fp32"}),
    "store": Ablation({"features": "off"}),
    "probes": Ablation({"search.probe": "off", "search.head_init": "random"}),
    "early stopping": Ablation({"early_stopping.scheduler": "none"}),
}


class Results:
    """Finished halves, in memory and in a file of one JSON line each."""

    def __init__(self, path: Path | None, *, is_resumed: bool) -> None:
        self._path, self._product = path, product_digest()
        self._records: list[Record] = []
        if is_resumed and path is not None and path.exists():
            self._records = [json.loads(line) for line in path.read_text().splitlines()]

    def find(self, **key: Any) -> Record | None:
        """The newest half with these fields; of Thaw's only one that was run on the code as it is."""
        if key["side"] == "thaw":
            key["product"] = self._product
        fitting = [record for record in self._records if all(record.get(name) == key[name] for name in key)]
        return fitting[-1] if fitting else None

    def add(self, record: Record) -> Record:
        """Keeps a half."""
        record = {**record, "product": self._product}
        self._records.append(record)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        return record


class Bench:
    """Runs halves, or finds them among the results."""

    def __init__(self, options: argparse.Namespace, tasks: dict[str, Task]) -> None:
        self._options, self._tasks = options, tasks
        self._results = Results(options.results, is_resumed=options.resume)

    def plain(self, name: str, seed: int) -> Record | None:
        """The plain program's half; None when it is not to be run and was not."""
        task, options = self._tasks[name], self._options
        key = {"side": "plain", "set": name, "seed": seed, "settings": task.settings(), "num_val": task.num_val}
        found = self._results.find(**key)
        if found is not None or options.only == "thaw":
            return found
        _say(f"{name}, seed {seed}: plain Ray")
        warm_disk(task)
        record = self._results.add({**key, **run_plain(options.plain, task, seed, options.timeout_s)})
        _say_reached(record)
        return record

    def thaw(self, name: str, seed: int, without: str | None = None) -> Record | None:
        """Thaw's half; None when it is not to be run and was not."""
        task, options = self._tasks[name], self._options
        ablation = ABLATIONS[without] if without else Ablation({})
        spec = build_spec(task, seed, options.num_views, options.concurrency, ablation.changes)
        own = {"num_views": options.num_views, "concurrency": options.concurrency, "without": without}
        settings = {**task.settings(), **own}
        key = {"side": "thaw", "set": name, "seed": seed, "settings": settings, "num_val": task.num_val}
        found = self._results.find(**key)
        if found is not None or options.only == "plain":
            return found
        _say(f"{name}, seed {seed}: Thaw{f' without {without}' if without else ''}")
        warm_disk(task)
        record = self._results.add({**key, **run_thaw(spec, task, options.timeout_s, ablation.patches)})
        _say_reached(record)
        return record


def time_to(record: Record, correct: int) -> float | None:
    """Seconds until so many validation pictures were right; None if they never were."""
    return next((seconds for seconds, reached in record["curve"] if reached >= correct), None)


def search_s(record: Record) -> float:
    """Seconds from Thaw's first trial to the end of its last one."""
    milestones = record["milestones"]
    return float(milestones["search_ends"] - milestones["search_begins"])


def compare(name: str, seed: int, plain: Record, thaw: Record, num_val: int) -> dict[str, Any]:
    """One pair in figures."""
    target, reached = plain["curve"][-1][1], thaw["curve"][-1][1]
    # One validation picture less counts as equal; then both are timed to what Thaw has.
    aim = min(target, reached) if reached >= target - 1 else target
    thaw_s, plain_s = time_to(thaw, aim), time_to(plain, target)
    # Only the search grows with the epochs; the start before it and the champion's registration after it do not.
    same_epochs_s = thaw["seconds"] + search_s(thaw) * (plain["epochs"] / thaw["epochs"] - 1)
    return {
        "set": name,
        "seed": seed,
        "num_val": num_val,
        "plain_best": target / num_val,
        "thaw_best": reached / num_val,
        "is_as_accurate": reached >= target - 1,
        "is_one_picture_short": reached == target - 1,
        "plain_to_best_s": plain_s,
        "thaw_to_plain_best_s": thaw_s,
        "times_less_to_best": None if thaw_s is None or plain_s is None else round(plain_s / thaw_s, 2),
        "plain_s": plain["seconds"],
        "thaw_s": thaw["seconds"],
        "thaw_at_plain_epochs_s": round(same_epochs_s, 1),
        "times_less_in_all": round(plain["seconds"] / thaw["seconds"], 2),
        "times_less_at_same_epochs": round(plain["seconds"] / same_epochs_s, 2),
        "plain_epochs": plain["epochs"],
        "thaw_epochs": thaw["epochs"],
        "plain_first_epoch_s": plain["curve"][0][0],
        "thaw_first_epoch_s": thaw["curve"][0][0],
        "errors": [plain["errors"], thaw["errors"]],
        "neighbours": [plain["neighbours"], thaw["neighbours"]],
        "load_before": [plain["load_before"], thaw["load_before"]],
    }


def show_pairs(pairs: Sequence[dict[str, Any]]) -> None:
    """The table of pairs."""
    rows = []
    for pair in pairs:
        short = "*" if pair["is_one_picture_short"] else ""
        reached = pair["thaw_to_plain_best_s"]
        rows.append(
            [
                f"{pair['set']}, seed {pair['seed']}",
                f"{pair['plain_best']:.4f} / {pair['thaw_best']:.4f}",
                f"{pair['plain_to_best_s']:.0f} / " + ("never" if reached is None else f"{reached:.0f}{short}"),
                "-" if reached is None else f"{pair['times_less_to_best']:.1f}{short}",
                f"{pair['plain_s']:.0f} / {pair['thaw_s']:.0f}",
                f"{pair['plain_epochs']} / {pair['thaw_epochs']}",
                f"{pair['times_less_at_same_epochs']:.1f}",
                f"{pair['plain_first_epoch_s']:.0f} / {pair['thaw_first_epoch_s']:.0f}",
                " / ".join("?" if share is None else f"{share:.0%}" for share in pair["neighbours"]),
            ]
        )
    columns = ["plain / Thaw", "best", "s to plain's best", "times less", "s in all", "epochs"]
    columns += ["times less, same epochs", "s to first epoch", "taken by others"]
    notes = ["* one validation picture below the plain run's best: timed to within one picture of it"]
    report("A search by plain Ray and by Thaw", columns, rows, notes if any("*" in row[3] for row in rows) else [])


def summarise(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median and range over the seeds, by set."""
    summaries = []
    for name in dict.fromkeys(pair["set"] for pair in pairs):
        mine = [pair for pair in pairs if pair["set"] == name]
        # A pair that never got there is no time saved at all.
        to_best = [pair["times_less_to_best"] or 0.0 for pair in mine]
        at_same = [pair["times_less_at_same_epochs"] for pair in mine]
        summaries.append(
            {
                "set": name,
                "seeds": len(mine),
                "times_less_to_best": span(to_best, 1),
                "times_less_at_same_epochs": span(at_same, 1),
                "is_as_accurate": all(pair["is_as_accurate"] for pair in mine),
                "is_goal_met": median(to_best) >= GOAL,
                "is_met": median(to_best) >= LEAST_TO_ACCURACY
                and median(at_same) >= LEAST_IN_ALL
                and all(pair["is_as_accurate"] for pair in mine),
            }
        )
    rows = [
        [
            f"{each['set']}, {each['seeds']} seed(s)",
            each["times_less_to_best"],
            each["times_less_at_same_epochs"],
            "yes" if each["is_as_accurate"] else "NO",
            "yes" if each["is_goal_met"] else "NO",
        ]
        for each in summaries
    ]
    report(
        "Times less, median (range) over seeds",
        ["", "to plain's best accuracy", "whole, same epochs run", "as accurate", f"goal of {GOAL:.0f}"],
        rows,
        [f"floors: {LEAST_TO_ACCURACY:.0f} to the accuracy, {LEAST_IN_ALL:.0f} for the whole, accuracy no lower"],
    )
    return summaries


def ablate(bench: Bench, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Thaw whole and with one thing missing at a time; seconds, and times as long as the whole."""
    cases, rows = [], []
    for name in options.sets:
        for seed in options.seeds:
            whole = bench.thaw(name, seed)
            assert whole is not None
            for without in (None, *options.without):
                record = whole if without is None else bench.thaw(name, seed, without)
                assert record is not None
                case = _ablated(name, seed, without, record, whole)
                cases.append(case)
                to_best = case["to_whole_best_s"]
                rows.append(
                    [
                        f"{name}, seed {seed}: " + (f"without {without}" if without else "all of Thaw"),
                        f"{case['seconds']:.0f}",
                        f"{case['times_as_long']:.2f}",
                        f"{case['epochs']}",
                        f"{case['search_s_per_epoch']:.2f}",
                        f"{case['best']:.4f}",
                        "never" if to_best is None else f"{to_best:.0f}",
                    ]
                )
    columns = ["", "s in all", "times as long", "epochs", "s of search per epoch", "best", "s to the whole's best"]
    report("What each part is worth: Thaw with one of them switched off", columns, rows)
    return cases


def _ablated(name: str, seed: int, without: str | None, record: Record, whole: Record) -> dict[str, Any]:
    return {
        "set": name,
        "seed": seed,
        "without": without,
        "seconds": record["seconds"],
        "times_as_long": round(record["seconds"] / whole["seconds"], 3),
        "epochs": record["epochs"],
        "search_s_per_epoch": round(search_s(record) / record["epochs"], 3),
        "best": record["curve"][-1][1] / record["num_val"],
        "to_whole_best_s": time_to(record, whole["curve"][-1][1]),
        "neighbours": record["neighbours"],
    }


def lay_out(options: argparse.Namespace, folder: Path) -> dict[str, Task]:
    """The pictures of every set, as both sides read them."""
    tasks = {}
    for name in options.sets:
        images, source = folder / name, options.data / SOURCES[name]
        if not source.is_dir():
            raise SystemExit(f"no pictures at {source}: give their folder by --data or THAW_SHARED_DATA")
        if name == "tiles":
            splitter = options.plain.parent / "split_by_group.py"
            subprocess.run([sys.executable, str(splitter), str(source), str(images)], check=True)
        else:
            lay_out_folder(source, images)
        weights = options.weights or options.data / "weights" / WEIGHTS[options.model]
        tasks[name] = Task(
            images, weights.resolve(), options.model, options.px, options.trials, options.epochs, options.batch_size,
            not options.fp32, options.gpu,
        )  # fmt: skip
    return tasks


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _say_reached(record: Record) -> None:
    _say(f"    {record['seconds']:.0f} s, {record['epochs']} epochs, best {record['curve'][-1][1]} right")


def parse_options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = options.add_argument
    add("--check", action="store_true", help="exit with 1 when a floor is missed")
    add("--plain", type=Path, default=_SHARED / "baseline" / "plain_ray.py", help="the plain program")
    data = Path(os.environ.get("THAW_SHARED_DATA") or _SHARED / "data")
    add("--data", type=Path, default=data, help="folder of both sets and weights/ (default: THAW_SHARED_DATA)")
    add("--sets", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--only", choices=["thaw", "plain"], help="run only this side; the other is taken from the results")
    add("--results", type=Path, help="file to which each finished half is added, one JSON line each")
    add("--resume", action="store_true", help="reuse the halves of --results that fit")
    add("--ablation", action="store_true", help="run Thaw with one part switched off at a time instead")
    add("--without", nargs="+", default=list(ABLATIONS), choices=list(ABLATIONS), help="the parts (default: all)")
    add("--model", default="mobilenet_v2", choices=list(WEIGHTS))
    add("--weights", type=Path, help="default: those of --data for the model")
    add("--px", type=int, default=128)
    add("--trials", type=int, default=16)
    add("--epochs", type=int, default=8)
    add("--batch-size", type=int, default=32)
    add("--fp32", action="store_true", help="both sides without bf16")
    add("--gpu", action="store_true", help="both sides on a GPU")
    add("--num-views", type=int, default=4, help="Thaw: random views of each picture (default %(default)s)")
    add("--concurrency", type=int, default=1, help="Thaw: trials side by side (default %(default)s, as plain)")
    add("--timeout-s", type=float, default=3600.0, help="longest time of one half")
    return options.parse_args()


def main() -> int:
    options = parse_options()
    options.plain, options.data = options.plain.resolve(), options.data.resolve()
    # Read once by neither side: the first to import a package finds it on disk, the second in memory.
    imports = "import torch, torchvision, ray.tune, ray.train.torch, optuna, mlflow, pyarrow, torchmetrics"
    subprocess.run([sys.executable, "-c", imports], check=True, capture_output=True)
    with tempfile.TemporaryDirectory(prefix="thaw-versus-images-") as folder:
        tasks = lay_out(options, Path(folder))
        bench = Bench(options, tasks)
        if options.ablation:
            return conclude("ablation", ablate(bench, options), is_met=True, check=False)
        pairs = []
        for name in options.sets:
            for seed in options.seeds:
                plain, thaw = bench.plain(name, seed), bench.thaw(name, seed)
                if plain is not None and thaw is not None:
                    pairs.append(compare(name, seed, plain, thaw, tasks[name].num_val))
    if not pairs:
        return 0
    show_pairs(pairs)
    summaries = summarise(pairs)
    is_met = all(each["is_met"] for each in summaries) and len(summaries) == len(options.sets)
    return conclude("versus_plain_ray", [*pairs, *summaries], is_met=is_met, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
