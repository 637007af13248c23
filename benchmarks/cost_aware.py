"""What a price in the acquisition is worth: ``search.cost_aware`` beside plain TPE, by validation loss per FLOP spent.

Real sweeps of the digits preset (a LeNet pretrained on the digits 0-4, transferred to 5-9), every depth of freezing
searched, both sides with the same seed and the same budget of FLOPs, each with a feature store of its own that is empty
at first. Both begin with the same startup trials, because TPE proposes nothing before it has seen ten. The searches go
by validation loss: on so small a set the best accuracy is reached by chance, and early. Compared are

* the best validation loss so far, averaged over the budget (the area under its curve), and at the end;
* the FLOPs until the loss that plain TPE ends with is reached: above 1 times less, the price pays.

    python benchmarks/cost_aware.py --check
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import conclude, median, parser, report, span

from search_spaces.loading import load_spec
from search_spaces.space import SearchSpace
from search_spaces.spec import SweepSpec
from tuner.cluster.ray_cluster import import_torch, start_ray
from tuner.networks.material import Material
from tuner.networks.preparing import build_cuts
from tuner.networks.pricing import Pricing
from tuner.paths import HomePaths
from tuner.pictures.dealing import prepare_data
from tuner.records.journal import read_records
from tuner.sweep import run_sweep

BAR = 1.0
"""Median over the seeds: no more FLOPs than plain TPE to its own best loss."""
_METRIC = "val/loss"
_OF_CHANCE = math.log(5)
"""The loss of saying nothing about the preset's five classes."""

Curve = list[tuple[float, float]]
"""FLOPs spent by then, and the best validation loss so far, after each epoch of the search."""


def spec_for(seed: int, flops: float, is_cost_aware: bool, folder: Path) -> SweepSpec:
    """The digits preset, bounded by FLOPs alone."""
    name = f"{'priced' if is_cost_aware else 'plain'}-{seed}"
    overrides = {
        "name": name,
        "seed": seed,
        "metric": _METRIC,
        "search.num_trials": "auto",
        "search.cost_aware": str(is_cost_aware).lower(),
        "budget.flops": f"{flops:.6e}",
        "cache.directory": str(folder / f"features-{name}"),
        "baselines": "[]",
    }
    return load_spec("digits", [f"{path}={value}" for path, value in overrides.items()])


def whole_flops(spec: SweepSpec, home: HomePaths) -> float:
    """What a whole trial computes in which everything is trained."""
    data = prepare_data(spec.data, home, lambda *_: None)
    cuts = build_cuts(spec.model.backbone, len(data.config.class_names), spec.data.image_size_px)
    material = Material.of(cuts, data, spec.compute.prefix_precision, spec.search.repeats)
    rates = Pricing(spec, SearchSpace(spec.search, cuts.num_stages), material)
    return 1e9 * max(outlook.gflops_alone for outlook in rates.outlook())


def curve_of(spec: SweepSpec, home: HomePaths) -> Curve:
    """From the journal of a finished sweep."""
    spent, best = 0.0, _OF_CHANCE
    curve: Curve = []
    for record in read_records(home.sweep(spec.name).journal):
        if record["event"] == "epoch":
            spent += 1e9 * record["metrics"]["compute/gflops"]
            best = min(best, record["metrics"].get(_METRIC) or _OF_CHANCE)
            curve.append((spent, best))
    return curve


def area(curve: Curve, budget: float) -> float:
    """The mean over the budget of the best loss so far, that of chance before the first epoch's end."""
    total, last, best = 0.0, 0.0, _OF_CHANCE
    for spent, reached in curve:
        total += best * (min(spent, budget) - last)
        last, best = min(spent, budget), reached
    return (total + best * (budget - last)) / budget


def flops_to(curve: Curve, loss: float, budget: float) -> float | None:
    """FLOPs until a loss is reached; None where it is not, within the budget."""
    return next((spent for spent, best in curve if best <= loss and spent <= budget), None)


def best_within(curve: Curve, budget: float) -> float:
    """The best loss when the budget is spent."""
    return min((best for spent, best in curve if spent <= budget), default=_OF_CHANCE)


def measure(seed: int, flops: float, folder: Path, home: HomePaths) -> dict[str, Any]:
    """Both sides of one seed."""
    curves: dict[str, Curve] = {}
    for name, is_cost_aware in (("plain", False), ("priced", True)):
        spec = spec_for(seed, flops, is_cost_aware, folder)
        run_sweep(spec, home=home)
        curves[name] = curve_of(spec, home)
    target = best_within(curves["plain"], flops)
    reached = {name: flops_to(curve, target, flops) for name, curve in curves.items()}
    plain, priced = reached["plain"], reached["priced"]
    return {
        "seed": seed,
        "epochs": {name: len(curve) for name, curve in curves.items()},
        "best": {name: round(best_within(curve, flops), 4) for name, curve in curves.items()},
        "area": {name: round(area(curve, flops), 4) for name, curve in curves.items()},
        "gflop_to_plain_best": {
            name: None if value is None else round(value / 1e9, 3) for name, value in reached.items()
        },
        # Not reached within the budget: at least the whole of it was needed.
        "times_less": round((plain or flops) / (priced or flops), 2),
        "is_reached": priced is not None,
    }


def parse_options() -> argparse.Namespace:
    options = parser(__doc__, repeats=5)  # one seed each
    options.add_argument(
        "--whole-trials", type=float, default=12.0, help="the budget, in whole trials of full fine-tuning (default 12)"
    )
    return options.parse_args()


def main() -> int:
    options = parse_options()
    import_torch()
    start_ray()  # here, so that the sweeps join it and do not end it
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as name:
        folder = Path(name)
        home = HomePaths.at(folder / "home")
        flops = options.whole_trials * whole_flops(spec_for(0, 1.0, False, folder), home)
        results += [measure(seed, flops, folder, home) for seed in range(options.repeats)]
    rows = [
        [
            str(result["seed"]),
            *(f"{result[kind][side]:.4f}" for kind in ("best", "area") for side in ("plain", "priced")),
            f"{result['times_less']:.2f}" + ("" if result["is_reached"] else " (not reached)"),
        ]
        for result in results
    ]
    ratios = [result["times_less"] for result in results]
    gains = [result["area"]["plain"] - result["area"]["priced"] for result in results]
    rows.append(["all: median (range)", "", "", "", f"{-median(gains):+.4f}", span(ratios)])
    columns = ["seed", "best, plain", "best, cost aware", "mean, plain", "mean, cost aware", "times less FLOPs"]
    report(
        f"Cost-aware search beside plain TPE, {flops / 1e9:.1f} GFLOP each",
        columns,
        rows,
        [f"mean: of the best loss so far, over the budget; times less: to plain TPE's best; bar {BAR:g}"],
    )
    return conclude("cost_aware", results, is_met=median(ratios) >= BAR, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
