"""What may be pictures, files of a folder or rows of a list, in a few bytes each: 100,000 take 10 MB and not 100.

In: names, sizes and times, one after another. Out: a sequence of `Picture`s that are made when somebody looks at one,
and what tells one version of the files from another. No torch.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, overload

import numpy as np

from trainables.config import SPLIT_NAMES, SplitName
from trainables.data.picture import Picture

_NO_SIDE = -1
_NUM_FACTS = 6


class Candidate(NamedTuple):
    """A file below a class folder, or a row of a list.

    Attributes:
        name: Its place in the source, as the bytes that the storage has for it.
        class_name: The class whose folder it is in, or that the list says.
        side: The side whose folder that is in, or that the list says; None without any.
        size_bytes: Its size; of a row whatever its reader finds it by.
        times_ns: When it was written, and when its entry was changed (0 where nobody says).
        group: See `Picture.group`.
    """

    name: bytes
    class_name: str
    side: SplitName | None
    size_bytes: int
    times_ns: tuple[int, int] = (0, 0)
    group: str = ""


class Candidates(Sequence[Picture]):
    """Candidates as pictures, sorted by name.

    Args:
        found: In any order; read once.
        reader: From a name's bytes and `size_bytes` to a function that returns its content.
    """

    def __init__(self, found: Iterable[Candidate], reader: Callable[[bytes, int], Callable[[], bytes]]) -> None:
        self._reader = reader
        labels: dict[str, int] = {}
        groups: dict[str, int] = {"": 0}
        names: list[bytes] = []
        facts = array("q")
        for name, class_name, side, size_bytes, times_ns, group in found:
            names.append(name)
            side_code = _NO_SIDE if side is None else SPLIT_NAMES.index(side)
            label, group_code = labels.setdefault(class_name, len(labels)), groups.setdefault(group, len(groups))
            facts.extend((label, side_code, group_code, size_bytes, *times_ns))
        if not names:
            facts.extend([0] * _NUM_FACTS)  # NumPy takes no empty buffer
        order = sorted(range(len(names)), key=lambda number: _sorting_key(names[number]))
        self.class_names, self._groups = tuple(labels), tuple(groups)
        codes = set(facts[1::_NUM_FACTS][: len(names)])
        self.sides = {None if code == _NO_SIDE else SPLIT_NAMES[code] for code in codes}
        self._facts = np.frombuffer(facts, dtype=np.int64).reshape(-1, _NUM_FACTS)[order]
        self._ends = np.cumsum([len(names[number]) for number in order], dtype=np.int64)
        self._text = b"".join(names[number] for number in order)

    def __len__(self) -> int:
        """Number of files."""
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> Picture: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Picture]: ...
    def __getitem__(self, place: int | slice) -> Picture | Sequence[Picture]:
        """One picture, or some."""
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = range(len(self))[place]
        name = self._name(number)
        label, side_code, group_code, size_bytes = self._facts[number, :4].tolist()
        side = None if side_code == _NO_SIDE else SPLIT_NAMES[side_code]
        read = self._reader(name, size_bytes)
        return Picture(shown(name), self.class_names[label], side, read, self._groups[group_code])

    def digest(self, place: bytes) -> str:
        """SHA-256 over a place and every candidate's name, size and times."""
        digest = hashlib.sha256(place)
        for number in range(len(self)):
            size_bytes, written_ns, changed_ns = self._facts[number, 3:].tolist()
            digest.update(f"\0{shown(self._name(number))}\0{size_bytes}\0{written_ns}\0{changed_ns}".encode())
        return digest.hexdigest()

    def _name(self, number: int) -> bytes:
        start = int(self._ends[number - 1]) if number else 0
        return self._text[start : int(self._ends[number])]


def shown(name: bytes) -> str:
    """A name as valid Unicode: a file system may hold bytes that are not."""
    return name.decode("utf-8", "backslashreplace")


def _sorting_key(name: bytes) -> bytes:
    """Of the shown name: UTF-8 sorts as its characters do, and most names are shown as they are."""
    return name if name.isascii() else shown(name).encode()
