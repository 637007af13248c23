"""What the benchmarks share: made-up pictures, one table, one JSON line, one verdict.

Every figure is a ratio of two things measured in the same run, one after the other, in turns; the median over the turns
counts. On a machine that others use too, single seconds mean little and such ratios still mean something.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

_PACKAGES = ("torch", "ray")


def parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    summary = (description or "").split("\n\n")[0]
    options = argparse.ArgumentParser(description=summary)
    options.add_argument("--repeats", type=int, default=repeats, help="turns; the median counts (default %(default)s)")
    options.add_argument("--check", action="store_true", help="exit with 1 when the bar is missed")
    return options


def make_pictures(folder: Path, counts: Mapping[str, int], side_px: int, num_classes: int = 2) -> None:
    """Writes JPEG pictures of coloured noise, ``counts[side]`` of them per side, into side/class folders."""
    noise = np.random.Generator(np.random.Philox(key=0))
    for side, count in counts.items():
        for number in range(count):
            place = folder / side / f"class{number % num_classes}"
            place.mkdir(parents=True, exist_ok=True)
            coarse = noise.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((side_px * 4 // 3, side_px), Image.Resampling.BICUBIC)
            picture.save(place / f"{number:05d}.jpg", quality=90)


class Disturbance:
    """How much of this machine other processes took while a ``with`` block ran; this process must have no children.

    Attributes:
        share: Of the machine's processor time; 0 where the kernel does not say.
    """

    def __init__(self) -> None:
        self.share = 0.0

    def __enter__(self) -> Disturbance:
        self._started, self._before = time.perf_counter(), _foreign_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = (time.perf_counter() - self._started) * (os.cpu_count() or 1)
        self.share = max(0.0, (_foreign_seconds() - self._before) / seconds)


def _foreign_seconds() -> float:
    """Processor seconds since boot that were neither idle nor this process's."""
    statistics_file = Path("/proc/stat")
    if not statistics_file.exists():
        return 0.0
    user, nice, system, _, _, *rest = map(int, statistics_file.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK") - time.process_time()


def _processor() -> str:
    """The processor's name, as the kernel or else the interpreter knows it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def span(values: Sequence[float], digits: int = 2) -> str:
    """Median, and the smallest and largest where there are several."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def report(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Prints a table: drawn on a terminal, as Markdown elsewhere, ready for ``docs/performance.md``."""
    if not sys.stdout.isatty():
        lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
        print(f"{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
        for note in notes:
            print(note + "\n")
        return
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)


def conclude(name: str, cases: Sequence[Mapping[str, Any]], *, is_met: bool, check: bool) -> int:
    """Prints the JSON line and returns the exit code."""
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }
    print(json.dumps({"benchmark": name, "is_met": is_met, "machine": machine, "cases": list(cases)}))
    return 1 if check and not is_met else 0
