"""A few pictures of each class of another source, for trying out.

In: a `Source` and how many. Out: a `Source` of the same ones each time. Nothing is read here. No torch.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Sequence

from trainables.config import SplitName
from trainables.data.picture import Picture
from trainables.data.sources import Source
from trainables.errors import InputError


class LimitedSource:
    """Some pictures of each class of another source, the same ones each time.

    Where the source has sides, each keeps its share of a class, and one picture at least as long as there is room.

    Args:
        source: The other one.
        max_per_class: How many at most.
    """

    def __init__(self, source: Source, max_per_class: int) -> None:
        self._source, self._most = source, max_per_class

    @property
    def uri(self) -> str:
        """The other source's."""
        return self._source.uri

    def pictures(self) -> Sequence[Picture]:
        """Of each class and side those whose names' hashes are smallest, sorted by name; see `Source.pictures`."""
        every = self._source.pictures()
        by_class: dict[str, Counter[SplitName | None]] = {}
        for picture in every:
            by_class.setdefault(picture.class_name, Counter())[picture.side] += 1
        for name, sides in by_class.items():
            if len(sides) > self._most:
                raise InputError(
                    f"data.max_per_class: {self._most} is less than the {len(sides)} sides that the source has of "
                    f"class {name!r}: give at least {len(sides)}"
                )
        room = {name: _shared_out(self._most, sides) for name, sides in by_class.items()}
        # Only what is kept so far: there may be millions, of which a few are wanted.
        kept: dict[tuple[str, SplitName | None], list[tuple[int, int]]] = {}
        for place, picture in enumerate(every):
            same, most = kept.setdefault((picture.class_name, picture.side), []), room[picture.class_name][picture.side]
            heapq.heappush(same, (-_by_chance(picture), place))
            if len(same) > most:
                heapq.heappop(same)
        return [every[place] for place in sorted(place for same in kept.values() for _, place in same)]

    def signature(self) -> str:
        """A digest of the other source's and of the limit."""
        return hashlib.sha256(f"{self._source.signature()} at most {self._most} by side".encode()).hexdigest()


def _by_chance(picture: Picture) -> int:
    return int.from_bytes(hashlib.sha256(picture.name.encode()).digest())


def _shared_out(most: int, sides: Counter[SplitName | None]) -> dict[SplitName | None, int]:
    """How many of a class each side may keep: its share, rounded, but one at least; the smallest side first."""
    left, num_left, room = most, sides.total(), {}
    for side, number in sorted(sides.items(), key=lambda item: (item[1], str(item[0]))):
        # Integers, rounded half up: the same number everywhere.
        room[side] = min(number, left, max(1, (2 * left * number + num_left) // (2 * num_left)))
        left, num_left = left - room[side], num_left - number
    return room
