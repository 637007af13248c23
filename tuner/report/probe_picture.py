"""Probe accuracy by depth in one picture, and beside it what trials reached that trained the rest.

First a typed record of what will be drawn, then the drawing: tests compare the record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search_spaces.seeding import best_depth
from tuner.networks.probing import as_depths
from tuner.records.champion import best_epoch
from tuner.records.journal import TrialRecord
from tuner.report.sweep_picture import two_panes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"probe": "#334155", "best": "#c2410c", "trial": "#94a3b8", "band": "#e2e8f0"}
_LONGEST_NAME = 24


@dataclass(frozen=True)
class ProbePicture:
    """What is drawn; all sequences but the trials' are by depth, from 1.

    Attributes:
        title: Above the picture.
        stages: Names.
        accuracies: Shares of all pictures told right, each by a probe that had not seen it.
        errors: Their standard errors.
        val_accuracies: The same of the validation pictures alone; None where there are none.
        log_me: Log evidence.
        best: The depth that seeding took.
        trials: Pairs of depth (from 0) and best validation accuracy, one per trial that has any.
    """

    title: str
    stages: tuple[str, ...]
    accuracies: tuple[float, ...]
    errors: tuple[float, ...]
    val_accuracies: tuple[float | None, ...]
    log_me: tuple[float, ...]
    best: int
    trials: tuple[tuple[int, float], ...] = ()


def compose_probe(title: str, probes: Sequence[Mapping[str, Any]], trials: Sequence[TrialRecord] = ()) -> ProbePicture:
    """The record of a probe, as the journal has it, and of the trials that followed."""
    accuracies = tuple(float(probe["accuracy"]) for probe in probes)
    reached = [(trial.params["freeze_depth"], best_epoch(trial, "val/accuracy", "max")) for trial in trials]
    return ProbePicture(
        title=title,
        stages=tuple(probe["stage"] for probe in probes),
        accuracies=accuracies,
        errors=tuple(
            math.sqrt(accuracy * (1 - accuracy) / max(1, probe["num_judged"]))
            for accuracy, probe in zip(accuracies, probes, strict=True)
        ),
        val_accuracies=tuple(probe["probe_accuracy"] for probe in probes),
        log_me=tuple(math.nan if probe["log_me"] is None else probe["log_me"] for probe in probes),
        best=best_depth(as_depths(probes)),
        trials=tuple((depth, epoch["val/accuracy"]) for depth, epoch in reached if epoch is not None),
    )


def draw_probe(picture: ProbePicture) -> bytes:
    """The picture as PNG."""
    return two_panes(
        picture.title, 4.6, lambda axes: _draw_accuracies(axes, picture), lambda axes: _draw_evidence(axes, picture)
    )


def _draw_accuracies(axes: Axes, picture: ProbePicture) -> None:
    depths = range(1, len(picture.stages) + 1)
    percent = [100 * value for value in picture.accuracies]
    low = [value - 100 * error for value, error in zip(percent, picture.errors, strict=True)]
    high = [value + 100 * error for value, error in zip(percent, picture.errors, strict=True)]
    axes.fill_between(depths, low, high, color=_COLOURS["band"], label="its standard error")
    axes.plot(depths, percent, color=_COLOURS["probe"], marker="o", label="probe, all pictures")
    val = [math.nan if value is None else 100 * value for value in picture.val_accuracies]
    if not all(map(math.isnan, val)):  # with folds no picture is for validation alone
        axes.plot(depths, val, color=_COLOURS["probe"], linewidth=1, linestyle=":", label="probe, validation alone")
    if picture.trials:
        xs, ys = zip(*picture.trials, strict=True)
        axes.scatter(
            xs, [100 * y for y in ys], s=22, color=_COLOURS["trial"], label="trials, validation", zorder=3, alpha=0.8
        )
    top = percent[picture.best - 1]
    axes.plot(picture.best, top, color=_COLOURS["best"], marker="o", markersize=10, zorder=4)
    axes.annotate(
        f"{top:.1f}%",
        (picture.best, top),
        textcoords="offset points",
        xytext=(0, 12),
        ha="center",
        color=_COLOURS["best"],
        fontweight="bold",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )
    axes.set(
        xlabel="freeze depth",
        ylabel="accuracy, %",
        title="A linear probe on frozen features; trials that train the rest",
    )
    axes.set_xlim(-0.3 if any(depth == 0 for depth, _ in picture.trials) else 0.7, len(picture.stages) + 0.3)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(y=0.12)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def _draw_evidence(axes: Axes, picture: ProbePicture) -> None:
    rows = range(1, len(picture.stages) + 1)
    colours = [_COLOURS["best" if row == picture.best else "probe"] for row in rows]
    axes.scatter(picture.log_me, rows, color=colours, s=36, zorder=3)
    axes.grid(axis="y", color=_COLOURS["band"])
    axes.set_axisbelow(True)
    names = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in picture.stages]
    axes.set_yticks(rows, [f"{row}  {name}" for row, name in zip(rows, names, strict=True)], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set(xlabel="LogME", title="Log evidence per picture and class")
