"""Folds: every picture in one, classes spread evenly, groups whole."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.data.folds import assign_folds, check_folds
from trainables.errors import InputError

KEYS = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 3)), min_size=1, max_size=120)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=100), st.integers(2, 7), st.integers(0, 3))
def test_classes_are_spread_evenly(labels: list[int], num_folds: int, seed: int) -> None:
    keys = [f"picture {number}" for number in range(len(labels))]
    folds = assign_folds(keys, np.array(labels), num_folds, seed)
    for label in set(labels):
        counts = Counter(dict.fromkeys(range(num_folds), 0))
        counts.update(folds[np.array(labels) == label].tolist())
        assert max(counts.values()) - min(counts.values()) <= 1
    sizes = np.bincount(folds, minlength=num_folds)
    assert sizes.max() - sizes.min() <= len(set(labels))


@given(KEYS, st.integers(2, 5))
def test_groups_stay_together_in_any_order(pictures: list[tuple[int, int]], num_folds: int) -> None:
    keys = [f" group {key}" for key, _ in pictures]
    labels = np.array([label for _, label in pictures])
    folds = assign_folds(keys, labels, num_folds, 0)
    of_group = defaultdict(set)
    for key, fold in zip(keys, folds.tolist(), strict=True):
        of_group[key].add(fold)
    assert all(len(each) == 1 for each in of_group.values())
    backwards = assign_folds(keys[::-1], labels[::-1], num_folds, 0)
    np.testing.assert_array_equal(backwards[::-1], folds)


def test_uneven_groups_of_a_rare_class_are_spread() -> None:
    """40 pictures of one class in groups of 5, 8 of another in groups of 2: each fold gets a fourth of both."""
    keys = [f"a{number // 5}" for number in range(40)] + [f"b{number // 2}" for number in range(8)]
    labels = np.array([0] * 40 + [1] * 8)
    folds = assign_folds(keys, labels, 4, 0)
    for label, expected in ((0, 10), (1, 2)):
        assert np.bincount(folds[labels == label], minlength=4).tolist() == [expected] * 4


@given(KEYS, st.integers(2, 5))
def test_one_label_of_several_is_dealt_as_a_class(pictures: list[tuple[int, int]], num_folds: int) -> None:
    keys = [f"picture {number}" for number in range(len(pictures))]
    labels = np.array([label for _, label in pictures])
    folds = assign_folds(keys, labels[:, None] == np.arange(4), num_folds, 0)
    for label in range(4):
        assert np.ptp(np.bincount(folds[labels == label], minlength=num_folds)) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_several_labels_are_each_spread_evenly(seed: int) -> None:
    """300 pictures, labels from frequent to rare that come together by chance, a fifth of the pictures with none."""
    rng = np.random.default_rng(seed)
    labels = rng.random((300, 5)) < (0.5, 0.2, 0.1, 0.05, 0.03)
    folds = assign_folds([f"picture {number}" for number in range(300)], labels, 5, seed)
    counts = np.array([labels[folds == fold].sum(0) for fold in range(5)])
    assert (np.ptp(counts, 0) <= (6, 4, 3, 2, 2)).all(), counts
    assert np.ptp(np.bincount(folds, minlength=5)) <= 6


def test_another_seed_deals_differently() -> None:
    keys, labels = [str(number) for number in range(60)], np.arange(60) % 2
    first, again, other = (assign_folds(keys, labels, 5, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_what_cannot_be_dealt_is_refused() -> None:
    labels = np.array([0] * 9 + [1] * 6)
    keys = [str(number) for number in range(9)] + ["x", "x", "y", "y", "z", "z"]
    check_folds(keys, labels, ("a", "b"), 3, has_val=False)
    with pytest.raises(InputError, match=r"data\.folds: 4, but class 'b' has 3 pictures, or groups.*at most 3 folds"):
        check_folds(keys, labels, ("a", "b"), 4, has_val=False)
    with pytest.raises(InputError, match=r"validation side of its own.*data\.split\.source to ignore"):
        check_folds(keys, labels, ("a", "b"), 3, has_val=True)
    with pytest.raises(InputError, match=r"class 'c' has 0 pictures.*beside the test side: add pictures"):
        check_folds(keys, labels, ("a", "b", "c"), 3, has_val=False)
    several = np.column_stack([labels == 0, labels == 1, np.ones(15, dtype=bool)])
    check_folds(keys, several, ("a", "b", "any"), 3, has_val=False)
    with pytest.raises(InputError, match=r"data\.folds: 4, but class 'b' has 3 pictures, or groups"):
        check_folds(keys, several, ("a", "b", "any"), 4, has_val=False)
