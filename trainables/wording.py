"""How a value is shown in a message."""

from __future__ import annotations

import unicodedata

_OBEYED = ("Cc", "Cs", "Zl", "Zp")
_TURNS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""What turns the direction of the letters behind it, so that a line reads as another."""
LONGEST_VALUE = 60
LONGEST_PLACE = 400
"""Of a path or an address, which people look for by its end."""


def printable(text: str) -> str:
    """The text with what a terminal would obey, or could not write, written out; its lines stay."""

    def is_plain(letter: str) -> bool:
        return letter == "\n" or (letter not in _TURNS and unicodedata.category(letter) not in _OBEYED)

    return "".join(letter if is_plain(letter) else repr(letter)[1:-1] for letter in text)


def shorten(value: object) -> str:
    """The value as it would be written in Python, cut to a length that fits in a line."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def visible(name: str) -> str:
    """A name as it is written, where a terminal can show it: what people typed may be anything."""
    is_plain = bool(name) and name == name.strip() and name.isprintable() and len(name) <= LONGEST_VALUE
    return name if is_plain else shorten(name)


def shorten_place(place: str) -> str:
    """A path or an address as it would be written in Python; of a very long one its ends."""
    text = repr(place)
    half = LONGEST_PLACE // 2
    return text if len(text) <= LONGEST_PLACE else f"{text[: half - 3]}...{text[-half:]}"
