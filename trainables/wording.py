"""How a value is shown in a message."""

from __future__ import annotations

LONGEST_VALUE = 60
LONGEST_PLACE = 400
"""Of a path or an address, which people look for by its end."""


def printable(text: str) -> str:
    """The text with what a terminal would not show, or obey, written out; its lines stay."""
    return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)


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
