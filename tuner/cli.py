"""The command line: its commands in the order of its help, and how each ends.

What is imported at the top costs every ``--help`` its time.
"""

from __future__ import annotations

import errno
import signal
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from trainables.errors import ForPeople, InputError
from trainables.wording import printable
from tuner.commands.archive import export_sweep, import_sweep
from tuner.commands.backbones import backbones
from tuner.commands.cache import cache_app
from tuner.commands.data import augment_app, data_app
from tuner.commands.doctor import doctor
from tuner.commands.predict import predict
from tuner.commands.pretrain import pretrain
from tuner.commands.rank import rank
from tuner.commands.spec import spec_app
from tuner.commands.sweep import resume, sweep
from tuner.commands.trials import best, show, train, trials
from tuner.commands.ui import ui


class _Commands(TyperGroup):
    """Commands whose ends Typer leaves to `main`: it would turn each into a bare exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _complain("interrupted at once; `thaw resume NAME` goes on with the sweep", 130)
        except EOFError as error:  # a mistake of ours: it is to be seen where
            raise RuntimeError("a file or a connection ended too early") from error


app = typer.Typer(
    name="thaw",
    cls=_Commands,
    help="Which pretrained CNN, frozen how deep, learning how fast, augmented how hard, classifies my images best?",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (sweep, resume, trials, show, best, train, predict, ui, rank, backbones, pretrain, doctor):
    app.command()(command)
app.command("export-sweep")(export_sweep)
app.command("import-sweep")(import_sweep)
for group, name in ((spec_app, "spec"), (data_app, "data"), (augment_app, "augment"), (cache_app, "cache")):
    app.add_typer(group, name=name)


def main() -> None:
    """Runs the command; bad input ends in one clear line and exit code 2."""
    signal.signal(signal.SIGTERM, _interrupt)  # a service manager's Ctrl-C
    try:
        app(prog_name="thaw")
    except InputError as error:
        _complain(str(error), 2)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = f" for {error.filename}" if error.filename else ""
            remedy = "free some, or name a folder on a larger disk by THAW_HOME"
            _complain(f"no room{place} ({error.strerror}): {remedy}", 2)
        if error.filename is None:
            raise
        _complain(f"{error.filename}: {error.strerror}", 2)
    except ForPeople as error:
        _complain(str(error), 1)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _complain(message: str, code: int) -> NoReturn:
    typer.echo(f"thaw: {printable(message)}", err=True)
    sys.exit(code)
