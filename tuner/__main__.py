"""The command ``thaw``; ``python -m tuner`` is the same."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

from tuner.cli import main


def run() -> NoReturn:
    """Runs the command and ends the process without Python's own farewell.

    After a sweep the interpreter would spend three seconds of processor time on taking millions of objects apart, and
    the prompt would come back that much later. Everything that matters is closed by then: exit handlers run here.
    """
    try:
        main()
        code = 0
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
