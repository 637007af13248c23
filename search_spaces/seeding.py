"""The first trials of a search, from what a linear probe says of each depth.

In: the space, and the probe's accuracy by depth. Out: points, the cheapest first. Pure: whoever goes on with a sweep
gets the same points from the same probe.

A probe on cut d tells what a head on frozen stages 1 to d could reach; it cannot tell how much training the rest would
add. So it does not replace common advice (only the head, the middle, everything): it adds a staircase from the depth
where frozen features are best by its shallower neighbours down to a third of the stages. Their heads start from the
probe, so they may learn faster than common advice has it, and they see pictures as they are, whose features the probe
has stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search_spaces.advice import COMMON_LR, common_point, distinct_points, in_turns, rules_of_thumb
from search_spaces.search_spec import SearchSpec
from search_spaces.space import Point, SearchSpace

_NEIGHBOURS = 2
"""Shallower depths that are tried beside the best one."""
_SHARE_OF_BEST, _SHARE_OF_FEW, _FEW_OTHERS = 4, 2, 2
"""First points of the backbone that promises most, of each other one, and how many others are too many for that."""


@dataclass(frozen=True)
class ProbedDepth:
    """What a probe found at one depth.

    Attributes:
        depth: Stages that are frozen, from 1.
        accuracy: Share of pictures told right that the probe had not seen.
        num_judged: Number of those pictures.
        log_me: Log evidence per picture and class, by which backbones are compared; NaN where it is not known.
    """

    depth: int
    accuracy: float
    num_judged: int
    log_me: float = math.nan


def should_probe(
    search: SearchSpec, space: SearchSpace, *, is_pretrained: bool, are_backbones_compared: bool = False
) -> bool:
    """Whether the search begins with a probe of a backbone: see `SearchSpec.probe`."""
    if search.probe != "auto":
        return search.probe == "on"
    return is_pretrained and (len(space.depths) > 1 or are_backbones_compared) and search.sampler != "grid"


def best_depth(probes: Sequence[ProbedDepth]) -> int:
    """The deepest, so the cheapest, of the depths that are as good as the best within its standard error.

    Raises:
        ValueError: There are no probes.
    """
    best = max(probes, key=lambda probe: probe.accuracy)
    error = math.sqrt(best.accuracy * (1 - best.accuracy) / max(1, best.num_judged))
    return max(probe.depth for probe in probes if probe.accuracy >= best.accuracy - error)


def first_points(space: SearchSpace, probes: Sequence[ProbedDepth], num_trials: int | None) -> list[Point]:
    """Searched fields of the points to begin with; without a probe the rules of thumb as they are.

    With it, the rules of thumb and the best depth count most, the other steps of the staircase are added as far as
    there are trials; they run from the deepest, which costs next to nothing, to the shallowest. All heads start from
    the probe where the space has that (see `advice.common_point`).

    Args:
        space: What may vary.
        probes: By depth, in any order.
        num_trials: Of the whole search; None: as many as it takes.
    """
    allowed = [probe for probe in probes if probe.depth in space.depths]
    if not allowed:
        return rules_of_thumb(space)
    best = best_depth(allowed)
    middle = space.num_stages // 2
    rules = rules_of_thumb(space, augmentation="none")
    depths = [best, middle, *(best - step for step in range(1, _NEIGHBOURS + 1))]
    stairs = [
        common_point(space, depth=depth, lr=2 * COMMON_LR, ratio=0.3, augmentation="none")
        for depth in depths
        if depth < space.num_stages
    ]
    if (third := space.num_stages // 3) < middle:
        # So much learns here that one common rate for all of it is enough.
        stairs.append(common_point(space, depth=third, lr=COMMON_LR, ratio=1.0, augmentation="none"))
    return sorted(distinct_points([*rules, *stairs])[:num_trials], key=_price_rank)


def rank_probed(probes: Mapping[str, Sequence[ProbedDepth]]) -> list[str]:
    """Backbones by what their frozen features tell of the classes, the best first, as ``thaw rank`` has them.

    Each counts by the LogME of its best depth. One without probes comes last; of equal ones the first.
    """

    def evidence(name: str) -> float:
        depths = probes[name]
        log_me = next(probe.log_me for probe in depths if probe.depth == best_depth(depths)) if depths else math.nan
        return -math.inf if math.isnan(log_me) else log_me

    return sorted(probes, key=lambda name: -evidence(name))


def first_points_of_all(
    space: SearchSpace, probes: Mapping[str, Sequence[ProbedDepth]], num_trials: int | None
) -> list[Point]:
    """Searched fields of the points to begin with, where there are several backbones and some were probed.

    The backbone whose features tell most gets its best depth, only the head, half and everything; each of the others
    the first two of these, or where there are more of them the first, so that no backbone is given up unseen.

    Args:
        space: What may vary.
        probes: Of each backbone by name, by depth; none of one that was not probed.
        num_trials: Of the whole search; None: as many as it takes.
    """
    best, *others = rank_probed(probes)
    share = _SHARE_OF_FEW if len(others) < _FEW_OTHERS else 1
    turns = [space.named(best, _foremost(space.alone(best), probes[best])[:_SHARE_OF_BEST])]
    turns += [space.named(name, _foremost(space.alone(name), probes[name])[:share]) for name in others]
    return in_turns(turns)[:num_trials]


def _foremost(space: SearchSpace, probes: Sequence[ProbedDepth]) -> list[Point]:
    """What `first_points` has of one backbone, by what tells most of it: one point of each depth before a second one.

    The best depth comes first, then common advice (only the head, half, everything), then the rest.
    """
    allowed = [probe for probe in probes if probe.depth in space.depths]
    if not allowed:
        return rules_of_thumb(space)
    best = best_depth(allowed)
    by_depth: dict[int, list[Point]] = {depth: [] for depth in (best, space.num_stages, space.num_stages // 2, 0)}
    for point in first_points(space, probes, None):
        by_depth.setdefault(int(point.get("freeze_depth", best) or 0), []).append(point)
    return in_turns(list(by_depth.values()))


def _price_rank(point: Point) -> tuple[int, bool]:
    """Sorts the deepest first, and of equal depths the one whose frozen part sees one view of each picture."""
    return -int(point.get("freeze_depth") or 0), point.get("augmentation") != "none"
