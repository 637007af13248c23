"""``thaw trials``, ``show``, ``best`` and ``train``: a sweep's trials, one of them, and one configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainables.errors import InputError
from tuner.commands.arguments import FormatName, Overrides, SweepName, TakesNextName, file_to_write

if TYPE_CHECKING:
    from search_spaces.spec import SweepSpec
    from tuner.paths import HomePaths
    from tuner.records.journal import TrialRecord

_SHOWN = (
    "epoch",
    "train/loss",
    "val/loss",
    "val/accuracy",
    "val/accuracy_std",
    "val/balanced_accuracy",
    "val/macro_f1",
    "val/auroc",
    "val/cost",
    "val/map",
    "time/train_s",
    "time/val_s",
)


def trials(
    name: SweepName,
    format_: FormatName = "table",
) -> None:
    """Lists a sweep's trials, the best first."""
    from tuner.commands.running import open_sweep, output_console
    from tuner.records.journal import read_trials
    from tuner.records.trial_rows import trials_frame
    from tuner.report.output import build_trials_table, clean_rows, named_format, write_rows

    home, spec = open_sweep(name, "trials")
    records = read_trials(home.sweep(name).journal)
    rows = clean_rows(trials_frame(records, spec.metric, spec.mode))
    if named_format(format_) == "table":
        output_console().print(build_trials_table(rows, spec.metric))
    else:
        write_rows(rows, named_format(format_), output_console())


def show(
    name: SweepName,
    number: Annotated[int, typer.Argument(min=0, help="The trial's number.")],
) -> None:
    """Shows one trial of a sweep: its settings, its epochs, how it ended."""
    from tuner.commands.running import open_sweep

    home, _ = open_sweep(name, "show")
    _show(_trial_of(home, name, number))


def _show(trial: TrialRecord) -> None:
    from rich.console import Console

    from tuner.report.output import build_table

    console = Console()
    console.print(build_table(["setting", "value"], [[key, str(value)] for key, value in trial.params.items()]))
    for each in trial.lineage:
        changed = {key: value for key, value in each.params.items() if trial.params.get(key) != value}
        settings = ", ".join(f"{key} {value}" for key, value in changed.items()) or "the same settings"
        console.print(
            f"To epoch {each.until} trained by trial {each.number}: {settings}", highlight=False, markup=False
        )
    columns = [column for column in _SHOWN if any(column in epoch for epoch in trial.epochs)]
    if columns:
        rows = [[epoch.get(column) for column in columns] for epoch in trial.epochs]
        table = build_table(columns, rows)
        if console.measure(table).maximum > console.width:  # it would break the headings anywhere
            table = build_table([column.replace("/", "/\n") for column in columns], rows)
        console.print(table)
    reason = f" ({trial.reason})" if trial.reason else ""
    console.print(f"Trial {trial.number}: {trial.outcome or 'not ended'}{reason}", highlight=False, markup=False)


def best(
    name: SweepName,
    spec_file: Annotated[
        Path | None, typer.Option("--spec", help="Writes the spec that trains exactly this trial, for `thaw train`.")
    ] = None,
) -> None:
    """Names a sweep's champion; with --spec, writes down how to train it again."""
    from search_spaces.loading import dump_spec
    from search_spaces.single import single_spec
    from tuner.commands.running import open_sweep
    from tuner.records.journal import champion_record, read_records

    spec_file = None if spec_file is None else file_to_write(spec_file, "--spec")
    home, spec = open_sweep(name, "best")
    champion = champion_record(read_records(home.sweep(name).journal))
    if champion is None:
        raise InputError(f"best: sweep {name!r} has no champion yet; `thaw resume {name}` goes on with it")
    trial = _trial_of(home, name, champion["number"])
    if spec_file is None:
        _show(trial)
        if note := champion.get("note"):  # which begins with its scores on both sides, and the baselines'
            typer.echo(str(note).partition("\n\n")[0])
        return
    # A trial that was ended early has the numbers of its epochs, and no more of them.
    last_epoch = len(trial.epochs) if len(trial.epochs) < spec.budget.epochs else None
    again = _of_its_weights(single_spec(spec, trial.params, f"{name}-best"[:64], last_epoch), spec, trial, home)
    spec_file.write_text(dump_spec(again), encoding="utf-8")
    typer.echo(f"{spec_file}: trial {trial.number} of {name}.  Train it:  thaw train {spec_file}")
    if trial.lineage:
        typer.echo(
            f"These are its last settings. Its weights have been trained with others before (thaw show {name} "
            f"{trial.number}), so the numbers will not be the same.",
            err=True,
        )


def _of_its_weights(again: SweepSpec, spec: SweepSpec, trial: TrialRecord, home: HomePaths) -> SweepSpec:
    """The spec of one trial with the weights that its sweep began with."""
    from search_spaces.space import BACKBONE
    from tuner.networks.preparing import OtherWeightsError, lasting_weights
    from tuner.records.kept_places import first_weights

    (choice,), name = again.model.entries, str(trial.params.get(BACKBONE, next(iter(spec.model.named))))
    kept = first_weights(home.sweep(spec.name)).get(name)
    if kept is None or not isinstance(choice.weights, str):
        return again
    uri = home.tracking_uri(spec.tracking.uri)
    try:
        weights = lasting_weights(kept, choice.weights, choice.backbone, home, uri)
    except OtherWeightsError:
        raise
    except InputError as error:
        typer.echo(f"Whether these weights are those that the sweep began with is not known here: {error}", err=True)
        return again
    changes: dict[str, Any] = {"weights": weights}
    if again.model.backbone is None:
        changes = {"backbones": (choice.model_copy(update=changes),)}
    return again.model_copy(update={"model": again.model.model_copy(update=changes)})


def train(
    spec: Annotated[
        str, typer.Argument(help="A spec whose search leaves nothing to choose, as `thaw best` writes it.")
    ],
    overrides: Overrides = None,
    new: TakesNextName = False,
) -> None:
    """Trains, tests and registers one configuration, without a search."""
    from search_spaces.loading import load_spec
    from search_spaces.single import searched_fields
    from tuner.commands.running import run_and_show

    loaded = load_spec(spec, overrides or [])
    if left := searched_fields(loaded):
        raise InputError(
            f"train: {', '.join(left)} have more than one value; give each one value, or search: thaw sweep {spec}"
        )
    if loaded.search.num_trials not in ("auto", 1):
        raise InputError(f"train: search.num_trials is {loaded.search.num_trials}; leave it out, or set it to 1")
    search = loaded.search.model_copy(update={"num_trials": 1, "probe": "off"})
    run_and_show(loaded.model_copy(update={"search": search}), new=new)


def _trial_of(home: HomePaths, name: str, number: int) -> TrialRecord:
    from tuner.records.journal import read_trials

    trials: dict[int, Any] = {trial.number: trial for trial in read_trials(home.sweep(name).journal)}
    if number not in trials:
        last = f"the last one is {max(trials)}" if trials else "it has none yet"
        raise InputError(f"show: sweep {name!r} has no trial {number}; {last}")
    found: TrialRecord = trials[number]
    return found
