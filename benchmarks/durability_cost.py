"""What it costs that nothing is lost: journal, checkpoints and watchdog, as a share of a trial's time.

One trial per depth of a network, all in this process. In turns, an epoch is trained, and then kept as a lane and its
driver do it: the watchdog set, the last state written (and the weights, where they are the best so far), the journal's
record; a trial's end is one more record, forced to the disk, and one checkpoint forced there too. Depths count alike,
as in a search that draws them uniformly. At most 2% of all time is the bar.

    python benchmarks/durability_cost.py --check
    python benchmarks/durability_cost.py --precisions fp32 --check   # where bf16 is not what one would train with
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from loop_efficiency import Case, build_config, parse_options, prepare_data
from measuring import conclude, median, report, span

from trainables.backbones.zoo import load_backbone
from trainables.config import FeatureSettings
from trainables.files.storage import make_durable
from trainables.lanes.watchdog import Watchdog
from trainables.memory import keep_freed_memory
from trainables.ranks import Ranks
from trainables.training.checkpoint import save_checkpoint
from trainables.training.loop import TrialRun
from trainables.training.workbench import Workbench
from tuner.records.journal import Journal

BAR = 0.02
_EPOCHS_PER_TRIAL = 8


def measure(case: Case, run: TrialRun, folder: Path, journal: Journal, repeats: int) -> dict[str, Any]:
    """Seconds of an epoch, and of what keeps it, in turns."""
    watchdog = Watchdog(1800.0)
    run._bench.beat = watchdog.beat
    run.run_epoch()
    bare, kept = [], []
    for turn in range(repeats):
        started = time.perf_counter()
        metrics = run.run_epoch()
        bare.append(time.perf_counter() - started)
        started = time.perf_counter()
        with watchdog.watching(lambda _: None):
            pass
        if turn % 2 == 0:  # about every other epoch is the best so far
            save_checkpoint(str(folder / "best.ckpt"), run.checkpoint(weights_only=True))
        save_checkpoint(str(folder / "last.ckpt"), run.checkpoint({"history": [{"metrics": metrics}] * turn}))
        journal.append("epoch", number=0, epoch=turn + 1, metrics=metrics)
        kept.append(time.perf_counter() - started)
    started = time.perf_counter()
    make_durable(str(folder / "best.ckpt"))
    journal.append("end", number=0, outcome="completed", metrics=metrics)
    end_s = time.perf_counter() - started
    shares = [cost / (cost + epoch) for cost, epoch in zip(kept, bare, strict=True)]
    return {
        **case._asdict(),
        "epoch_s": round(median(bare), 4),
        "kept_s": round(median(kept), 4),
        "end_s": round(end_s, 4),
        "share": round(median(shares), 4),
        "shares": [round(share, 4) for share in shares],
    }


def main() -> int:
    options = parse_options(__doc__, repeats=6, num_pictures=640, precisions=("bf16",))
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if len(options.precisions) > 1:
        sys.exit("durability_cost: --precisions takes one here, the one that a sweep would train with")
    (precision,) = options.precisions
    rows = []
    with tempfile.TemporaryDirectory(prefix="thaw-durability-") as name:
        folder = Path(name)
        data = prepare_data(options, folder)
        features = FeatureSettings(directory=str(folder / "features"))
        with Journal.open(folder / "journal.jsonl") as journal:
            for backbone in options.backbones:
                graph = load_backbone(backbone, None, num_classes=2, input_size_px=options.px, seed=0).graph
                for depth in range(graph.num_stages + 1):
                    case = Case(backbone, precision, depth, graph.num_stages)
                    config = build_config(case, data, None, options, num_views=1)
                    run = TrialRun(config, Workbench(features=features), Ranks(options.device))
                    rows.append(measure(case, run, _made(folder / f"{backbone}-{depth}"), journal, options.repeats))
                    run.close()
    cost = sum(_EPOCHS_PER_TRIAL * row["kept_s"] + row["end_s"] for row in rows)
    total = cost + sum(_EPOCHS_PER_TRIAL * row["epoch_s"] for row in rows)
    report(
        f"Seconds of an epoch and of keeping it, {options.px} px, {precision}, {options.threads} threads",
        ["", "epoch", "kept", "end of trial", "share"],
        [
            [
                f"{row['backbone']}, {row['depth']} of {row['num_stages']} stages frozen",
                f"{row['epoch_s']:.3f}",
                f"{row['kept_s']:.4f}",
                f"{row['end_s']:.4f}",
                f"{row['share']:.1%} ({span([100 * share for share in row['shares']], 1)})",
            ]
            for row in rows
        ],
        [f"all together: {cost / total:.2%} of the time, at most {BAR:.0%}"],
    )
    cases = [*rows, {"backbone": "all", "share": round(cost / total, 4)}]
    return conclude("durability_cost", cases, is_met=cost / total <= BAR, check=options.check)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
