"""A sweep in one picture: how its trials learnt, and what the champion reached beside the baselines.

First a typed record of what will be drawn, then the drawing: tests compare the record.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainables.config import TrialConfig
from trainables.jobs import SPREAD
from tuner.metric_names import bare, is_bounded, is_percent, title, written
from tuner.records.champion import best_epoch
from tuner.records.journal import TrialRecord
from tuner.report.result import Champion, Standing
from tuner.report.spread import ERROR, half_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"champion": "#c2410c", "other": "#334155", "stopped": "#cbd5e1", "majority": "#94a3b8"}


@dataclass(frozen=True)
class Curve:
    """One trial's metric by epoch (from 1)."""

    number: int
    values: tuple[float, ...]
    is_champion: bool
    is_whole: bool
    stds: tuple[float, ...] = ()  # over folds or seeds, where there are such


@dataclass(frozen=True)
class Bar:
    """One run's figure with its 95% interval; equal ends where there is none."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SweepPicture:
    """What is drawn.

    Attributes:
        title: Above the picture.
        metric: Name of the curves' metric.
        curves: One per trial that has epochs, the champion last.
        bars: The champion and the baselines.
        side: Which side the bars are of.
        figure: What the bars measure, without its side.
        majority_rate: Accuracy of always saying the largest class; None where nothing is tested, and for
            other figures.
    """

    title: str
    metric: str
    curves: tuple[Curve, ...]
    bars: tuple[Bar, ...]
    side: str
    figure: str
    majority_rate: float | None


def compose(
    title: str, trials: Sequence[TrialRecord], metric: str, mode: str, champion: Champion, baselines: Sequence[Standing]
) -> SweepPicture:
    """The record of a finished sweep."""
    best = champion.standing
    curves = [
        Curve(
            trial.number,
            tuple(epoch[metric] for epoch in trial.epochs if metric in epoch),
            trial.number == champion.number,
            trial.outcome == "completed",
            tuple(epoch[metric + SPREAD] for epoch in trial.epochs if metric + SPREAD in epoch),
        )
        for trial in trials
        if best_epoch(trial, metric, mode) is not None
    ]
    curves.sort(key=lambda curve: (curve.is_champion, curve.is_whole, curve.number))
    is_tested = bool(best.test)
    # A test side that shows one class, say, has no area under a curve.
    has_it = all(bare(metric) in (standing.test or standing.val) for standing in (best, *baselines))
    figure = bare(metric) if has_it else "accuracy"
    standings = [("champion", best), *((standing.name.replace("_", " "), standing) for standing in baselines)]
    return SweepPicture(
        title=title,
        metric=metric,
        curves=tuple(curves),
        bars=tuple(_bar(label, standing, figure, champion.config) for label, standing in standings),
        side="test" if is_tested else "validation",
        figure=figure,
        majority_rate=best.test.get("majority_rate") if is_tested and figure == "accuracy" else None,
    )


def _bar(label: str, standing: Standing, figure: str, config: TrialConfig) -> Bar:
    reached = standing.test or standing.val
    value, error = reached[figure], half_width(reached.get(f"{figure}{ERROR}", 0.0), config)
    low, high = value - error, value + error
    if is_bounded(figure):
        low, high = max(0.0, low), min(1.0, high)
    return Bar(label, value, reached.get(f"{figure}_low", low), reached.get(f"{figure}_high", high))


def draw(picture: SweepPicture) -> bytes:
    """The picture as PNG."""
    return two_panes(
        picture.title, 3.8, lambda axes: _draw_curves(axes, picture), lambda axes: _draw_bars(axes, picture)
    )


def two_panes(
    title: str, height_in: float, draw_left: Callable[[Axes], None], draw_right: Callable[[Axes], None]
) -> bytes:
    """A PNG of two plots side by side, ten inches wide."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height_in), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    figure.suptitle(title, fontweight="bold")
    draw_left(left)
    draw_right(right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(10)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _draw_curves(axes: Axes, picture: SweepPicture) -> None:
    for curve in picture.curves:
        kind = "champion" if curve.is_champion else "other" if curve.is_whole else "stopped"
        axes.plot(
            range(1, len(curve.values) + 1),
            curve.values,
            color=_COLOURS[kind],
            linewidth=2.5 if curve.is_champion else 1.1,
            marker="o",
            markersize=4 if curve.is_champion else 2,
            label=f"champion (trial {curve.number})" if curve.is_champion else None,
            alpha=1 if curve.is_champion else 0.8,
        )
        if curve.is_champion and len(curve.stds) == len(curve.values):
            lows, highs = zip(*((v - s, v + s) for v, s in zip(curve.values, curve.stds, strict=True)), strict=True)
            epochs = range(1, len(curve.values) + 1)
            axes.fill_between(epochs, lows, highs, color=_COLOURS[kind], alpha=0.15, linewidth=0, label="± one std")
    axes.set(xlabel="epoch", ylabel=picture.metric, title="Each line a trial; pale: stopped early")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)


def _draw_bars(axes: Axes, picture: SweepPicture) -> None:
    names = [bar.name for bar in picture.bars]
    scale = 100 if is_percent(picture.figure) else 1
    values = [scale * bar.value for bar in picture.bars]
    below = [scale * max(0.0, bar.value - bar.low) for bar in picture.bars]
    above = [scale * max(0.0, bar.high - bar.value) for bar in picture.bars]
    end = scale if is_bounded(picture.figure) else 1.05 * max(1e-9, *(bar.high for bar in picture.bars))
    colours = [_COLOURS["champion" if name == "champion" else "other"] for name in names]
    axes.barh(names, values, xerr=[below, above], color=colours, height=0.6, ecolor="#9ca3af", capsize=3)
    for row, bar in enumerate(picture.bars):
        text, ink = written(picture.figure, bar.value), "white" if bar.value * scale > 0.2 * end else _COLOURS["other"]
        axes.text(0.02 * end, row, text, va="center", color=ink, fontweight="bold")
    if picture.majority_rate is not None:
        label = f"always the largest class: {100 * picture.majority_rate:.1f}%"
        axes.axvline(100 * picture.majority_rate, color=_COLOURS["majority"], linestyle="--", label=label)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.16))
    unit = ", %" if is_percent(picture.figure) else ""
    axes.set(xlim=(0, end), xlabel=f"{picture.side} {title(picture.figure)}{unit}", title="Champion and baselines")
    axes.invert_yaxis()
