"""Paths as people type them."""

from __future__ import annotations

from pathlib import Path

from trainables.errors import InputError


def expand(path: str | Path) -> Path:
    """A path as somebody typed it, with ``~`` written out.

    Raises:
        InputError: It begins with the home of a user whom this machine does not know, or holds a NUL character.
    """
    if "\0" in str(path):
        raise InputError(f"{str(path)!r}: no path holds a NUL character; take it out")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = str(path).split("/", 1)[0]
        raise InputError(
            f"{path}: {user} would be the home of a user called {user[1:]!r}, whom this machine does not know; write "
            f"~/ for your own, or ./{path} for a name that begins so"
        ) from error
