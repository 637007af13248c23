"""What may be pictures, files of a folder or rows of a list, in a few bytes each: 100,000 take 7 MB and not 100.

In: names, sizes and times, one after another. Out: a sequence of `Picture`s that are made when somebody looks at one,
and what tells one version of the files from another. No torch.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple, overload

import numpy as np

from trainables.config import SPLIT_NAMES, SplitName
from trainables.data.picture import Picture

_SIDE_CODES: dict[SplitName | None, int] = {None: -1, **{side: code for code, side in enumerate(SPLIT_NAMES)}}
_SIDE_OF_CODE = {code: side for side, code in _SIDE_CODES.items()}
_FACTS = np.dtype(
    [
        ("end", "<i8"),  # of the name, among all names one behind the other
        ("size_bytes", "<i8"),
        ("written_ns", "<i8"),
        ("changed_ns", "<i8"),
        ("label", "<i4"),
        ("group", "<i4"),
        ("side", "i1"),
    ]
)
_PACKER = struct.Struct("<qqqqiib")


class Candidate(NamedTuple):
    """A file below a class folder, or a row of a list.

    Attributes:
        name: Its place in the source, as the bytes that the storage has for it.
        class_name: The class whose folder it is in, or that the list says.
        side: The side whose folder that is in, or that the list says; None without any.
        size_bytes: Its size; of a row its place in the list, for its reader to find it by.
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
        # One object of each name would stay scattered over memory that the system does not get back.
        text, facts = bytearray(), bytearray()
        for name, class_name, side, size_bytes, times_ns, group in found:
            text += name
            label, group_code = labels.setdefault(class_name, len(labels)), groups.setdefault(group, len(groups))
            facts += _PACKER.pack(len(text), size_bytes, *times_ns, label, group_code, _SIDE_CODES[side])
        self._text, self._facts = text, np.frombuffer(facts, _FACTS)
        self.class_names, self._groups = tuple(labels), tuple(groups)
        self.sides = {_SIDE_OF_CODE[code] for code in np.unique(self._facts["side"]).tolist()}
        order = sorted(range(len(self)), key=lambda number: _sorting_key(self._name(number)))
        self._order = np.array(order, dtype=np.int32)

    def __len__(self) -> int:
        """Number of files."""
        return len(self._facts)

    @overload
    def __getitem__(self, place: int) -> Picture: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Picture]: ...
    def __getitem__(self, place: int | slice) -> Picture | Sequence[Picture]:
        """One picture, or some."""
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = self._order[range(len(self))[place]]
        name = self._name(number)
        _, size_bytes, _, _, label, group, side = self._facts[number].item()
        read = self._reader(name, size_bytes)
        return Picture(shown(name), self.class_names[label], _SIDE_OF_CODE[side], read, self._groups[group])

    def repeated(self) -> tuple[str, int, int] | None:
        """The first name to come again, and the places in the list (`size_bytes`) of both; None if there is none."""
        pairs = pairwise(self._order.tolist())  # equal names stay in the order in which they were found
        same = [(second, first) for first, second in pairs if self._name(first) == self._name(second)]
        if not same:
            return None
        later, earlier = min(same)
        return shown(self._name(later)), *self._facts["size_bytes"][[earlier, later]].tolist()

    def digest(self, place: bytes) -> str:
        """SHA-256 over a place and every candidate's name, size and times."""
        digest = hashlib.sha256(place)
        for number in self._order:
            _, size_bytes, written_ns, changed_ns, *_ = self._facts[number].item()
            digest.update(f"\0{shown(self._name(number))}\0{size_bytes}\0{written_ns}\0{changed_ns}".encode())
        return digest.hexdigest()

    def _name(self, number: int) -> bytes:
        start = self._facts["end"][number - 1] if number else 0
        return bytes(self._text[start : self._facts["end"][number]])


def shown(name: bytes) -> str:
    """A name as valid Unicode: a file system may hold bytes that are not."""
    return name.decode("utf-8", "backslashreplace")


def _sorting_key(name: bytes) -> bytes:
    """Of the shown name: UTF-8 sorts as its characters do, and most names are shown as they are."""
    return name if name.isascii() else shown(name).encode()
