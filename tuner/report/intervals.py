"""How sure a figure of the test side is: 95% intervals that stay honest where few pictures were tested.

In: counts and a figure. Out: two ends. All are in the manner of Wilson's: none shrinks to a point because no mistake
was seen, as a bootstrap's would. Where a bound must be used, the interval is wider than needed, never narrower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tuner.report.clusters import Answers, effective_number
from tuner.report.spread import Z_95

_HALVINGS = 60
Interval = tuple[float, float]


def wilson_interval(num_correct: float, num_total: float, z: float = Z_95) -> Interval:
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


def mean_recall_interval(recalls: Sequence[float], numbers: Sequence[float]) -> Interval:
    """Interval of balanced accuracy, the mean recall of the classes that have pictures.

    Each class's Wilson interval, put together by "square and add" (Newcombe 1998; MOVER, Zou & Donner 2008).

    Args:
        recalls: Of these classes.
        numbers: Of their independent pictures.
    """
    below, above = 0.0, 0.0
    for recall, number in zip(recalls, numbers, strict=True):
        low, high = wilson_interval(recall * number, number)
        below += (recall - low) ** 2
        above += (high - recall) ** 2
    mean = sum(recalls) / len(recalls)
    return max(0.0, mean - math.sqrt(below) / len(recalls)), min(1.0, mean + math.sqrt(above) / len(recalls))


def auroc_interval(
    areas: Sequence[float], positive: Sequence[float], negative: Sequence[float], z: float = Z_95
) -> Interval:
    """Interval of an area under the ROC curve, as `trainables.training.auroc` defines it.

    More than two classes: the mean of their lower and that of their upper ends, which is as wide as the interval of
    their mean can be, however they hang together.

    Args:
        areas: As `class_areas` has them: one of two classes, else one for each; NaN where there is none.
        positive: Independent pictures of each class.
        negative: Those of all others.
        z: Quantile of the standard normal distribution.
    """
    found = [
        _area_interval(area, num_positive, num_negative, z)
        for area, num_positive, num_negative in zip(areas, positive, negative, strict=len(areas) > 1)
        if not math.isnan(area)
    ]
    low, high = np.mean(found, axis=0).tolist()
    return low, high


def _area_interval(area: float, num_positive: float, num_negative: float, z: float) -> Interval:
    """Method 5 of Newcombe (2006, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic,
    part 2", Statistics in Medicine 25): the areas whose own spread just reaches what was found.
    """  # noqa: D205
    total = num_positive + num_negative

    def spread(truth: float) -> float:
        shape = (1 - truth) / (2 - truth) + truth / (1 + truth)
        factor = truth * (1 - truth) * (1 + (total / 2 - 1) * shape)
        return z * math.sqrt(factor / (num_positive * num_negative))

    low = _root(lambda truth: area - truth <= spread(truth), 0.0, area)
    high = 1 - _root(lambda rest: 1 - rest - area <= spread(1 - rest), 0.0, 1 - area)
    return low, high


def _root(is_within: Callable[[float], bool], outside: float, inside: float) -> float:
    """Where ``is_within`` begins to hold between two ends, by halving."""
    for _ in range(_HALVINGS):
        middle = (outside + inside) / 2
        outside, inside = (outside, middle) if is_within(middle) else (middle, inside)
    return inside


def mean_cost_interval(mean: float, costs: Sequence[Sequence[float]], num_total: float) -> Interval:
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
    metrics: Mapping[str, float],
    answers: Answers,
    areas: Sequence[float] = (),
    costs: Sequence[Sequence[float]] | None = None,
) -> dict[str, float]:
    """``NAME_low`` and ``NAME_high`` of the metrics that have an interval.

    Macro F1, the loss and average precisions have none that would be honest when few pictures were tested.

    Args:
        metrics: Of the side.
        answers: What was decided for its pictures.
        areas: Its `class_areas`; empty where pictures have several labels, which then has an interval of accuracy only.
        costs: By true class and by decision; None where mistakes have none.
    """
    are_right, clusters = answers.are_right, answers.clusters
    number = effective_number(are_right, clusters)
    found = {"accuracy": wilson_interval(float(are_right.mean()) * number, number)}
    if areas:
        found["balanced_accuracy"] = _balanced_interval(answers)
    if areas and "auroc" in metrics:
        found["auroc"] = auroc_interval(areas, *_independent(answers, max(2, len(areas))))
    if costs is not None and "cost" in metrics:
        paid = np.asarray(costs)[answers.true, answers.decided]
        least, most = min(map(min, costs)), max(map(max, costs))
        found["cost"] = mean_cost_interval(
            metrics["cost"], costs, effective_number((paid - least) / (most - least), clusters)
        )
    return {
        f"{name}_{end}": value for name, ends in found.items() for end, value in zip(("low", "high"), ends, strict=True)
    }


def _balanced_interval(answers: Answers) -> Interval:
    """By classes; where groups span these, which then err together, no narrower than that of the mean over groups."""
    are_right, rows = answers.are_right, answers.rows_by_class()
    recalls = [float(are_right[own].mean()) for own in rows]
    low, high = mean_recall_interval(recalls, [effective_number(are_right[own], answers.clusters[own]) for own in rows])
    if not answers.do_clusters_span_classes:
        return low, high
    weights, centres = np.empty(len(are_right)), np.empty(len(are_right))
    for own, recall in zip(rows, recalls, strict=True):
        weights[own], centres[own] = 1 / len(own), recall
    number = effective_number(are_right, answers.clusters, weights, centres)
    lower, higher = wilson_interval(sum(recalls) / len(recalls) * number, number)
    return min(low, lower), max(high, higher)


def _independent(answers: Answers, num_classes: int) -> tuple[list[float], list[float]]:
    """Pictures of each class, and of all others, as if those of one group were copies.

    How their ranks hang together is not known.
    """
    classes, codes = np.unique(answers.true, return_inverse=True)
    _, places = np.unique(answers.clusters, return_inverse=True)
    # Pictures by group and class, in order; sums of squares of them say how many each class is worth.
    keys, counts = np.unique(places * len(classes) + codes, return_counts=True)
    of_group, of_class = np.divmod(keys, len(classes))
    in_group, in_class = np.bincount(places), np.bincount(codes)
    squares = np.bincount(of_class, weights=counts.astype(float) ** 2)
    # (all - own)^2 of the groups that have some of the class; of the others it is all^2.
    others = float((in_group.astype(float) ** 2).sum()) + np.bincount(
        of_class, weights=(in_group[of_group] - counts) ** 2.0 - in_group[of_group] ** 2.0
    )
    positive, negative = np.zeros(num_classes), np.zeros(num_classes)
    positive[classes] = in_class**2 / squares
    negative[classes] = np.divide((len(codes) - in_class) ** 2, others, out=np.zeros(len(classes)), where=others > 0)
    return positive.tolist(), negative.tolist()
