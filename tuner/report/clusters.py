"""How many independent pictures a test side is worth, where several show one part, patient or scene.

In: what was decided for each picture, and which were dealt to sides as one. Out: a number of pictures, to be put in
place of their count. Shots of one part are right or wrong together, so counting them overstates how sure a figure is.

The number is Korn and Graubard's (1998, "Confidence intervals for proportions with small expected number of positive
counts estimated from survey data", Survey Methodology 24): by the variance between groups, and by Student's t for how
few of these there are. Wilson's interval of it is among those that Dean and Pagano (2015, Journal of Survey Statistics
and Methodology 3) found to hold what they promise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.report.spread import Z_95, student_95

NUM_CLUSTERS = "num_groups"
"""Among the test side's metrics where its pictures are not independent: groups, and pictures of no group."""


@dataclass(frozen=True)
class Answers:
    """What was decided for the pictures of a side.

    Attributes:
        true: Their classes [N].
        decided: What each was taken for [N].
        clusters: The number of what each belongs to [N]: a group, or a picture and its copies.
    """

    true: NDArray[np.int64]
    decided: NDArray[np.int64]
    clusters: NDArray[np.int64]

    @classmethod
    def of(cls, true: Any, decided: Any, clusters: Any) -> Answers:
        """From sequences of one length."""
        return cls(np.asarray(true, np.int64), np.asarray(decided, np.int64), np.asarray(clusters, np.int64))

    @property
    def are_right(self) -> NDArray[np.float64]:
        """1 where a picture was taken for what it is, else 0 [N]."""
        return (self.true == self.decided).astype(float)

    @property
    def num_clusters(self) -> int:
        """Groups and pictures of no group."""
        return len(np.unique(self.clusters))

    @property
    def do_clusters_span_classes(self) -> bool:
        """Whether some group has pictures of several classes."""
        return len(np.unique(np.stack([self.clusters, self.true]), axis=1).T) > self.num_clusters

    def rows_by_class(self) -> list[NDArray[np.int64]]:
        """The pictures of each class that has some."""
        order = np.argsort(self.true, kind="stable")
        _, starts = np.unique(self.true[order], return_index=True)
        return list(np.split(order, starts[1:]))

    @property
    def are_clustered(self) -> bool:
        """Whether any picture belongs to another."""
        return self.num_clusters < len(self.clusters)


def effective_number(
    values: NDArray[np.float64],
    clusters: NDArray[np.int64],
    weights: NDArray[np.float64] | None = None,
    centres: NDArray[np.float64] | None = None,
) -> float:
    """So many independent values would say as much of their mean: at most all, at least what whole groups would.

    The variance is the jackknife's over groups, which a large one does not pull its own way. Few groups may look more
    alike than they are, so two half ones are added, one wholly 1 and one wholly 0: without these, 95% intervals held
    the truth in 91 of 100 samples of twelve groups. Where all values are alike, or there is one group, they do not tell
    how groups differ, and a group counts as if it were wholly one or the other.

    Args:
        values: In [0, 1], one per picture.
        clusters: To which group each belongs.
        weights: Of each in the mean; None: equal ones.
        centres: What each is expected to be; None: the mean.
    """
    shares = np.full(len(values), 1 / len(values)) if weights is None else weights / weights.sum()
    _, places = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(places, weights=shares)
    most, least = 1 / float((shares**2).sum()), 1 / float((sizes**2).sum())
    mean = float(shares @ values)
    if len(sizes) == len(values):
        return float(len(values)) if weights is None else most
    if len(sizes) == 1 or not 0 < mean < 1:
        return max(1.0, least)
    half = 1 / len(sizes) / 2
    sizes, whole = np.append(sizes, (half, half)), 1 + 2 * half
    mean = (mean + half) / whole
    beyond = shares * (values - (mean if centres is None else centres))
    residuals = np.append(np.bincount(places, weights=beyond), (half * (1 - mean), -half * mean))
    variance = float(((residuals / (1 - sizes / whole)) ** 2).sum()) / whole**2
    degrees = max(1, int(whole**2 / float((sizes**2).sum())) - 1)
    found = (Z_95 / student_95(degrees)) ** 2 * mean * (1 - mean) / variance
    return min(most, max(1.0, least, found))
