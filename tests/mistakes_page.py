"""The page of mistakes: ``python tests/mistakes_page.py > docs/mistakes.md``.

It makes each mistake for real. The tests make them again and compare, so that the page says what the program does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from mistakes_made import MISTAKES, Mistake, lines_of

HEAD = """# Mistakes, and what Thaw says

Whatever is wrong with a spec, the pictures or their surroundings is found before any training, said in one line for
each mistake, with the field or the place and the remedy, and ends with exit code 2. Nothing is written into the working
directory, and nothing that was there before is lost. Single bad files do not stop a sweep: they are set aside and
listed (by `--dry-run`, `thaw data inspect`, at the start of the sweep, and in its `data.json`), up to
`data.max_bad_fraction` of all files.

`thaw` writes each line to standard error, after `thaw: `. `PATH` stands for the folder in which the mistake was made.
This page is written by `python tests/mistakes_page.py > docs/mistakes.md`, which makes each mistake for real; a test
makes them again and compares.

"""
TAIL = """
## Surroundings

| what | what happens |
| --- | --- |
| The disk is full while pictures are packed | refused: `` {disk_full} `` |
| MLflow's server does not take the user or the password | refused: `` {locked} `` |
| MLflow's server is not there when the sweep starts | the sweep goes on: {away} |
| The working directory cannot be written to | nothing: nothing is ever written there |
| Thaw's home cannot be written to | refused, before Ray starts: `` {read_only} `` |

## Specs of every kind

`make fuzz` draws specs from the schema itself, every field of it: right, just beyond what is allowed, of a wrong type,
misspelt, contradictory, too long, in other scripts. Each has to run (pictures packed, networks cut, the first trials
proposed, priced and handed out) or be refused in lines that name the field and the remedy.
{fuzz}
"""
DISK_FULL = (
    "PATH/home/tables/...: no room for the packed pictures (No space left on device): free some, or name a folder on a "
    "larger disk by THAW_HOME"
)
READ_ONLY = (
    "THAW_HOME: PATH/home cannot be written to (Read-only file system); name another folder by THAW_HOME, or see that "
    "you may write there"
)
LOCKED = (
    "tracking.uri: MLflow at http://127.0.0.1:5000 does not take this user and password (it answers 401); set "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
)
AWAY = (
    "its display says `MLflow is away, 12 records wait for it`; the journal keeps every record, and they are sent when "
    "the server is back, or by `thaw resume NAME`"
)
FUZZ = (
    "The last long run (`python tests/fuzz.py --specs 20000 --seed 1795822894`) tried 20,000: 4,721 ran, 14,676 were\n"
    "refused as they were read and 603 by what they met on the way to training; none ended in a traceback. Before,\n"
    "each field in turn is given each of some sixty things that people leave in one, and each that is searched ranges\n"
    "of all kinds: 16,306 specs, of which 926 ran. On the way there it found a dozen that ended in a traceback,\n"
    "went on without end, took all memory, or were refused in a line without a field or a remedy, all mended. It is\n"
    "not part of the suite, because it builds networks of every size."
)


def row(mistake: Mistake, said: list[str]) -> str:
    """The mistake's line of the table."""
    what = "<br>".join(f"`` {line} ``" for line in said) or "nothing: it is read as what it is"
    return f"| {mistake.title} | {'goes on' if mistake.goes_on else 'refused'} | {what.replace('|', chr(92) + '|')} |"


def _main() -> None:
    print(HEAD + "| mistake | the sweep | what you see |\n| --- | --- | --- |")
    for mistake in MISTAKES:
        with tempfile.TemporaryDirectory() as folder:
            print(row(mistake, lines_of(mistake, Path(folder))[1]))
    print(TAIL.format(disk_full=DISK_FULL, locked=LOCKED, read_only=READ_ONLY, away=AWAY, fuzz=FUZZ), end="")


if __name__ == "__main__":
    _main()
