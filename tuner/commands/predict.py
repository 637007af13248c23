"""``thaw predict``: what pictures show, by a registered model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuner.commands.arguments import FormatName


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
