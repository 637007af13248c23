"""Names that differ by case or white space only: two classes of such names were most likely meant to be one.

In: the names of classes. Out: the first two that look alike. Pure.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def alike_names(names: Iterable[str]) -> tuple[str, str] | None:
    """Two of the names that are the same but for case, white space and the composition of accents; None: no two are.

    Single letters are left alone: handwriting has an `a` and an `A`.
    """
    seen: dict[str, str] = {}
    for name in sorted(names):
        if len(name) == 1:
            continue
        key = "".join(unicodedata.normalize("NFKC", name).casefold().split())
        if key in seen:
            return seen[key], name
        seen[key] = name
    return None
