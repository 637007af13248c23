"""What each trial of a sweep will cost and may store, reckoned by the driver before it runs.

In: the spec, the space, what the backbone's stages compute and give, how many pictures there are, and what the trials
before have looked at. Out: FLOPs, and the cuts whose features a trial may store. Nothing here looks at a disk or a
clock, so a sweep that goes on after an interruption reckons as it did before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from search_spaces.costs import Cost, HeldCut, ViewCount, trial_flops
from search_spaces.expecting import (
    distinct_views,
    expected_trials,
    policy_name,
    shares_by_epoch,
    views_of,
)
from search_spaces.listing import trials_in_all
from search_spaces.search_spec import USUAL_NUM_TRIALS
from search_spaces.space import BACKBONE, Point, SearchSpace
from search_spaces.spec import SweepSpec
from search_spaces.storing import VALIDATION, StoragePlan, sweep_demands, what_to_store, worth_storing_now
from trainables.jobs import CutsToKeep
from trainables.training.sizes import thirds
from tuner.networks.material import Material

OVERHEAD_SHARE = 0.1
"""What a trial costs beside its FLOPs, as a share of what a whole trial computes on average over the depths."""
FLOPS_PER_BYTE: dict[Literal["cpu", "cuda"], float] = {"cpu": 200.0, "cuda": 10_000.0}
"""What a byte of the store costs, as FLOPs that the same machine could do meanwhile.

Measured on 2 cores: a byte is written, with its checksum, at 0.9 GB/s and verified once at 1.5 GB/s, which makes
1.8 ns; reading it again from the page cache, at 15 GB/s, adds little. Meanwhile resnet18 and mobilenet_v2 at 128 px
compute 30 to 280 GFLOP/s, so 100 GFLOP/s x 2 ns. A GPU computes some 50 times as fast and reads the same disk; that
factor is an assumption, not measured.
"""


class Looked(NamedTuple):
    """What a trial before has done: its point, and how many epochs of it."""

    point: Mapping[str, Any]
    epochs: int


@dataclass(frozen=True)
class DepthOutlook:
    """What `--dry-run` says of one freeze depth, under one policy.

    Attributes:
        depth: Stages that are frozen.
        gflops_alone: Of a whole trial that computes everything anew.
        gflops: With the store, nothing being there yet.
        gflops_again: With the store, when a trial of the same depth and policy ran before.
        bytes_per_picture: Of the features at this depth.
        train_bytes: Of one view of all training pictures.
        val_bytes: Of the validation pictures.
        stores: Which cuts such a trial stores, by side.
    """

    depth: int
    gflops_alone: float
    gflops: float
    gflops_again: float
    bytes_per_picture: int
    train_bytes: int
    val_bytes: int
    stores: CutsToKeep


class Pricing:
    """Reckons for one sweep.

    Args:
        spec: What is searched, with which budget.
        space: The same, as points.
        material: What stages compute and give; of several backbones by name.
        device: What lanes compute on.

    Attributes:
        num_trials: About how many trials the sweep will have.
        overhead_flops: What a trial costs beside FLOPs (its start, its checkpoints, the end of each epoch), as FLOPs.
    """

    def __init__(
        self,
        spec: SweepSpec,
        space: SearchSpace,
        material: Material | Mapping[str, Material],
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> None:
        self._space = space
        self._materials = {space.backbones[0]: material} if isinstance(material, Material) else dict(material)
        self._features, self._epochs = spec.features, spec.budget.trial_epochs
        # Which backbone will be searched most is not known yet: each may store as much as the others.
        self._budget_bytes = spec.cache.budget_gb * 1e9 / len(space.backbones)
        self._byte_price = FLOPS_PER_BYTE[device]
        stops = spec.early_stopping.scheduler == "asha"
        self._shares = shares_by_epoch(
            self._epochs, spec.grace_period, spec.early_stopping.reduction_factor if stops else None
        )
        self._mean_epochs = sum(self._shares)
        self._num_views = _most_storable(space.ends_of("num_views"))
        self._kept: dict[tuple[str, ViewCount, int, str], CutsToKeep] = {}
        share = 1.0 / len(space.backbones)
        self._expected = {name: expected_trials(space.alone(name), share) for name in space.backbones}
        self.num_trials = float(trials_in_all(spec, space) or self._trials_for(spec.budget.flops))
        self.overhead_flops = OVERHEAD_SHARE * self._mean_flops()

    def cost(self, point: Mapping[str, Any], before: Iterable[Looked] = ()) -> Cost:
        """What a whole trial at a point computes.

        Args:
            point: A point of the space; only its depth and its views count.
            before: Trials that have run in this sweep, the features of which are there. What earlier sweeps left in the
                store is not counted: it may be evicted at any time, and the same trials should come in every order.
        """
        if "num_views" not in point:  # a sampler may ask before it has drawn them
            point = {**point, "num_views": self._num_views}
        kept = self.cuts_to_keep(point)
        return self._cost(point, self._held_for(point, before), kept)

    def figures(self, point: Mapping[str, Any], before: Iterable[Looked]) -> dict[str, float]:
        """The prediction as the metrics that the journal and MLflow keep beside what was computed in the end."""
        cost = self.cost(point, before)
        return {"compute/predicted_gflops": cost.total / 1e9, "compute/predicted_fill_gflops": cost.fill_flops / 1e9}

    def price(self, point: Mapping[str, Any], before: Iterable[Looked] = ()) -> float:
        """What a search weighs a trial by: its FLOPs, and what every trial costs beside them, as FLOPs.

        Without the latter a trial of the head alone is as good as free, and a search that goes by the price runs
        hundreds of them.
        """
        return self.cost(point, before).total + self.overhead_flops

    def spent(self, trials: Sequence[Looked]) -> float:
        """About what trials have computed, one behind the other: of each one's prediction the share of its epochs."""
        return sum(
            self.cost(trial.point, trials[:number]).total * trial.epochs / self._epochs
            for number, trial in enumerate(trials)
        )

    def cuts_to_keep(self, point: Mapping[str, Any]) -> CutsToKeep:
        """The depths whose features a trial at a point may store, ascending, none deeper than its own.

        A trial's own cut counts as read by this trial and by those that are expected to share it. Validation pictures,
        which every trial looks at, are stored wherever that saves anything.
        """
        depth, policy = int(point["freeze_depth"]), policy_name(point)
        if depth == 0 or not self.is_storing:
            return {"train": (), "val": ()}
        views = views_of(point)
        key = (policy, views, depth, self._space.backbone_of(point))
        if key not in self._kept:
            plan = self._plan(point)
            train = self._worth_now(plan.depths[policy], point)
            val = _up_to(depth, plan.depths[VALIDATION])
            if self._features == "required":
                train, val = _with(depth, train), _with(depth, val)
            if views == "unlimited":
                train = ()
            self._kept[key] = {"train": train, "val": val}
        return self._kept[key]

    def affinity(self, point: Mapping[str, Any]) -> str | None:
        """Names what the trial reads from the store: trials of one name are best trained where the first one was."""
        if not any(self.cuts_to_keep(point).values()):
            return None
        name = f"{policy_name(point)}, depth {point['freeze_depth']}"
        return f"{self._space.backbone_of(point)}, {name}" if self._space.is_joint else name

    @property
    def is_storing(self) -> bool:
        """Whether features may be stored at all."""
        return self._features != "off"

    @property
    def has_several(self) -> bool:
        """Whether there are several backbones."""
        return self._space.is_joint

    @property
    def usual_policy(self) -> str:
        """The first declared policy that augments, or the one that does not where it is the only one."""
        policies = [str(policy) for policy in self._space.values_of("augmentation")]
        return next((policy for policy in policies if policy != "none"), policies[0])

    def outlook(self, backbone: str | None = None) -> tuple[DepthOutlook, ...]:
        """What each depth of a backbone costs and stores under `usual_policy`; None: of the only one."""
        name = backbone or self._space.backbone_of({})
        material = self._materials[name]
        rows: list[DepthOutlook] = []
        for depth in self._space.alone(name).depths:
            point = self._point(name, depth)
            num_bytes = material.feature_bytes[depth - 1] if depth else 0
            nothing: CutsToKeep = {"train": (), "val": ()}
            rows.append(
                DepthOutlook(
                    depth=depth,
                    gflops_alone=self._cost(point, (), nothing).total / 1e9,
                    gflops=self.cost(point).total / 1e9,
                    gflops_again=self.cost(point, [Looked(point, self._epochs)]).total / 1e9,
                    bytes_per_picture=num_bytes,
                    train_bytes=num_bytes * material.num_train,
                    val_bytes=num_bytes * material.num_val,
                    stores=self.cuts_to_keep(point),
                )
            )
        return tuple(rows)

    def _cost(self, point: Mapping[str, Any], held: Iterable[HeldCut], kept: CutsToKeep) -> Cost:
        material = self._materials[self._space.backbone_of(point)]
        # FLOPs go by the square of a picture's side.
        stages = thirds(float(point.get("start_size", 1.0)), self._epochs)
        mean_pixels = sum(num_epochs * share**2 for share, num_epochs in stages) / self._epochs
        return trial_flops(
            freeze_depth=int(point["freeze_depth"]),
            epochs=self._epochs,
            num_train=material.num_train * mean_pixels,
            num_val=material.num_val,
            num_views=views_of(point),
            stage_flops=material.stage_flops,
            head_flops=material.other_heads.get(str(point.get("head")), material.head_flops),
            held=tuple(held),
            kept=kept,
            train_passes=material.train_passes,
            val_passes=material.val_passes,
        )

    def _held_for(self, point: Mapping[str, Any], before: Iterable[Looked]) -> set[HeldCut]:
        """What the trials before have stored of the pictures that a trial at a point looks at."""
        held: dict[int | Literal["val"], set[int]] = {}
        policy, backbone = policy_name(point), self._space.backbone_of(point)
        for other, epochs in before:
            if not epochs or self._space.backbone_of(other) != backbone:
                continue
            stored, views = self.cuts_to_keep(other), views_of(other)
            held.setdefault("val", set()).update(stored["val"])
            if policy_name(other) != policy or views == "unlimited" or views_of(point) == "unlimited":
                continue
            for view in range(min(views, epochs)):
                cuts = held.setdefault(view, set())
                # A pass stores what lies on its way, and that begins at what is held.
                start = max((cut for cut in cuts if cut <= other["freeze_depth"]), default=0)
                cuts.update(cut for cut in stored["train"] if cut > start)
        return {(cut, view) for view, cuts in held.items() for cut in cuts}

    def _plan(self, point: Mapping[str, Any]) -> StoragePlan:
        """What is worth storing, given that a trial at this point comes."""
        policy, depth, backbone = policy_name(point), int(point["freeze_depth"]), self._space.backbone_of(point)
        material, trials = self._materials[backbone], self._others(backbone)
        # A policy that is no point's yet (its magnitude not drawn) has no companions.
        own = trials.setdefault(policy, {})
        own[depth] = own.get(depth, 0.0) + 1.0
        # A cut is mostly read by the trials of its own depth.
        views = {name: self._views_looked_at(name, max(by_depth.values())) for name, by_depth in trials.items()}
        *training, validation = sweep_demands(
            trials,
            num_views=views,
            epochs=self._mean_epochs,
            most_epochs=self._epochs,
            num_train=material.num_train,
            num_val=material.num_val,
            train_passes=material.train_passes,
            val_passes=material.val_passes,
        )
        sizes = (material.stage_flops, material.feature_bytes)
        first = what_to_store(*sizes, [validation], self._budget_bytes)
        rest = self._budget_bytes - first.num_bytes
        second = what_to_store(*sizes, training, rest, least_flops_per_byte=self._byte_price)
        return StoragePlan(
            depths={**second.depths, **first.depths},
            flops_saved=first.flops_saved + second.flops_saved,
            fill_flops=first.fill_flops + second.fill_flops,
            num_bytes=first.num_bytes + second.num_bytes,
            prefix_flops=first.prefix_flops + second.prefix_flops,
        )

    def _others(self, backbone: str) -> dict[str, dict[int, float]]:
        """Expected number of a backbone's trials beside the one that is asked about."""
        number = max(self.num_trials - 1.0, 0.0)
        return {
            name: {depth: number * share for depth, share in by_depth.items()}
            for name, by_depth in self._expected[backbone].items()
        }

    def _worth_now(self, planned: tuple[int, ...], point: Mapping[str, Any]) -> tuple[int, ...]:
        depth, backbone = int(point["freeze_depth"]), self._space.backbone_of(point)
        return worth_storing_now(
            _up_to(depth, planned),
            depth,
            self._materials[backbone].stage_flops,
            self._materials[backbone].feature_bytes,
            self._others(backbone).get(policy_name(point), {}),
            flops_per_byte=self._byte_price,
        )

    def _views_looked_at(self, policy: str, num_trials: float) -> float | Literal["unlimited"]:
        views = 1 if policy == "none" else self._num_views
        if not isinstance(views, int):
            return "unlimited"
        return distinct_views(self._shares, views, num_trials)

    def _trials_for(self, budget_flops: float | None) -> float:
        """About how many trials a budget of FLOPs pays for, each of the usual length, nothing being stored."""
        if budget_flops is None:  # seconds alone: how many FLOPs they are worth, nobody knows here
            return USUAL_NUM_TRIALS
        return max(1.0, budget_flops / (self._mean_flops() * self._mean_epochs / self._epochs))

    def _mean_flops(self) -> float:
        """Of a whole trial over the depths of each backbone, nothing being stored."""
        nothing: CutsToKeep = {"train": (), "val": ()}
        means = []
        for name in self._space.backbones:
            depths = self._space.alone(name).depths
            means.append(sum(self._cost(self._point(name, depth), (), nothing).total for depth in depths) / len(depths))
        return sum(means) / len(means)

    def _point(self, backbone: str, depth: int) -> Point:
        # One of RandAugment's magnitudes is as rare as another.
        magnitude = self._space.values_of("magnitude")[0]
        point: Point = {
            "freeze_depth": depth,
            "augmentation": self.usual_policy,
            "magnitude": magnitude,
            "num_views": self._num_views,
        }
        return {BACKBONE: backbone, **point} if self._space.is_joint else point


def _most_storable(choices: Iterable[Any]) -> ViewCount:
    """The largest number of views that a trial may have; view 3 of 8 is view 3 of 4, so the others' are among them."""
    numbers = [int(choice) for choice in choices if choice != "unlimited"]
    return max(numbers) if numbers else "unlimited"


def _up_to(depth: int, depths: Iterable[int]) -> tuple[int, ...]:
    return tuple(each for each in depths if each <= depth)


def _with(depth: int, depths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({*depths, depth}))
