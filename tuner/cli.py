"""The command line. It parses and prints; what is imported at the top costs every ``--help`` its time."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from trainables.errors import InputError
from tuner.commands import completing
from tuner.commands.archive import export_sweep, import_sweep
from tuner.commands.backbones import backbones
from tuner.commands.cache import cache_app
from tuner.commands.data import LABEL_SEPARATOR, LABELS, augment_app, data_app, separator_of
from tuner.commands.doctor import doctor
from tuner.commands.rank import rank
from tuner.commands.trial import best, show, train

if TYPE_CHECKING:
    from search_spaces.spec import SweepSpec


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
spec_app = typer.Typer(help="Specs: what a sweep is made of.", no_args_is_help=True)
app.add_typer(spec_app, name="spec")
app.add_typer(cache_app, name="cache")
app.add_typer(data_app, name="data")
app.add_typer(augment_app, name="augment")
app.command()(train)
app.command()(show)
app.command()(best)
app.command()(rank)
app.command()(backbones)
app.command()(doctor)
app.command("export-sweep")(export_sweep)
app.command("import-sweep")(import_sweep)

SpecFile = Annotated[
    str,
    typer.Argument(
        help="A spec file (YAML), or the name of a preset such as 'digits'.", autocompletion=completing.specs
    ),
]
SpecOrSource = Annotated[
    str,
    typer.Argument(
        help="A spec file, a preset, or pictures (folder:PATH): then a spec is fitted to them.",
        autocompletion=completing.specs_or_sources,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Overrides a field: --set search.num_trials=40",
        autocompletion=completing.fields,
    ),
]
FormatName = Annotated[str, typer.Option("--format", help="table, csv or json.")]


@app.command()
def sweep(
    spec: SpecOrSource,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, train nothing.")] = False,
    new: Annotated[bool, typer.Option("--new", help="Where the name is in use, take the next free one.")] = False,
) -> None:
    """Searches, trains, tests and registers the best classifier for a folder of pictures."""
    from tuner.commands.given import load_or_fit

    loaded = load_or_fit(spec, overrides or [])
    if dry_run:
        _show_plan(loaded)
        return
    from tuner.commands.running import run_and_show

    run_and_show(loaded, new=new)


@app.command()
def resume(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of a sweep that was interrupted, or is to have more trials.", autocompletion=completing.sweeps
        ),
    ],
    overrides: Overrides = None,
) -> None:
    """Goes on with a sweep that was interrupted, or makes a finished one longer (--set search.num_trials=40)."""
    from tuner.commands.running import output_console
    from tuner.progress import Progress
    from tuner.report.output import show_result
    from tuner.sweep import resume_sweep

    with Progress() as progress:
        result = resume_sweep(name, overrides=overrides or [], progress=progress)
    if result is None:
        typer.echo(f"Sweep {name} is finished; `thaw trials {name}` shows it.")
        typer.echo(f"For more trials:  thaw resume {name} --set search.num_trials=NUMBER")
        return
    show_result(result, output_console())


@app.command()
def trials(
    name: Annotated[str, typer.Argument(help="Name of a sweep.", autocompletion=completing.sweeps)],
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


@app.command()
def predict(
    place: Annotated[Path, typer.Argument(help="A picture, or a folder of pictures.", metavar="IMAGE_OR_FOLDER")],
    model: Annotated[str, typer.Option(help="'champion', NAME, NAME@ALIAS or models:/...")] = "champion",
    top_k: Annotated[int, typer.Option(min=1, help="Classes to show for each picture.")] = 3,
    format_: FormatName = "table",
) -> None:
    """Says what pictures show, by a registered model."""
    from tuner.models.predicting import find_pictures, predict
    from tuner.models.registry import resolve_model
    from tuner.paths import HomePaths
    from tuner.report.output import named_format, write_rows

    wanted = named_format(format_)
    pictures = find_pictures(place)
    home = HomePaths.from_env()
    tracking_uri = home.tracking_uri()
    uri = resolve_model(model, home, tracking_uri)
    from tuner.commands.running import output_console
    from tuner.models.classifier import Classifier

    classifier = Classifier.load(uri, tracking_uri)
    predictions = list(predict(classifier, pictures, top_k))
    rule = "" if classifier.card.costs is None else "; the first class is the one expected to cost least"
    typer.echo(f"{uri}: {len(pictures)} pictures{rule}", err=True)
    write_rows([row for prediction in predictions for row in prediction.rows()], wanted, output_console())
    unread = [prediction for prediction in predictions if prediction.problem]
    for prediction in unread:
        typer.echo(f"could not be read: {prediction.name}: {prediction.problem}", err=True)
    if len(unread) == len(predictions):
        raise typer.Exit(1)


@app.command()
def pretrain(spec: SpecFile, overrides: Overrides = None) -> None:
    """Trains a backbone on a source data set and registers it, for sweeps to start from."""
    from search_spaces.loading import load_pretrain_spec
    from tuner.networks.pretrain_run import run_pretrain
    from tuner.progress import Progress

    with Progress() as progress:
        outcome = run_pretrain(load_pretrain_spec(spec, overrides or []), progress=progress)
    known = "" if outcome.is_new else " (trained before by the same recipe; nothing to do)"
    typer.echo(f"{outcome.model_uri}: validation accuracy {outcome.accuracy:.4f}{known}")
    typer.echo(f"Use it in a spec:  model.weights: {outcome.model_uri}")


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine's loopback.")] = 5000,
) -> None:
    """Opens MLflow's web page of all sweeps, on loopback."""
    from tuner.paths import HomePaths, sqlite_file
    from tuner.tracking.access import without_password

    home = HomePaths.from_env()
    uri = home.tracking_uri()
    if uri.startswith(("http://", "https://")):
        typer.echo(f"MLflow runs at {without_password(uri)}: open it in a browser.")
        return
    database = sqlite_file(uri)
    if database is not None and not database.exists():
        raise InputError(f"ui: there is nothing to show at {uri} yet; run a sweep first, such as `thaw sweep digits`")
    typer.echo(f"MLflow: http://127.0.0.1:{port}   (Ctrl-C ends it)")
    options = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    if location := home.artifact_location(uri):
        options += ["--default-artifact-root", location]
    # MLflow's runner of jobs judges language models: eight processes that nothing here uses.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "ui", *options], environment)


@spec_app.command("schema")
def spec_schema() -> None:
    """Prints the JSON schema of a sweep's spec."""
    from search_spaces.loading import spec_schema_text

    sys.stdout.write(spec_schema_text())


@spec_app.command("reference")
def spec_reference() -> None:
    """Prints every field of a sweep's spec with its default, as Markdown."""
    from search_spaces.reference import reference_text

    sys.stdout.write(reference_text())


@spec_app.command("new")
def spec_new(
    source: Annotated[str, typer.Argument(help="A folder of class folders, or a source as in a spec.")],
    out: Annotated[Path | None, typer.Option(help="The file to write; by default standard output.")] = None,
    labels: Annotated[str, typer.Option(help=LABELS)] = "single",
    label_separator: Annotated[str, typer.Option(help=LABEL_SEPARATOR)] = "|",
) -> None:
    """Writes a spec that is fitted to a set of pictures, with the reason for each choice."""
    from search_spaces.fitting import spec_text
    from tuner.pictures.facts import facts_of

    text = spec_text(facts_of(source, separator_of(labels, label_separator)))
    if out is None:
        sys.stdout.write(text)
        return
    if out.exists():
        raise InputError(f"--out: {out} is there already; name another file, or remove it")
    out.write_text(text, encoding="utf-8")
    typer.echo(f"{out}: change it as you like, then  thaw sweep {out}")


@spec_app.command("presets")
def spec_presets() -> None:
    """Lists the specs that come with Thaw."""
    from search_spaces.loading import preset_names

    for name in preset_names():
        typer.echo(name)


def main() -> None:
    """Runs the command; bad input ends in one clear line and exit code 2."""
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
    except RuntimeError as error:
        from trainables.files.outages import StorageAwayError
        from tuner.cluster.lanes import LaneError, LanesLostError
        from tuner.outcomes import SweepFailedError

        if not isinstance(error, SweepFailedError | LaneError | LanesLostError | StorageAwayError):
            raise
        _complain(str(error), 1)


def _complain(message: str, code: int) -> NoReturn:
    typer.echo(f"thaw: {message}", err=True)
    sys.exit(code)


def _show_plan(spec: SweepSpec) -> None:
    from search_spaces.listing import trials_in_all
    from search_spaces.loading import dump_spec
    from tuner.commands.running import output_console
    from tuner.networks.material import materials_of
    from tuner.networks.planning import plan_sweep
    from tuner.networks.preparing import check_quickly
    from tuner.networks.pricing import Pricing
    from tuner.paths import HomePaths
    from tuner.progress import Progress
    from tuner.report.output import show_plan

    home = HomePaths.from_env()
    check_quickly(spec, home)
    with Progress() as progress:
        spec, data, networks, space = plan_sweep(spec, home, progress, pretrains=False)
    cuts = {name: network.cuts for name, network in networks.items()}
    # What is measured is not known before lanes are up; features of the default precision are the larger ones.
    materials = materials_of(spec, networks, data)
    device: Literal["cpu", "cuda"] = "cuda" if spec.budget.device == "cuda" else "cpu"
    pricing = Pricing(spec, space, materials, device)
    show_plan(data, cuts, dump_spec(spec), pricing, output_console())
    num_trials = trials_in_all(spec, space)
    output_console().print(f"Trials: {'as many as the budget allows' if num_trials is None else num_trials}.")
