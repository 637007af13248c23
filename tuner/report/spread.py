"""How far a mean over folds or seeds may be trusted: a standard error, and what is to be said beside it.

In: standard deviations as `trainables.training.replicas` reports them. Out: standard errors and sentences. Pure.

Folds are not independent: any two of them learn mostly from the same pictures, so that the spread between folds, as
if they were, says too little. No estimate of the variance of k-fold cross-validation is unbiased for all distributions
(Bengio & Grandvalet 2004, JMLR 5). What is used here is the correction of Nadeau & Bengio (2003, Machine Learning 52,
section 3): s^2 (1/k + n_val / n_train) in place of s^2 / k, with n_val / n_train = 1 / (k - 1). It was derived for
random splits and is usual for folds too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from trainables.config import TrialConfig
from trainables.jobs import SPREAD

Z_95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95% interval."""
ERROR = "_se"
"""Behind the name of a validation score: its standard error."""


def standard_error(std: float, num_folds: int, num_repeats: int) -> float:
    """Of a mean over folds (each the mean of its repeats), or over seeds where there are no folds.

    Over seeds it tells how the mean would differ with other seeds on the same pictures, not with other pictures.
    """
    return std * math.sqrt(1 / num_folds + 1 / (num_folds - 1) if num_folds else 1 / num_repeats)


def with_errors(scores: Mapping[str, float], config: TrialConfig) -> dict[str, float]:
    """Validation scores of an epoch, and a standard error beside each that has a standard deviation."""
    errors = {
        name.removesuffix(SPREAD) + ERROR: standard_error(value, config.data.folds, config.repeats)
        for name, value in scores.items()
        if name.endswith(SPREAD)
    }
    return {**scores, **errors}


def student_95(degrees: int) -> float:
    """Quantile of Student's t for a two-sided 95% interval: what `Z_95` is where a spread is known from few values."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))


def half_width(error: float, config: TrialConfig) -> float:
    """Of the 95% interval of a mean over folds, or seeds, with this standard error."""
    if not error:
        return 0.0
    return error * student_95(max(2, config.data.folds or config.repeats) - 1)


def explanation(config: TrialConfig, *, has_test: bool) -> str | None:
    """What the ± of a trial's figures means, for people; None where there is none."""
    folds, repeats = config.data.folds, config.repeats
    if folds:
        seeds = f", {repeats} seeds each" if repeats > 1 else ""
        return (
            f"Validation figures are means over {folds} folds{seeds}; ± is the standard error, corrected for folds "
            "that share what they learn from (Nadeau & Bengio 2003): a guide, since folds are not independent. The "
            f"champion and the baselines were fitted again on all these pictures{', and then tested once' * has_test}."
        )
    if repeats > 1:
        return (
            f"Validation figures are means over {repeats} seeds; ± is their standard error: what other seeds would "
            f"change, not what other pictures would. The first seed's model is {'tested and ' * has_test}kept."
        )
    return None
