"""What a sweep is expected to do before anything is known: how many trials where, how long they run, what they look at.

In: the declared space, the number of trials, the rule of early stopping. Out: expected numbers, on which it is decided
what is worth storing. Every value of a field counts as equally likely: a searcher that learns moves away from that, but
towards what, nobody knows yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.costs import ViewCount
from search_spaces.space import SearchSpace
from trainables.config import POLICIES_WITH_MAGNITUDE

_NONE = "none"


def policy_name(point: Mapping[str, Any]) -> str:
    """Names the family of views that a point looks at: trials of one name can share stored features.

    Where a magnitude counts, each draws other views and is a family of its own.
    """
    policy = str(point["augmentation"])
    return f"{policy} {point.get('magnitude')}" if policy in POLICIES_WITH_MAGNITUDE else policy


def views_of(point: Mapping[str, Any]) -> ViewCount:
    """How many distinct views a point has that may be stored; without augmentation there is one.

    Pictures that grow are other ones in each third of the epochs: storing them would not pay.
    """
    if point.get("start_size", 1.0) < 1:
        return "unlimited"
    views: ViewCount = 1 if point["augmentation"] == _NONE else point.get("num_views", "unlimited")
    return views


def shares_by_epoch(epochs: int, grace_period: int, reduction_factor: float | None) -> tuple[float, ...]:
    """About which share of the trials runs epoch 1, epoch 2, and so on.

    Args:
        epochs: Of a whole trial.
        grace_period: Epochs that every trial gets.
        reduction_factor: Behind each rung of successive halving (`grace_period` times its powers) one trial in this
            many goes on; None where nothing is stopped.
    """
    shares: list[float] = []
    share, rung = 1.0, float(grace_period)
    for epoch in range(epochs):
        if reduction_factor is not None and epoch >= rung:
            share /= reduction_factor
            rung *= reduction_factor
        shares.append(share)
    return tuple(shares)


def distinct_views(shares: Sequence[float], num_views: ViewCount, num_trials: float) -> float:
    """How many distinct views at least one of some trials looks at; epoch e looks at view e modulo `num_views`.

    Args:
        shares: See `shares_by_epoch`.
        num_views: Of the policy.
        num_trials: That share the views; below 1 it counts as one, because what no trial needs is not stored.
    """
    seen = shares if num_views == "unlimited" else shares[:num_views]
    return sum(1.0 - (1.0 - share) ** max(num_trials, 1.0) for share in seen)


def expected_trials(space: SearchSpace, num_trials: float) -> dict[str, dict[int, float]]:
    """Expected number of trials by policy (see `policy_name`) and freeze depth, all values being equally likely."""
    policies = space.values_of("augmentation")
    each = num_trials * _share_at_full_size(space) / (len(space.depths) * len(policies))
    expected: dict[str, dict[int, float]] = {}
    for policy in policies:
        magnitudes = space.values_of("magnitude") if policy in POLICIES_WITH_MAGNITUDE else (None,)
        for magnitude in magnitudes:
            name = policy_name({"augmentation": policy, "magnitude": magnitude})
            expected[name] = dict.fromkeys(space.depths, each / len(magnitudes))
    return expected


def _share_at_full_size(space: SearchSpace) -> float:
    """About which share of the trials looks at pictures of one size only, which may be stored."""
    sizes = space.dimension("start_size").choices
    return (sizes.count(1.0) / len(sizes)) if sizes else 0.0
