"""Runs the command as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def start_thaw(home: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, so that a Ctrl-C can be sent to it as a terminal would."""
    environment = {**os.environ, "THAW_HOME": str(home)}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, "-m", "tuner", *arguments],
        env=environment,
        cwd=home.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
