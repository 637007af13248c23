"""Which cuts' features are worth their bytes in the coming sweep.

In: FLOPs and feature bytes of a backbone's stages, the trials that are expected, what is held already, and a budget.
Out: the cuts to store for each policy, and what that should save. Pure arithmetic; who computes and keeps the features
is the feature store.

A trial that freezes depth d needs the features of cut d for every picture in every epoch. Where the cut is stored, that
is a read; else they are computed from the deepest stored cut in front of it, each time anew. To fill several cuts, one
pass through the network suffices, so a cut costs what lies between it and the stored cut before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Literal

from search_spaces.costs import check_depth
from trainables.errors import InputError

VALIDATION = "val"


@dataclass(frozen=True)
class Demand:
    """What a sweep is expected to read under one name: a policy's training views, or the validation pictures.

    Attributes:
        name: Of the policy, or `VALIDATION`.
        num_pictures: Pictures of the side.
        num_views: Distinct views of each that the trials look at, on average; unlimited ones cannot be stored.
        epochs: Epochs of a trial, on average: early stopping makes them fewer.
        trials_by_depth: Expected number of trials that freeze so many stages.
        held: Depths that are stored already, with all views.
    """

    name: str
    num_pictures: int
    num_views: float | Literal["unlimited"]
    epochs: float
    trials_by_depth: Mapping[int, float]
    held: frozenset[int] = frozenset()


@dataclass(frozen=True)
class StoragePlan:
    """What to store.

    Attributes:
        depths: By name of the demand, ascending, without those that are held.
        flops_saved: Against storing nothing more, what filling costs taken off.
        fill_flops: What filling should cost; a cut that no trial comes to need is not filled.
        num_bytes: What the chosen features should take.
        prefix_flops: What the frozen parts would cost in all without storing more.
    """

    depths: Mapping[str, tuple[int, ...]]
    flops_saved: float
    fill_flops: float
    num_bytes: float
    prefix_flops: float

    @property
    def saved_share(self) -> float:
        """Share of the frozen parts' FLOPs that need not be computed."""
        return self.flops_saved / self.prefix_flops if self.prefix_flops else 0.0


def sweep_demands(
    trials: Mapping[str, Mapping[int, float]],
    *,
    num_views: Mapping[str, float | Literal["unlimited"]],
    epochs: float,
    most_epochs: int,
    num_train: int,
    num_val: int,
    held: Mapping[str, frozenset[int]] | None = None,
    train_passes: float = 1.0,
    val_passes: float = 1.0,
) -> tuple[Demand, ...]:
    """One demand for each policy, and one for the validation pictures, which every trial reads alike.

    Args:
        trials: Expected number of trials by policy and depth.
        num_views: Of each policy, that its trials look at; 1 for the one without augmentation.
        epochs: Of a trial, on average.
        most_epochs: Of a whole trial; views behind them are never looked at.
        num_train: Training pictures.
        num_val: Validation pictures.
        held: Depths stored already, by policy and under `VALIDATION`.
        train_passes: How often an epoch looks at each training picture; see `costs.trial_flops`.
        val_passes: How often at each validation picture.
    """
    held = held or {}
    together: dict[int, float] = {}
    for by_depth in trials.values():
        for depth, number in by_depth.items():
            together[depth] = together.get(depth, 0.0) + number
    policies: list[Demand] = []
    for name, by_depth in trials.items():
        views = num_views[name]
        views = views if views == "unlimited" else min(views, most_epochs)
        policies.append(Demand(name, num_train, views, epochs * train_passes, by_depth, held.get(name, frozenset())))
    of_val = Demand(VALIDATION, num_val, 1, epochs * val_passes, together, held.get(VALIDATION, frozenset()))
    return (*policies, of_val)


def what_to_store(
    stage_flops: Sequence[float],
    feature_bytes: Sequence[int],
    demands: Sequence[Demand],
    budget_bytes: float,
    *,
    least_flops_per_byte: float = 0.0,
) -> StoragePlan:
    """Chooses the cuts that save the most FLOPs within a budget of bytes.

    Within one demand the choice is exact: all trade-offs between bytes and FLOPs are enumerated. Among demands it is
    a knapsack with one choice each (Sinha & Zoltners 1979): steps along each demand's concave hull are taken by FLOPs
    per byte, then what still fits is added. The best single choice is kept instead if it is better, so at least half of
    the optimum is saved, and with one demand or enough room all of it.

    Args:
        stage_flops: Forward FLOPs of each stage, for one picture.
        feature_bytes: Bytes of each stage's result as it is stored, for one picture.
        demands: What will be read; their names differ.
        budget_bytes: Most bytes to add.
        least_flops_per_byte: A stored byte must save so many FLOPs over the sweep: what storing and reading it
            costs, as arithmetic. 0 takes storage for free within the budget.

    Raises:
        InputError: A depth has no stage, a stage has no bytes or two demands have one name.
    """
    _check(stage_flops, feature_bytes, demands)
    menus = [_menu(demand, stage_flops, feature_bytes, least_flops_per_byte) for demand in demands]
    # The first choice of each takes no bytes, so it stays whatever the budget.
    menus = [[menu[0], *(option for option in menu[1:] if option.num_bytes <= budget_bytes)] for menu in menus]
    places = _fill_up(menus, _along_hulls(menus, budget_bytes), budget_bytes)
    single = max(range(len(menus)), key=lambda number: menus[number][-1].worth, default=None)
    if single is not None and menus[single][-1].worth > _worth(menus, places):
        alone = [len(menu) - 1 if number == single else 0 for number, menu in enumerate(menus)]
        places = _fill_up(menus, alone, budget_bytes)
    chosen = [menu[place] for menu, place in zip(menus, places, strict=True)]
    return StoragePlan(
        depths={demand.name: option.depths for demand, option in zip(demands, chosen, strict=True)},
        flops_saved=sum(option.saved for option in chosen),
        fill_flops=sum(option.fill for option in chosen),
        num_bytes=sum(option.num_bytes for option in chosen),
        prefix_flops=sum(menu[0].prefix for menu in menus),
    )


def worth_storing_now(
    planned: Sequence[int],
    depth: int,
    stage_flops: Sequence[float],
    feature_bytes: Sequence[int],
    others: Mapping[int, float],
    *,
    flops_per_byte: float,
) -> tuple[int, ...]:
    """Which planned cuts a trial stores while it passes them on the way to its own depth.

    A shallower cut can also be left to the first trial that needs it, which then computes it anew. With probability p
    that one comes, and storing at once saves its computing; else the bytes are wasted. So a cut is stored ahead where
    p times its FLOPs exceed 1 - p times the price of its bytes.

    Args:
        planned: Cuts worth storing in the sweep, ascending, none deeper than `depth`.
        depth: Of the trial; its own cut, where it is planned, is stored.
        stage_flops: Forward FLOPs of each stage, for one picture.
        feature_bytes: Of each stage's result, for one picture.
        others: Expected number of other trials by depth, under the same name; as many come as a Poisson variable says.
        flops_per_byte: Price of a byte.
    """
    flops = [0, *accumulate(stage_flops)]
    chosen: list[int] = []
    for cut, following in pairwise((*(each for each in planned if each < depth), depth)):
        comes = -math.expm1(-sum(number for each, number in others.items() if cut <= each < following))
        anew = flops[cut] - flops[chosen[-1] if chosen else 0]
        if comes * anew > (1.0 - comes) * flops_per_byte * feature_bytes[cut - 1]:
            chosen.append(cut)
    return (*chosen, *(each for each in planned if each == depth))


@dataclass(frozen=True)
class _Option:
    """One choice of cuts for one demand; `saved` is net of `fill`, `worth` also of the price of bytes."""

    depths: tuple[int, ...]
    num_bytes: float
    prefix: float
    fill: float
    saved: float = 0.0
    worth: float = 0.0


def _menu(demand: Demand, stage_flops: Sequence[float], feature_bytes: Sequence[int], price: float) -> list[_Option]:
    """All sensible choices, from storing nothing on: the more bytes, the more worth.

    By dynamic programming over the deepest stored cut: what lies behind it is computed from it, whatever is stored in
    front. A way past a held cut is never better than the one through it.
    """
    num_stages = len(stage_flops)
    flops = [0, *accumulate(stage_flops)]
    is_storable = demand.num_views != "unlimited"
    rows = demand.num_pictures * (demand.num_views if demand.num_views != "unlimited" else 0)
    ends = {0: [_Option((), 0, 0.0, 0.0)]}
    for cut in range(1, num_stages + 2):
        is_new = cut <= num_stages and cut not in demand.held
        if is_new and not is_storable:
            continue
        reached: list[_Option] = []
        for last, options in ends.items():
            missed = _missed(demand, flops, last, cut)
            fill = rows * (flops[cut] - flops[last]) * _likelihood(demand, cut) if is_new else 0.0
            num_bytes = rows * feature_bytes[cut - 1] if is_new else 0
            more = (cut,) if is_new else ()
            reached += [
                _Option(old.depths + more, old.num_bytes + num_bytes, old.prefix + missed, old.fill + fill)
                for old in options
            ]
        ends[cut] = _frontier(reached, price)
    whole = ends[num_stages + 1]
    return [_judged(option, whole[0].prefix, price) for option in whole]


def _likelihood(demand: Demand, cut: int) -> float:
    """How likely (at most) a cut is filled: the first trial that freezes as much or more does it."""
    return min(1.0, sum(number for depth, number in demand.trials_by_depth.items() if depth >= cut))


def _missed(demand: Demand, flops: Sequence[float], last: int, cut: int) -> float:
    """FLOPs of the trials between two neighbouring stored cuts, which compute from the first."""
    visits = demand.epochs * demand.num_pictures
    return sum(
        visits * demand.trials_by_depth.get(depth, 0.0) * (flops[depth] - flops[last]) for depth in range(last + 1, cut)
    )


def _frontier(options: Sequence[_Option], price: float) -> list[_Option]:
    """The options that none beats with as few bytes, by bytes."""

    def spent(option: _Option) -> float:
        return option.prefix + option.fill + price * option.num_bytes

    kept: list[_Option] = []
    for option in sorted(options, key=lambda o: (o.num_bytes, spent(o), len(o.depths), o.depths)):
        if not kept or spent(option) < spent(kept[-1]):
            kept.append(option)
    return kept


def _judged(option: _Option, prefix: float, price: float) -> _Option:
    saved = prefix - option.prefix - option.fill
    return replace(option, saved=saved, worth=saved - price * option.num_bytes)


def _along_hulls(menus: Sequence[Sequence[_Option]], budget_bytes: float) -> list[int]:
    """A place in each menu: steps along the menus' concave hulls, the best per byte first, while they fit."""
    steps = sorted(
        (
            (-(menu[end].worth - menu[start].worth) / (menu[end].num_bytes - menu[start].num_bytes), number, start, end)
            for number, menu in enumerate(menus)
            for start, end in pairwise(_hull(menu))
        ),
    )
    places = [0] * len(menus)
    room = budget_bytes
    for _, number, start, end in steps:
        num_bytes = menus[number][end].num_bytes - menus[number][start].num_bytes
        # The steps of one menu come in order; behind one that does not fit, no other of it may be taken.
        if places[number] == start and num_bytes <= room:
            places[number] = end
            room -= num_bytes
    return places


def _hull(menu: Sequence[_Option]) -> list[int]:
    """Places of a menu on the concave hull of worth over bytes."""
    hull: list[int] = []
    for place, option in enumerate(menu):
        while len(hull) > 1:
            first, second = menu[hull[-2]], menu[hull[-1]]
            rise = (second.worth - first.worth) * (option.num_bytes - first.num_bytes)
            if rise > (option.worth - first.worth) * (second.num_bytes - first.num_bytes):
                break
            hull.pop()
        hull.append(place)
    return hull


def _fill_up(menus: Sequence[Sequence[_Option]], places: list[int], budget_bytes: float) -> list[int]:
    """Uses up the room that is left: the change of one place that gains most, again and again."""
    places = list(places)
    while True:
        room = budget_bytes - sum(menu[place].num_bytes for menu, place in zip(menus, places, strict=True))
        gains = [
            (menu[better].worth - menu[place].worth, -number, better)
            for number, (menu, place) in enumerate(zip(menus, places, strict=True))
            for better in range(place + 1, len(menu))
            if menu[better].num_bytes - menu[place].num_bytes <= room
        ]
        if not gains:
            return places
        _, number, better = max(gains)
        places[-number] = better


def _worth(menus: Sequence[Sequence[_Option]], places: Sequence[int]) -> float:
    return sum(menu[place].worth for menu, place in zip(menus, places, strict=True))


def _check(stage_flops: Sequence[float], feature_bytes: Sequence[int], demands: Sequence[Demand]) -> None:
    if len(feature_bytes) != len(stage_flops) or min(feature_bytes, default=1) <= 0:
        raise InputError(f"feature_bytes: {list(feature_bytes)} for {len(stage_flops)} stages; give each its bytes")
    names = [demand.name for demand in demands]
    if len(set(names)) < len(names):
        raise InputError(f"demands: {names}; give each another name")
    for demand in demands:
        for depth in (*demand.trials_by_depth, *demand.held):
            check_depth(depth, len(stage_flops))
        if 0 in demand.held:
            raise InputError(f"{demand.name}: depth 0 is the pictures themselves; leave it out of held")
