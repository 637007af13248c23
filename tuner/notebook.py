"""Sweeps in a notebook: progress as a panel under the cell that runs them, results as tables.

In: what the terminal would show, as Rich has it. Out: HTML, displayed by the notebook's own IPython.
"""

from __future__ import annotations

import importlib
import io
import sys
import time
from typing import Any

from rich.console import Console, RenderableType

_REFRESH_S = 0.25
_WIDTH = 140
_FORMAT = '<pre style="font-family: monospace; line-height: 1.3; overflow-x: auto">{code}</pre>'


def is_notebook() -> bool:
    """Whether this process is a notebook's kernel, which can display HTML; IPython on a terminal is none."""
    if "IPython" not in sys.modules:
        return False
    shell = importlib.import_module("IPython").get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def as_html(*shown: RenderableType) -> str:
    """What a terminal would show, as HTML whose styles are its own."""
    console = recorder()
    console.print(*shown, sep="\n")
    return exported(console)


def recorder() -> Console:
    """A console that shows nothing and remembers all, for `exported`."""
    # Its own file: a notebook's console would display what is printed at once.
    return Console(record=True, file=io.StringIO(), width=_WIDTH, force_jupyter=False, force_terminal=True)


def exported(console: Console) -> str:
    """What a recorder remembers, as HTML."""
    return console.export_html(inline_styles=True, code_format=_FORMAT)


class CellPanel:
    """A place under the running cell whose content changes; at most a few times a second."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._next = 0.0

    def show(self, renderable: RenderableType, *, at_once: bool = False) -> None:
        """Puts something in place of what is there; what comes too soon after it is left out, unless ``at_once``."""
        now = time.monotonic()
        if now < self._next and not at_once:
            return
        self._next = now + _REFRESH_S
        display = importlib.import_module("IPython.display")
        content = display.HTML(as_html(renderable))
        if self._handle is None:
            self._handle = display.display(content, display_id=True)
        else:
            self._handle.update(content)
