"""Results on standard output: tables for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainables.errors import InputError
from tuner.report.figures import explanations, standing_columns, standing_row
from tuner.report.result import SweepResult
from tuner.tracking.access import without_password

if TYPE_CHECKING:
    import pandas as pd

    from trainables.backbones.graph import CutGraph
    from tuner.networks.pricing import Pricing
    from tuner.pictures.dealt import PreparedData

_MOST_ROWS = 8
_SCORES = ("number", "outcome", "reason", "epochs", "best_epoch", "seconds", "gflops", "predicted_gflops")


class Format(StrEnum):
    """How rows are written."""

    table = "table"
    csv = "csv"
    json = "json"


def named_format(name: str) -> Format:
    """The format that an option ``--format`` names.

    Raises:
        InputError: There is none of that name.
    """
    try:
        return Format(name)
    except ValueError:
        raise InputError(f"--format: {name!r} is none of table, csv, json") from None


def clean_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame's rows as plain Python values, None for what is not there."""
    return [
        {str(name): _clean(value) for name, value in row.items()} for row in frame.astype(object).to_dict("records")
    ]


def write_rows(rows: Sequence[Mapping[str, Any]], format_: Format, console: Console) -> None:
    """Writes rows of like keys; what is None is empty (CSV, table) or null (JSON)."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if format_ is Format.json:
        console.out(json.dumps(rows, indent=1), highlight=False)
        return
    if format_ is Format.csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        console.out(text.getvalue(), end="", highlight=False)
        return
    console.print(build_table(columns, [[row.get(column) for column in columns] for row in rows]))


def build_table(columns: Iterable[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> Table:
    """A table whose numbers are short and stand right."""
    rows = list(rows)
    table = Table(title=title and escape(title), title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    for position, column in enumerate(columns):
        numeric = all(isinstance(row[position], int | float | None) for row in rows)
        table.add_column(escape(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(_shown(value)) for value in row))
    return table


def show_result(result: SweepResult, console: Console) -> None:
    """The end of a sweep: its best trials, the champion's test result, the baselines, where to look further."""
    trials = clean_rows(result.trials)
    title = f"Best of {len(trials)} trials of sweep {result.name}"
    console.print(build_trials_table(trials[:_MOST_ROWS], result.metric, title))
    if result.champion is None:
        console.print(f"\nInterrupted. [bold]thaw resume {result.name}[/bold] goes on from here.")
        return
    champion = result.champion
    has_test = bool(champion.standing.test)
    standings = [("champion", champion.standing)]
    standings += [(standing.name.replace("_", " "), standing) for standing in result.baselines]
    rows = [standing_row(label, standing, result.metric, has_test=has_test) for label, standing in standings]
    console.print()
    console.print(build_table(standing_columns(result.metric, has_test=has_test), rows))
    if has_test:
        majority = champion.standing.test.get("majority_rate")
        if majority is not None:
            console.print(
                f"Always saying the largest class would be right for {100 * majority:.1f}% of the test pictures."
            )
        else:
            console.print("Accuracy is the share of pictures whose labels are all right; labels.csv has each label.")
    else:
        console.print("Nothing was tested: the pictures have no test side, so its figure above is that which chose it.")
    for line in [*explanations(champion), *_gains(result), *(result.reuse.sentences() if result.reuse else ())]:
        console.print(line, highlight=False, markup=False)
    console.print()
    if champion.model_uri is None:
        console.print(
            "The champion is not registered: MLflow did not answer. "
            f"[bold]thaw resume {result.name}[/bold] tries again."
        )
    else:
        console.print(f"Model {champion.model_uri} is [bold]{champion.alias}[/bold]: {champion.reason}.")
        name = champion.model_uri.removeprefix("models:/").rsplit("/", maxsplit=1)[0]
        use = escape(f"{_elsewhere(result)}thaw predict PICTURES --model {name}@{champion.alias}")
        console.print(f"Use it:       [bold]{use}[/bold]", highlight=False, soft_wrap=True)
    if result.untold:
        console.print(f"{result.untold} records wait for MLflow; the next resume or sweep of this name sends them.")
    console.print(f"Open MLflow:  [bold]{escape(_elsewhere(result))}thaw ui[/bold]", highlight=False, soft_wrap=True)
    console.print(f"{len(result.records)} trials in {result.seconds:.0f} s.", highlight=False)


def _elsewhere(result: SweepResult) -> str:
    """What commands must be told of an MLflow that the spec names and they do not read."""
    uri = result.tracking_uri
    if uri == os.environ.get("MLFLOW_TRACKING_URI") or uri == f"sqlite:///{result.home.mlflow_db}":
        return ""
    return f"MLFLOW_TRACKING_URI={shlex.quote(without_password(uri))} "


def show_plan(
    data: PreparedData, cuts: Mapping[str, CutGraph], spec_text: str, pricing: Pricing, console: Console
) -> None:
    """What ``--dry-run`` shows: the spec, the pictures by side and class, the stages, what trials cost and store."""
    console.out(spec_text, highlight=False)
    # With folds no picture is for validation alone.
    folds = data.config.folds
    counts = {side: each for side, each in data.counts.items() if not folds or side != "val"}
    names = [f"in {folds} folds" if folds and side == "train" else side for side in counts]
    rows: list[list[Any]] = [
        [name, *(side[name] for side in counts.values()), sum(side[name] for side in counts.values())]
        for name in data.config.class_names
    ]
    sizes = [data.size(side) for side in counts]  # a picture may have several labels, or none
    rows.append(["all", *sizes, sum(sizes)])
    console.print(build_table(["class", *names, "all"], rows, title="Pictures"))
    for bad in data.report.bad_files:
        console.print(f"set aside: {bad.name}: {bad.reason}", highlight=False, markup=False)
    for name, each in cuts.items():
        place = f" of {name}" if len(cuts) > 1 else ""
        console.print(_build_stages_table(each, place))
        console.print(build_outlook_table(pricing, name))
    if pricing.is_storing:
        console.print("A cut that is not stored is computed from the deepest stored one in front of it.")


def _build_stages_table(cuts: CutGraph, place: str) -> Table:
    stages: list[list[Any]] = [
        [depth, stage.name, stage.num_parameters, stage.flops / 1e6, " x ".join(map(str, stage.output_shape))]
        for depth, stage in enumerate(cuts.stages, start=1)
    ]
    stages.append(
        ["", f"{cuts.head.name} (head)", cuts.head.num_parameters, cuts.head.flops / 1e6, str(cuts.head.num_classes)]
    )
    title = f"Stages{place}; freeze_depth 1 freezes the first, and so on"
    return build_table(["depth", "stage", "parameters", "MFLOPs", "output"], stages, title=title)


def build_outlook_table(pricing: Pricing, backbone: str | None = None) -> Table:
    """What a whole trial computes at each depth of a backbone, what its features take, and which cuts it stores."""
    columns = ["depth", "GFLOP, no store", "first trial", "later trials", "kB/picture", "MB/view", "MB validation"]
    rows = [
        [
            outlook.depth,
            outlook.gflops_alone,
            outlook.gflops,
            outlook.gflops_again,
            outlook.bytes_per_picture / 1e3,
            outlook.train_bytes / 1e6,
            outlook.val_bytes / 1e6,
            ", ".join(map(str, outlook.stores["train"])) or "none",
            ", ".join(map(str, outlook.stores["val"])) or "none",
        ]
        for outlook in pricing.outlook(backbone)
    ]
    of_one = f"Cost of a whole trial of {backbone}" if pricing.has_several else "Cost of a whole trial"
    title = f"{of_one} by freeze_depth, with views of {pricing.usual_policy}; what is stored of its cuts"
    return build_table([*columns, "stores", "of validation"], rows, title=title)


def build_trials_table(result_rows: Sequence[Mapping[str, Any]], metric: str, title: str | None = None) -> Table:
    """Trials for reading: their scores, and in one column the settings in which they differ.

    Args:
        result_rows: From `tuner.records.trial_rows`.
        metric: What chose.
        title: Above the table.
    """
    params = [name for row in result_rows for name in row if name not in _SCORES and not name.startswith("val/")]
    varying = [name for name in dict.fromkeys(params) if len({str(row.get(name)) for row in result_rows}) > 1]
    rows = [
        [
            row["number"],
            row["outcome"].replace("_", " "),
            row["epochs"],
            row.get(metric),
            row.get("seconds"),
            row.get("gflops"),
            row.get("predicted_gflops"),
            ", ".join(f"{name} {_shown(row[name])}" for name in varying if row.get(name) is not None),
        ]
        for row in result_rows
    ]
    columns = ["trial", "outcome", "epochs", metric, "seconds", "GFLOP", "predicted", "settings"]
    return build_table(columns, rows, title=title)


def _gains(result: SweepResult) -> list[str]:
    """What transfer was worth, where a run from scratch stands beside it."""
    champion = result.champion
    scratch = next((standing for standing in result.baselines if standing.name == "from_scratch"), None)
    if champion is None or scratch is None or not scratch.test:
        return []
    points = 100 * (champion.standing.test["accuracy"] - scratch.test["accuracy"])
    return [f"Transfer gained {points:+.1f} points of test accuracy over the same network from scratch."]


def _clean(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
