"""What stored features were worth to a sweep: pictures, FLOPs and seconds that were not computed again.

In: the journal's trials, with what each epoch computed and read. Out: a `Reuse`, as metrics and as sentences. Pure,
but for `bytes_held`, which looks into the store's folder.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from trainables.config import FeatureSettings
from tuner.records.journal import TrialRecord

Epoch = Mapping[str, float]


@dataclass(frozen=True)
class Reuse:
    """The sum over a search.

    Attributes:
        images_read: Pictures whose frozen features were read; each epoch sees a picture once more.
        images_computed: Pictures that went through frozen layers.
        flops_saved: Of frozen layers, forward passes that were not made.
        seconds_saved: The same in seconds, over all lanes, see `seconds_per_flop`; None where nothing was computed to
            measure it by.
        rate_by_depth: Share of the pictures that were read, by number of frozen stages; empty where there were several
            backbones, whose depths have nothing in common.
        bytes_held: What the store has on this machine; None where there is none.
    """

    images_read: int
    images_computed: int
    flops_saved: float
    seconds_saved: float | None = None
    rate_by_depth: Mapping[int, float] = field(default_factory=dict)
    bytes_held: int | None = None

    @property
    def rate(self) -> float:
        """Share of the pictures that were read."""
        return self.images_read / max(1, self.images_read + self.images_computed)

    def metrics(self) -> dict[str, float]:
        """As MLflow keeps them with the sweep; what is not known is left out."""
        known = {
            "reuse/images_read": float(self.images_read),
            "reuse/images_computed": float(self.images_computed),
            "reuse/hit_rate": self.rate,
            "reuse/flops_saved": self.flops_saved,
        }
        if self.seconds_saved is not None:
            known["reuse/seconds_saved"] = self.seconds_saved
        if self.bytes_held is not None:
            known["reuse/bytes_held"] = float(self.bytes_held)
        return known | {f"reuse/hit_rate_depth_{depth:02d}": rate for depth, rate in self.rate_by_depth.items()}

    def sentences(self) -> list[str]:
        """For people; none where no layer was frozen."""
        num_images = self.images_read + self.images_computed
        if not num_images:
            return []
        saved = f"{self.flops_saved / 1e12:,.3g} TFLOPs"
        if self.seconds_saved is not None:
            saved = f"about {self.seconds_saved:,.0f} s and {saved}"
        read = f"{self.images_read:,} ({self.rate:.0%}) were read from the store"
        lines = [
            f"Frozen layers: of {num_images:,} pictures {read}, {self.images_computed:,} computed; that saved {saved}."
        ]
        if self.images_read and len(self.rate_by_depth) > 1:
            rates = ", ".join(f"depth {depth} {rate:.0%}" for depth, rate in self.rate_by_depth.items())
            lines.append(f"Read, by depth: {rates}.")
        if self.bytes_held is not None:
            lines.append(f"The store holds {self.bytes_held / 1e9:.3g} GB; thaw cache status lists them.")
        return lines


def reuse_of(trials: Sequence[TrialRecord], bytes_held: int | None = None) -> Reuse:
    """Sums what the trials' epochs say; trials without frozen layers have nothing to reuse."""
    read: dict[int, float] = defaultdict(float)
    all_: dict[int, float] = defaultdict(float)
    flops_saved = 0.0
    for trial in trials:
        depth = int(trial.params.get("freeze_depth") or 0)
        for epoch in trial.epochs if depth else ():
            read[depth] += epoch.get("compute/images_from_store", 0.0)
            all_[depth] += epoch.get("compute/images", 0.0)
            flops_saved += epoch.get("compute/flops_saved", 0.0)
    # An epoch that fills for others computes more than it needs itself: a sum over few of them can be below zero.
    images_read = max(0, round(sum(read.values())))
    flops_saved = max(0.0, flops_saved)
    price = seconds_per_flop(trials)
    depths = [] if any("backbone" in trial.params for trial in trials) else sorted(all_)
    return Reuse(
        images_read=images_read,
        images_computed=max(0, round(sum(all_.values())) - images_read),
        flops_saved=flops_saved,
        seconds_saved=None if price is None else flops_saved * price,
        rate_by_depth={depth: max(0.0, read[depth]) / all_[depth] for depth in depths if all_[depth]},
        bytes_held=bytes_held,
    )


def seconds_per_flop(trials: Sequence[TrialRecord]) -> float | None:
    """What a FLOP of frozen layers cost in this sweep; None where no two epochs tell.

    Two epochs of one trial that would do the same work without a store (not those before and after `start_size` lets
    pictures grow) differ only in how much of the frozen part was computed, so the difference of their seconds over that
    of their FLOPs is the price of what the store saves: forward passes, views and normalisation included. The FLOP rate
    of a whole epoch would not do: its backward passes are slower. The median over all such pairs, each weighted by its
    FLOPs (Sen 1968, weighted), so that an epoch in which a process warms up or a neighbour takes the cores does not
    decide.
    """
    slopes = sorted(pair for trial in trials for pair in _slopes(trial.epochs))
    half, passed = sum(weight for _, weight in slopes) / 2, 0.0
    for slope, weight in slopes:
        passed += weight
        if passed >= half:
            return max(0.0, slope)
    return None


def _slopes(epochs: Sequence[Epoch]) -> Iterator[tuple[float, float]]:
    """Seconds per FLOP of each pair of a trial's epochs, and the FLOPs between them."""
    points = [
        (epoch["compute/gflops"] * 1e9, epoch["compute/flops_saved"], epoch["time/train_s"] + epoch["time/val_s"])
        for epoch in epochs
        if {"compute/gflops", "compute/flops_saved", "time/train_s", "time/val_s"} <= epoch.keys()
    ]
    for (flops, saved, seconds), (other_flops, other_saved, other_seconds) in combinations(points, 2):
        if flops != other_flops and math.isclose(flops + saved, other_flops + other_saved, rel_tol=1e-6):
            yield (seconds - other_seconds) / (flops - other_flops), abs(flops - other_flops)


def bytes_held(settings: FeatureSettings | None) -> int | None:
    """What the store has on this machine's disk; None where features are not stored."""
    if settings is None:
        return None
    from trainables.features.inventory import list_entries
    from trainables.files.node_cache import features_root

    directory = features_root(settings.directory)
    return sum(entry.num_bytes for entry in list_entries(directory)) if directory.is_dir() else 0
