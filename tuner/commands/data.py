"""``thaw data`` and ``thaw augment``: what the pictures are like, and what the network will be shown of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainables.errors import InputError
from tuner.commands.arguments import ImageSize, Labels, LabelSeparator, Overrides, Source, SpecOrSource, file_to_write

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.pictures.inspecting import Inspection

data_app = typer.Typer(help="Pictures: what a set of them is like.", no_args_is_help=True)
augment_app = typer.Typer(help="Augmentation: what the network is shown.", no_args_is_help=True)

_MOST_PAIRS = 5
_OUT = "Also writes a contact sheet there, as PNG."


@data_app.command("inspect")
def inspect_command(
    source: Source,
    group_pattern: Annotated[
        str | None, typer.Option(help="Regular expression on file names; see data.group_pattern of a spec.")
    ] = None,
    image_size: ImageSize = 224,
    labels: Labels = "single",
    label_separator: LabelSeparator = "|",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of a spec's data: --set split.test=0.2"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help=_OUT)] = None,
    format_: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
) -> None:
    """Counts classes and sides, finds look-alikes across sides, long pictures and bad files, and says what to do."""
    from rich.console import Console

    from search_spaces.data_spec import DataSpec
    from search_spaces.loading import parse_spec
    from trainables.data.sources import as_source
    from tuner.paths import HomePaths
    from tuner.pictures.dealing import deal_data
    from tuner.pictures.inspecting import inspect_data
    from tuner.pictures.sheets import sheet_of_classes
    from tuner.progress import Progress

    if format_ not in ("table", "json"):
        raise InputError(f"--format: {format_!r} is neither table nor json")
    out = None if out is None else file_to_write(out, "--out", ".png", replaces=True)
    asked = {
        "source": as_source(source),
        "group_pattern": group_pattern,
        "image_size_px": image_size,
        "labels": labels,
        "label_separator": label_separator,
    }
    spec = parse_spec(asked, DataSpec, "data inspect", overrides or [])
    with Progress() as progress:
        dealt = deal_data(spec, HomePaths.from_env(), progress.counted)
        found = inspect_data(spec, dealt, progress.counted)
    console = Console()
    if format_ == "json":
        console.out(found.to_json(), highlight=False)
    else:
        _show(found, console)
    if out is not None:
        sheet_of_classes(dealt).save(out)
        typer.echo(f"Contact sheet: {out}", err=True)


@augment_app.command()
def preview(
    spec: SpecOrSource,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Where the contact sheet goes, as PNG.")] = Path("augmentation.png"),
) -> None:
    """Writes a contact sheet of what the network will see: each policy of the spec, at each end of its magnitudes."""
    from tuner.commands.given import load_or_fit
    from tuner.paths import HomePaths
    from tuner.pictures.dealing import deal_data
    from tuner.pictures.sheets import sheet_of_policies
    from tuner.progress import Progress

    out = file_to_write(out, "--out", ".png", replaces=True)
    loaded = load_or_fit(spec, overrides or [])
    with Progress() as progress:
        dealt = deal_data(loaded.data, HomePaths.from_env(), progress.counted)
    sheet_of_policies(loaded, dealt).save(out)
    typer.echo(f"Contact sheet: {out}")


def _show(found: Inspection, console: Console) -> None:
    from trainables.config import SPLIT_NAMES
    from tuner.report.output import build_table

    rows = [[each.name, *each.counts.values(), each.total, each.brightness, each.contrast] for each in found.classes]
    rows.append(["all", *(found.sizes[side] for side in SPLIT_NAMES), found.num_pictures, None, None])
    columns = ["class", *SPLIT_NAMES, "pictures", "brightness", "contrast"]
    console.print(build_table(columns, rows, title=found.source))
    for line in found.lines():
        console.print(f"- {line}", highlight=False, markup=False)
    for pair in found.look_alikes[:_MOST_PAIRS]:
        first, second = pair.sides
        console.print(f"    {pair.first} ({first}), {pair.second} ({second})", highlight=False, markup=False)
