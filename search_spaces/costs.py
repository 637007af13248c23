"""What a trial costs, before it runs; which waiting trial goes first; what a proposal is worth for its price.

In: FLOPs of a backbone's stages and what a trial would do with them. Out: FLOPs, orders, choices. Nothing is trained or
looked up here, and neither torch nor Optuna is imported. What is worth storing is the matter of `storing`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from trainables.errors import InputError

ViewCount = int | Literal["unlimited"]
HeldCut = tuple[int, int | Literal["val"]]
"""A stored cut: its depth, and the number of the training view or 'val' for the validation pictures."""

Kept = Mapping[Literal["train", "val"], Collection[int]]
"""The depths at which a trial stores what it has computed, by side; see `trainables.jobs.TrainJob.cuts_to_keep`."""

# The gradient of a layer takes one pass for its input and one for its weights.
_TRAINED_PASSES = 3


@dataclass(frozen=True)
class Cost:
    """FLOPs of one trial.

    Attributes:
        tail_flops: Of the trained part: forward and backward on training pictures, forward on validation pictures.
        fill_flops: Of the frozen part, for features that are not held.
    """

    tail_flops: float
    fill_flops: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.tail_flops + self.fill_flops


def trial_flops(
    *,
    freeze_depth: int,
    epochs: int,
    num_train: float,
    num_val: int,
    num_views: ViewCount,
    stage_flops: Sequence[float],
    head_flops: float,
    held: Collection[HeldCut] = (),
    kept: Kept | None = None,
    train_passes: float = 1.0,
    val_passes: float = 1.0,
) -> Cost:
    """Predicts what a trial of all its epochs computes.

    Args:
        freeze_depth: Leading stages that are frozen.
        epochs: Epochs of the trial, with a look at the validation pictures behind each.
        num_train: Training pictures; one at half the pixels counts half.
        num_val: Validation pictures.
        num_views: Epoch e trains on view e modulo this; 1 for the policy without augmentation.
        stage_flops: Forward FLOPs of each stage, for one picture.
        head_flops: Of the head.
        held: Cuts in the store, under the trial's policy. One below the trial's saves the stages in front of it.
        kept: Depths whose features are there in later epochs, once an epoch has computed them; what lies between the
            deepest of them and the trial's own depth is computed in each epoch anew. None: the trial's own depth.
        train_passes: How often an epoch learns from each training picture: with k folds and r seeds, (k - 1) r times.
        val_passes: How often it is judged on each validation picture: r times.

    Raises:
        InputError: There is no such depth, or a count is below its least.
    """
    check_depth(freeze_depth, len(stage_flops))
    if epochs < 0 or min(num_train, num_val) < 0 or (num_views != "unlimited" and num_views < 1):
        raise InputError(f"trial: {epochs=}, {num_train=}, {num_val=}, {num_views=}; give counts")
    tail = sum(stage_flops[freeze_depth:]) + head_flops
    depths = [0, *accumulate(stage_flops)]

    kept = {"train": (freeze_depth,), "val": (freeze_depth,)} if kept is None else kept

    def missing(view: int | Literal["val"], uses: float, kept_depths: Collection[int]) -> float:
        first = max((depth for depth, name in held if name == view and depth <= freeze_depth), default=0)
        later = max((depth for depth in kept_depths if depth <= freeze_depth), default=0)
        whole = depths[freeze_depth]
        return min(uses, 1) * (whole - depths[first]) + max(uses - 1, 0) * (whole - depths[max(first, later)])

    views = _uses_of_views(num_views, epochs)
    fill = num_val * missing("val", epochs * val_passes, kept["val"])
    fill += num_train * sum(missing(view, uses * train_passes, kept["train"]) for view, uses in views)
    looks = _TRAINED_PASSES * num_train * train_passes + num_val * val_passes
    return Cost(epochs * tail * looks, fill)


def check_depth(depth: int, num_stages: int) -> None:
    """Checks a depth.

    Raises:
        InputError: There is no such depth.
    """
    if not 0 <= depth <= num_stages:
        raise InputError(f"freeze_depth: {depth} is outside 0 to {num_stages}, the number of stages")


def cheapest_first(costs: Sequence[Cost]) -> tuple[int, ...]:
    """Positions of waiting trials by their total, of equal ones the first.

    A trial whose features are held has nothing to fill, so it comes before its like.
    """
    return tuple(sorted(range(len(costs)), key=lambda place: costs[place].total))


def best_for_its_price(
    log_density_ratios: Sequence[float], costs: Sequence[float], *, price_weight: float, gamma: float = 0.1
) -> int:
    """The position of the candidate with the most expected improvement per ``cost ** price_weight``.

    Expected improvement per second is Snoek et al. 2012 (arXiv 1206.2944, section 3.2); the exponent is Lee et al.
    2020 (arXiv 2003.10870). TPE knows improvement up to a factor, as 1 / (gamma + (1 - gamma) g / l): Bergstra et al.
    2011, section 4.1; unlike the ratio of densities itself it is bounded, so a price can outweigh it. Of equal
    candidates the first is taken; with weight 0 it is TPE's own choice, except that ratios too large to tell apart are
    equal.

    Args:
        log_density_ratios: log l(x) - log g(x) of each candidate, l the density of good trials, g of the others.
        costs: What each would cost, in any unit; above 0.
        price_weight: 0 ignores the price, 1 is improvement per FLOP.
        gamma: Share of the trials that count as good.

    Raises:
        ValueError: There is no candidate, as many costs are not given, or a cost is not above 0.
    """
    if not log_density_ratios or len(costs) != len(log_density_ratios) or min(costs) <= 0:
        raise ValueError(f"{len(log_density_ratios)} candidates, costs {list(costs)}; give each a cost above 0")
    worths = [
        _log_improvement(ratio, gamma) - price_weight * math.log(cost)
        for ratio, cost in zip(log_density_ratios, costs, strict=True)
    ]
    return max(range(len(worths)), key=lambda place: worths[place])


def cooled_price_weight(spent: float, budget: float) -> float:
    """How much the price counts when so much of the budget is spent: 1 at first, 0 at the end.

    Cost cooling, Lee et al. 2020 (arXiv 2003.10870): cheap trials first, and no good one forgone for ever.
    The unit (FLOPs, seconds, trials) is the caller's.

    Raises:
        ValueError: The budget is not above 0.
    """
    if not budget > 0:
        raise ValueError(f"budget {budget} is not above 0")
    return min(max(1.0 - spent / budget, 0.0), 1.0)


def _log_improvement(log_ratio: float, gamma: float) -> float:
    """Logarithm of 1 / (gamma + (1 - gamma) exp(-log_ratio)), without overflow."""
    first, second = math.log(gamma), math.log1p(-gamma) - log_ratio
    high, low = max(first, second), min(first, second)
    return -(high + math.log1p(math.exp(low - high))) if math.isfinite(high) else -high


def _uses_of_views(num_views: ViewCount, epochs: int) -> Iterator[tuple[int, int]]:
    """Each view that is looked at, and how many epochs look at it."""
    distinct = epochs if num_views == "unlimited" else min(num_views, epochs)
    return ((view, len(range(view, epochs, distinct))) for view in range(distinct))
