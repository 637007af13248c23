"""Intervals against published examples, against each other where they must agree, and against repeated samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainables.training.auroc import class_areas
from tuner.report.clusters import Answers, effective_number
from tuner.report.intervals import (
    _independent,
    auroc_interval,
    mean_cost_interval,
    mean_recall_interval,
    metric_intervals,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_of_published_examples(correct: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_interval_holds_the_share_and_mirrors(case: tuple[int, int]) -> None:
    correct, total = case
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
    mirrored = wilson_interval(total - correct, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_an_impossible_count_has_no_interval(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match="there is no interval"):
        wilson_interval(correct, total)


def standard_error(area: float, num_positive: int, num_negative: int) -> float:
    """Of an area under the ROC curve by Hanley and McNeil (1982), equation 2."""
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (num_positive - 1) * (q1 - area**2) + (num_negative - 1) * (q2 - area**2)
    return math.sqrt(variance / (num_positive * num_negative))


@pytest.mark.parametrize("area", [0.5, 0.8932, 1.0])
def test_the_ends_of_an_area_are_where_its_own_spread_just_reaches_it(area: float) -> None:
    """With as many positive pictures as negative ones, Newcombe's spread is Hanley and McNeil's."""
    low, high = auroc_interval([area], [40], [40])
    assert area - low == pytest.approx(1.959964 * standard_error(low, 40, 40), abs=1e-6)
    assert high - area == pytest.approx(1.959964 * standard_error(high, 40, 40), abs=1e-6)
    assert 0 < low < area <= high <= 1


def test_an_area_of_one_of_few_pictures_is_not_sure() -> None:
    assert auroc_interval([1.0], [10], [10])[0] < 0.9
    assert auroc_interval([1.0], [1000], [1000])[0] > 0.99
    mirrored = [1 - end for end in auroc_interval([0.1], [30], [20])]
    assert auroc_interval([0.9], [30], [20])[::-1] == pytest.approx(mirrored)
    three = [0.9, 0.8, 0.7]
    with_none = auroc_interval([*three, math.nan], [20, 20, 20, 0], [40, 40, 40, 60])
    assert with_none == auroc_interval(three, [20] * 3, [40] * 3)


def test_nineteen_intervals_of_twenty_hold_the_true_area() -> None:
    """Two normal classes, 25 and 15 pictures; and three, whose mean area is taken from a large sample."""
    rng = np.random.default_rng(0)
    truth = 0.5 * (1 + math.erf(2.0 / 2))  # of normal scores whose means are two standard deviations apart

    def sample(sizes: tuple[int, ...], means: np.ndarray) -> list[float]:
        labels = np.repeat(np.arange(len(sizes)), sizes)
        scores = torch.from_numpy(rng.normal(means[labels]))
        return class_areas(scores, torch.from_numpy(labels)).tolist()

    def coverage(sizes: tuple[int, ...], means: np.ndarray, true_area: float) -> float:
        rest = [sum(sizes) - size for size in sizes]
        intervals = [auroc_interval(sample(sizes, means), sizes, rest) for _ in range(400)]
        return float(np.mean([low <= true_area <= high for low, high in intervals]))

    two = np.array([[0.0, 0.0], [-math.sqrt(2), math.sqrt(2)]])  # the margin's deviation is the root of two
    assert 0.93 <= coverage((25, 15), two, truth) <= 0.995
    three = 1.5 * np.eye(3)
    assert coverage((12, 12, 12), three, float(np.mean(sample((4000, 4000, 4000), three)))) >= 0.94


def test_a_rare_class_that_is_hard_among_easy_ones_is_as_unsure_as_it_is() -> None:
    """Five pictures of a class whose area is 0.65, beside two classes that nobody mistakes."""
    rng = np.random.default_rng(0)
    distance = math.sqrt(2) * 0.38532  # the normal quantile of 0.65
    held = []
    for _ in range(400):
        rare, rest = rng.normal(distance, size=(5, 1)), rng.normal(size=(1, 900))
        area = float((rare > rest).mean())
        low, high = auroc_interval([area, 1.0, 1.0], [5, 450, 450], [900, 455, 455])
        held.append(low <= (0.65 + 2) / 3 <= high)
    assert np.mean(held) >= 0.93


def shots_of_parts(
    rng: np.random.Generator, sizes: list[int], likeness: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Which shots are right: as their part is with a probability of ``likeness``, else each by itself; 0.8 of both."""
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    parts, shots = rng.random(len(sizes)) < 0.8, rng.random(len(clusters)) < 0.8
    return np.where(rng.random(len(clusters)) < likeness, parts[clusters], shots).astype(float), clusters


@pytest.mark.parametrize(
    ("sizes", "likeness", "least"),
    [
        ([5] * 20, 0.9, 0.94),
        ([5] * 40, 0.3, 0.94),
        ([8] * 12, 0.6, 0.94),
        ([1] * 100, 0.0, 0.93),
        ([50, *[1] * 20], 0.5, 0.94),
        ([100, *[1] * 200], 0.9, 0.94),
        ([40, *[3] * 20], 0.5, 0.94),
        ([max(1, 60 // k) for k in range(1, 31)], 0.5, 0.92),
    ],
    ids=str,
)
def test_nineteen_intervals_of_twenty_hold_the_true_share_where_shots_of_a_part_fail_together(
    sizes: list[int], likeness: float, least: float
) -> None:
    """Wilson's own interval is far too narrow for them."""
    rng = np.random.default_rng(0)
    held, naive = [], []
    for _ in range(600):
        values, clusters = shots_of_parts(rng, sizes, likeness)
        number, share = effective_number(values, clusters), float(values.mean())
        low, high = wilson_interval(share * number, number)
        held.append(low <= 0.8 <= high)
        low, high = wilson_interval(share * len(values), len(values))
        naive.append(low <= 0.8 <= high)
    assert np.mean(held) >= least
    if likeness >= 0.6:
        assert np.mean(naive) < 0.8


def test_the_effective_number_lies_between_that_of_groups_and_that_of_pictures() -> None:
    clusters = np.repeat(np.arange(10), 4)
    alternating = np.tile([1.0, 0.0], 20)
    assert effective_number(alternating, np.arange(40)) == 40
    assert 20 < effective_number(alternating, clusters) <= 40, "groups that are all alike hide little"
    by_group = np.repeat(np.arange(10) % 2, 4).astype(float)
    assert effective_number(by_group, clusters) == pytest.approx(10, abs=1.5)
    assert effective_number(np.ones(40), clusters) == pytest.approx(10), "without a mistake nobody knows"
    assert effective_number(by_group, np.zeros(40, int)) == 1
    assert effective_number(np.ones(10), np.array([0] * 6 + [1, 2, 3, 4])) == 100 / 40


def test_mean_recall_of_one_class_is_its_wilson_interval() -> None:
    assert mean_recall_interval([0.8], [10]) == pytest.approx(wilson_interval(8, 10))
    low, high = mean_recall_interval([0.8, 0.9], [100, 10])
    assert 0 < low < 0.85 < high < 1
    # The rare class decides how sure the mean is.
    assert high - low > wilson_interval(9, 10)[1] / 2 - wilson_interval(9, 10)[0] / 2


def test_equal_costs_give_the_error_rates_interval() -> None:
    assert mean_cost_interval(0.2, [[0, 1], [1, 0]], 50) == pytest.approx(wilson_interval(10, 50))
    assert mean_cost_interval(1.0, [[0, 5], [5, 0]], 50) == pytest.approx([5 * end for end in wilson_interval(10, 50)])
    # Nothing was seen to go wrong in 50 pictures; a mistake of 100 in every 20th would not surprise.
    assert mean_cost_interval(0.0, [[0, 1], [100, 0]], 50)[1] > 5


def answers(counts: list[list[int]], clusters: list[int] | None = None) -> Answers:
    """Of a confusion matrix, rows being true classes."""
    pairs = [(true, decided) for true, row in enumerate(counts) for decided, n in enumerate(row) for _ in range(n)]
    return Answers.of(*zip(*pairs, strict=True), range(len(pairs)) if clusters is None else clusters)


def test_every_interval_holds_its_figure() -> None:
    metrics = {"balanced_accuracy": 0.85, "auroc": 0.93, "cost": 0.4, "accuracy": 89 / 110}
    found = metric_intervals(metrics, answers([[80, 20], [1, 9]]), [0.93], [[0, 1], [8, 0]])
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx(wilson_interval(89, 110))
    for name, value in metrics.items():
        assert found.pop(f"{name}_low") < value < found.pop(f"{name}_high")
    assert not found
    ends = {f"{name}_{end}" for name in ("accuracy", "balanced_accuracy") for end in ("low", "high")}
    assert set(metric_intervals({}, answers([[1, 0], [0, 0]]), [math.nan])) == ends
    assert set(metric_intervals({"auroc": 0.7}, answers([[0, 0], [1, 3]]))) == {"accuracy_low", "accuracy_high"}


def test_every_interval_is_wider_where_pictures_are_shots_of_few_parts() -> None:
    metrics, costs = {"auroc": 0.93, "cost": 0.4}, [[0, 1], [8, 0]]
    counts = [[40, 20], [10, 30]]
    alone = metric_intervals(metrics, answers(counts), [0.93], costs)
    in_fives = metric_intervals(metrics, answers(counts, [place // 5 for place in range(100)]), [0.93], costs)
    for name in ("accuracy", "balanced_accuracy", "auroc", "cost"):
        assert in_fives[f"{name}_low"] < alone[f"{name}_low"]
        assert in_fives[f"{name}_high"] > alone[f"{name}_high"]


@pytest.mark.parametrize(("num_scenes", "num_classes", "likeness"), [(30, 5, 0.7), (40, 2, 0.9), (20, 10, 0.5)])
def test_groups_that_span_classes_make_balanced_accuracy_as_unsure_as_accuracy(
    num_scenes: int, num_classes: int, likeness: float
) -> None:
    """Scenes with one picture of each class: within a class no two belong together, and yet all err together."""
    rng = np.random.default_rng(0)
    true = np.tile(np.arange(num_classes), num_scenes)
    held = []
    for _ in range(300):
        values, clusters = shots_of_parts(rng, [num_classes] * num_scenes, likeness)
        decided = np.where(values > 0, true, (true + 1) % num_classes)
        found = metric_intervals({}, Answers.of(true, decided, clusters), [math.nan] * num_classes)
        held.append(found["balanced_accuracy_low"] <= 0.8 <= found["balanced_accuracy_high"])
        assert found["balanced_accuracy_low"] <= found["accuracy_low"] + 5e-3
        assert found["balanced_accuracy_high"] >= found["accuracy_high"] - 5e-3
    assert np.mean(held) >= 0.94


def test_pictures_of_a_class_and_of_the_others_are_counted_by_groups() -> None:
    """Two groups of class 0, of 4 and 2; one of both classes, of 1 and 3; a lone picture of class 2."""
    true, clusters = [0] * 7 + [1] * 3 + [2], [0] * 4 + [1] * 2 + [2] + [2] * 3 + [3]
    positive, negative = _independent(Answers.of(true, true, clusters), 4)
    assert positive == pytest.approx([7**2 / (16 + 4 + 1), 1, 1, 0])
    assert negative == pytest.approx([4**2 / (9 + 1), 8**2 / (16 + 4 + 1 + 1), 10**2 / (16 + 4 + 16), 0])
