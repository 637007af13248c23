"""What stored features are worth: epoch time from pictures and from the store, at every depth, beside what FLOPs say.

Two trials of the same configuration in one process, both warm (views in memory, the store filled), epoch by epoch in
turns: one computes the frozen part each time, one reads it. An epoch is training and validation. The prediction is the
ratio of the FLOPs that the two count themselves, (prefix + 3 x tail) against 3 x tail for a picture that is trained on,
prefix + tail against tail for one of the validation side: a backward pass counts as two forward ones.

Where only the head learns, FLOPs predict a ratio of thousands, and what is left is the cost of a step at all: there the
bar is a number.

    python benchmarks/feature_reuse.py --check
    python benchmarks/feature_reuse.py --images DIR --weights mobilenet_v2=FILE --precisions bf16
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from loop_efficiency import CALM, MOST_TRIES, parse_options, prepare_data
from measuring import Disturbance, conclude, median, report

from trainables.backbones.weights import resolve_weights
from trainables.backbones.zoo import load_backbone
from trainables.config import (
    AugmentationConfig,
    BackboneConfig,
    ComputeConfig,
    DataConfig,
    FeatureSettings,
    OptimizerConfig,
    Precision,
    TrialConfig,
    WeightsFile,
)
from trainables.ranks import Ranks
from trainables.training.loop import TrialRun
from trainables.training.workbench import Workbench

BAR = 0.8
HEAD_ONLY_BAR = 50.0
# An epoch on stored features may take milliseconds; a turn lasts at least this long and counts the mean.
LEAST_S = 0.5


def build_config(
    backbone: str,
    depth: int,
    precision: Precision,
    data: DataConfig,
    weights: WeightsFile | None,
    options: argparse.Namespace,
) -> TrialConfig:
    return TrialConfig(
        data=data,
        backbone=BackboneConfig(name=backbone, weights=weights),
        freeze_depth=depth,
        augmentation=AugmentationConfig(policy="flip_crop", num_views=1),
        optimizer=OptimizerConfig(lr=1e-4),
        batch_size=options.batch_size,
        epochs=1_000_000,  # never reached: turns go on until they are long enough
        compute=ComputeConfig(precision=precision, prefix_precision=precision),
    )


def epoch_s(trial: TrialRun) -> tuple[float, dict[str, float]]:
    """Seconds of one epoch, the mean over as many as make a turn, and the last one's metrics."""
    seconds, count = 0.0, 0
    metrics: dict[str, float] = {}
    while seconds < LEAST_S:
        metrics = trial.run_epoch()
        seconds += metrics["time/train_s"] + metrics["time/val_s"]
        count += 1
    return seconds / count, metrics


def measure(
    config: TrialConfig, benches: tuple[Workbench, Workbench], repeats: int, device: torch.device
) -> dict[str, Any]:
    """One depth: both trials in turns, of which the calmest count."""
    turns: list[tuple[float, float, float]] = []
    with (
        closing(TrialRun(config, benches[0], Ranks(device))) as computed,
        closing(TrialRun(config, benches[1], Ranks(device))) as stored,
    ):
        computed.run_epoch()
        stored.run_epoch()  # fills the store
        while sum(turn[0] < CALM for turn in turns) < repeats and len(turns) < MOST_TRIES * repeats:
            with Disturbance() as others:
                images_s, images = epoch_s(computed)
                store_s, store = epoch_s(stored)
            turns.append((others.share, images_s, store_s))
    if store["compute/images_from_store"] != store["compute/images"]:
        raise SystemExit(f"depth {config.freeze_depth}: not everything was read from the store: {store}")
    calmest = sorted(turns)[:repeats]
    return {
        "backbone": config.backbone.name,
        "precision": config.compute.precision,
        "depth": config.freeze_depth,
        "images_s": median([turn[1] for turn in calmest]),
        "store_s": median([turn[2] for turn in calmest]),
        "ratio": median([turn[1] / turn[2] for turn in calmest]),
        "flops_ratio": images["compute/gflops"] / store["compute/gflops"],
        "disturbance": round(max(turn[0] for turn in calmest), 3),
    }


def measure_backbone(
    name: str, precision: Precision, data: DataConfig, options: argparse.Namespace, folder: Path
) -> list[dict[str, Any]]:
    """Every depth of one network."""
    named = dict(text.split("=", 1) for text in options.weights)
    weights = resolve_weights(named.get(name, "none"), name, str(folder / "weights"))
    graph = load_backbone(name, None, num_classes=2, input_size_px=options.px, seed=0).graph
    # One store for all depths, as in a sweep.
    benches = (Workbench(), Workbench(features=FeatureSettings(directory=str(folder / f"features-{precision}"))))
    cases = []
    for depth in range(1, graph.num_stages + 1):
        config = build_config(name, depth, precision, data, weights, options)
        case = measure(config, benches, options.repeats, options.device)
        is_head_only = depth == graph.num_stages
        bar = HEAD_ONLY_BAR if is_head_only else BAR * case["flops_ratio"]
        cases.append({**case, "is_head_only": is_head_only, "is_met": case["ratio"] >= bar})
    return cases


def main() -> int:
    options = parse_options(__doc__, repeats=3, num_pictures=192)
    torch.set_num_threads(options.threads)
    cases = []
    with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as name:
        data = prepare_data(options, Path(name))
        for backbone in options.backbones:
            for precision in options.precisions:
                cases += measure_backbone(backbone, precision, data, options, Path(name))
    rows = [
        [
            f"{case['backbone']} {case['precision']}, {case['depth']} frozen"
            + (" (head only)" if case["is_head_only"] else ""),
            f"{1000 * case['images_s']:.0f}",
            f"{1000 * case['store_s']:.1f}",
            f"{case['ratio']:.2f}",
            f"{case['flops_ratio']:.2f}",
            "" if case["is_head_only"] else f"{case['ratio'] / case['flops_ratio']:.2f}",
            "yes" if case["is_met"] else "NO",
            f"{case['disturbance']:.0%}",
        ]
        for case in cases
    ]
    report(
        f"Epochs, {options.px} px, batch {options.batch_size}, {options.threads} threads",
        ["", "ms from images", "ms from store", "ratio", "by FLOPs", "of that", "bar met", "taken by others"],
        rows,
        [f"bars: {BAR} of the ratio by FLOPs; {HEAD_ONLY_BAR:.0f} where only the head learns"],
    )
    return conclude("feature_reuse", cases, is_met=all(case["is_met"] for case in cases), check=options.check)


if __name__ == "__main__":
    sys.exit(main())
