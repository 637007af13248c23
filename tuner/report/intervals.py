"""How sure a figure of the test side is: 95% intervals that stay honest where few pictures were tested.

In: counts and a figure. Out: two ends. All are in the manner of Wilson's: none shrinks to a point because no mistake
was seen, as a bootstrap's would. Where a bound must be used, the interval is wider than needed, never narrower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

Z_95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95% interval."""

_HALVINGS = 60
Interval = tuple[float, float]


def wilson_interval(num_correct: float, num_total: int, z: float = Z_95) -> Interval:
    """Confidence interval of a proportion (Wilson 1927, "Probable inference, the law of succession").

    Unlike the textbook interval it stays within 0 and 1, and says something at 0 and at 1.

    Raises:
        ValueError: ``num_total`` is not positive, or ``num_correct`` is not within it.
    """
    if num_total < 1 or not 0 <= num_correct <= num_total:
        raise ValueError(f"{num_correct} correct of {num_total}: there is no interval for that")
    share, square = num_correct / num_total, z * z
    centre = share + square / (2 * num_total)
    spread = z * math.sqrt(share * (1 - share) / num_total + square / (4 * num_total * num_total))
    scale = 1 + square / num_total
    # The ends are exact where everything or nothing is right; rounding would leave 1e-17.
    low = 0.0 if num_correct == 0 else (centre - spread) / scale
    high = 1.0 if num_correct == num_total else (centre + spread) / scale
    return low, high


def mean_recall_interval(counts: Sequence[Sequence[int]]) -> Interval:
    """Interval of balanced accuracy, the mean recall of the classes that have pictures.

    Each class's Wilson interval, put together by "square and add" (Newcombe 1998; MOVER, Zou & Donner 2008).

    Args:
        counts: Pictures by true class (rows) and by decision (columns).
    """
    recalls, below, above = [], 0.0, 0.0
    for true, row in enumerate(counts):
        if total := sum(row):
            low, high = wilson_interval(row[true], total)
            recalls.append(row[true] / total)
            below += (recalls[-1] - low) ** 2
            above += (high - recalls[-1]) ** 2
    mean = sum(recalls) / len(recalls)
    return max(0.0, mean - math.sqrt(below) / len(recalls)), min(1.0, mean + math.sqrt(above) / len(recalls))


def auroc_interval(area: float, class_sizes: Sequence[int], z: float = Z_95) -> Interval:
    """Interval of an area under the ROC curve, as `trainables.training.auroc.auroc` defines it.

    Two classes: method 5 of Newcombe (2006, "Confidence intervals for an effect size measure based on the Mann-Whitney
    statistic, part 2", Statistics in Medicine 25), which solves for the areas whose own spread just reaches what was
    found. More classes: the same with the mean of the classes' standard errors, which is the most that the standard
    error of their mean can be, however they hang together.

    Args:
        area: What was found, in [0, 1].
        class_sizes: Pictures by class.
        z: Quantile of the standard normal distribution.
    """
    total = sum(class_sizes)
    sizes = [size for size in class_sizes if 0 < size < total]
    if len(class_sizes) == 2:  # noqa: PLR2004
        sizes = sizes[:1]  # the other class says the same

    def spread(truth: float) -> float:
        shape = (1 - truth) / (2 - truth) + truth / (1 + truth)
        factor = truth * (1 - truth) * (1 + (total / 2 - 1) * shape)
        return z * sum(math.sqrt(factor / (size * (total - size))) for size in sizes) / len(sizes)

    low = _root(lambda truth: area - truth <= spread(truth), 0.0, area)
    high = 1 - _root(lambda rest: 1 - rest - area <= spread(1 - rest), 0.0, 1 - area)
    return low, high


def _root(is_within: Callable[[float], bool], outside: float, inside: float) -> float:
    """Where ``is_within`` begins to hold between two ends, by halving."""
    for _ in range(_HALVINGS):
        middle = (outside + inside) / 2
        outside, inside = (outside, middle) if is_within(middle) else (middle, inside)
    return inside


def mean_cost_interval(mean: float, costs: Sequence[Sequence[float]], num_total: int) -> Interval:
    """Interval of a picture's mean cost: Wilson's, between the least and the largest cost there is.

    Nothing between two ends varies more, at the same mean, than what is always at one of them (Bhatia & Davis 2000), so
    the interval errs on the wide side; where every mistake costs the same it is Wilson's own. A costly mistake that was
    not seen in few pictures still counts.
    """
    least, most = min(map(min, costs)), max(map(max, costs))
    share = min(1.0, max(0.0, (mean - least) / (most - least)))
    low, high = wilson_interval(share * num_total, num_total)
    return least + low * (most - least), least + high * (most - least)


def metric_intervals(
    metrics: Mapping[str, float], counts: Sequence[Sequence[int]], costs: Sequence[Sequence[float]] | None
) -> dict[str, float]:
    """``NAME_low`` and ``NAME_high`` of the metrics that have an interval, beside accuracy.

    Macro F1 and the loss have none that would be honest when few pictures were tested.

    Args:
        metrics: Of the side.
        counts: Its pictures by true class (rows) and by decision (columns).
        costs: By true class and by decision; None where mistakes have none.
    """
    sizes = [sum(row) for row in counts]
    found = {"balanced_accuracy": mean_recall_interval(counts)}
    if "auroc" in metrics:
        found["auroc"] = auroc_interval(metrics["auroc"], sizes)
    if costs is not None and "cost" in metrics:
        found["cost"] = mean_cost_interval(metrics["cost"], costs, sum(sizes))
    return {
        f"{name}_{end}": value for name, ends in found.items() for end, value in zip(("low", "high"), ends, strict=True)
    }
