"""Times of several ways to do the same, fair to each on a machine that does other work too.

In: functions without arguments, by number. Out: seconds of each. All take turns, so that whatever else the machine does
meets all alike, and the shortest time of each counts: nothing makes a function faster than it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping

import torch

HOPELESS = 3.0
"""What takes so many times as long as the fastest at the first look is not worth a second one."""
_VERY_LONG_S = 5.0
"""A call that takes so long while it chooses kernels is not made again: what they cost is little beside it."""
_PATIENCE_S = 2.0
"""What is hopeless is not looked at to the end once it has taken so many seconds."""
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 10
_LOOKS_S, _ROUNDS_S = 1.0, 6.0
"""No further round of looks, or of a contest, begins after so many seconds."""

Call = Callable[[], object]


def first_look(calls: Mapping[int, Call], device: torch.device) -> dict[int, float]:
    """Roughly how long each takes, soon: what is far behind already is called once or twice."""
    best: dict[int, float] = {}
    spent: dict[int, float] = {}
    for number, call in calls.items():
        first = _time(call, device)
        best[number] = first if first > _VERY_LONG_S else _time(call, device)
        spent[number] = first + best[number]
    for _ in _rounds(_LOOKS_S) if len(calls) > 1 else ():
        for number, call in calls.items():
            is_behind = best[number] >= HOPELESS * min(best.values())
            if not (is_behind and spent[number] > _PATIENCE_S):
                taken = _time(call, device)
                best[number], spent[number] = min(best[number], taken), spent[number] + taken
    return best


def best_of_rounds(calls: Mapping[int, Call], device: torch.device) -> dict[int, float]:
    """How long each takes, as exactly as a few seconds tell."""
    best = dict.fromkeys(calls, math.inf)
    for call in calls.values():
        call()  # chooses kernels and takes memory, once
    for _ in _rounds(_ROUNDS_S):
        for number, call in calls.items():
            best[number] = min(best[number], _time(call, device))
    return best


def _rounds(most_s: float) -> Iterator[int]:
    started = time.perf_counter()
    for number in range(_MOST_ROUNDS):
        if number >= _FEWEST_ROUNDS and time.perf_counter() - started > most_s:
            return
        yield number


def _time(call: Call, device: torch.device) -> float:
    _wait_for(device)
    began = time.perf_counter()
    call()
    _wait_for(device)
    return time.perf_counter() - began


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
