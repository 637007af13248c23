"""Whose name is whose: a new sweep takes none that another has."""

from __future__ import annotations

from search_spaces.ranges import MOST_LETTERS
from trainables.errors import InputError
from tuner.paths import HomePaths
from tuner.records.journal import read_records
from tuner.records.resuming import is_finished
from tuner.records.shared_home import pull_sweeps


def free_name(name: str, home: HomePaths) -> str:
    """``name``, or the first of ``name-2``, ``name-3``... that no sweep has."""
    pull_sweeps(home)
    taken, number, candidate = set(home.sweep_names()), 1, name
    while candidate in taken:
        number += 1
        ending = f"-{number}"
        candidate = name[: MOST_LETTERS - len(ending)] + ending
    return candidate


def refuse_used_name(name: str, home: HomePaths) -> None:
    """Says what to do instead where a sweep of this home has the name.

    Raises:
        InputError: There is such a sweep, finished or not.
    """
    if name not in home.sweep_names():
        return
    if is_finished(read_records(home.sweep(name).journal)):
        raise InputError(
            f"name: sweep {name!r} exists and is finished; give another (--set name=...) or add --new; for more trials "
            f"of it, `thaw resume {name} --set search.num_trials=NUMBER`"
        )
    raise InputError(f"name: sweep {name!r} exists and is unfinished; `thaw resume {name}`, or give another name")
