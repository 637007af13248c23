"""How a metric is called and written, and which figures people are shown of a run.

In: names of metrics and a `Standing`. Out: words.
"""

from __future__ import annotations

from collections.abc import Mapping

from tuner.result import Standing
from tuner.spread import ERROR

_TITLES = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1", "auroc": "AUROC", "map": "mAP"}
_PERCENT = ("accuracy", "balanced_accuracy")
_UNBOUNDED = _SMALL_IS_GOOD = ("loss", "cost")
_SECONDS, _MANY_S = "s of training", 10


def bare(metric: str) -> str:
    """The metric without its side: ``val/auroc`` is ``auroc``."""
    return metric.removeprefix("val/")


def title(name: str) -> str:
    """What people call a metric."""
    return _TITLES.get(name, name)


def is_percent(name: str) -> bool:
    """Whether a metric is a share of pictures."""
    return name in _PERCENT


def is_bounded(name: str) -> bool:
    """Whether a metric lies between 0 and 1."""
    return name not in _UNBOUNDED


def is_small_good(name: str) -> bool:
    """Whether less of a metric is better."""
    return name in _SMALL_IS_GOOD


def written(name: str, value: float) -> str:
    """A metric's value for people."""
    return f"{100 * value:.1f}%" if is_percent(name) else f"{value:.4f}"


def interval(name: str, test: Mapping[str, float]) -> str:
    """A metric's 95% interval of the test side; empty where it has none."""
    if f"{name}_low" not in test:
        return ""
    low, high = test[f"{name}_low"], test[f"{name}_high"]
    return f"{100 * low:.1f} to {100 * high:.1f}%" if is_percent(name) else f"{low:.4f} to {high:.4f}"


def _with_error(name: str, val: Mapping[str, float]) -> str:
    """A validation metric's value, with its standard error where it is a mean over folds or seeds."""
    error = val.get(name + ERROR)
    if error is None:
        return written(name, val[name])
    if is_percent(name):
        return f"{100 * val[name]:.1f} ± {100 * error:.1f}%"
    return f"{val[name]:.4f} ± {error:.4f}"


def standing_columns(metric: str, *, has_test: bool) -> list[str]:
    """Titles of `standing_row`."""
    columns = ["", "val accuracy", "test accuracy", "95% interval", "test macro F1"]
    columns = columns if has_test else columns[:2]
    name = bare(metric)
    if name == "accuracy":
        return [*columns, _SECONDS]
    added = [f"val {title(name)}"]
    if has_test:
        # Macro F1 is among the columns already, and has no interval.
        added += [] if name == "macro_f1" else [f"test {title(name)}"]
        added += ["its interval"] if name in ("balanced_accuracy", "auroc", "cost") else []
    return [*columns, *added, _SECONDS]


def standing_row(label: str, standing: Standing, metric: str, *, has_test: bool) -> list[str]:
    """A run's figures: accuracy always, the metric that chose, and what it took."""
    val, test, name = standing.val, standing.test, bare(metric)
    row = {"": label, "val accuracy": _with_error("accuracy", val)}
    if standing.seconds is not None:
        row[_SECONDS] = f"{standing.seconds:.0f}" if standing.seconds >= _MANY_S else f"{standing.seconds:.1f}"
    if name in val:
        row[f"val {title(name)}"] = _with_error(name, val)
    if has_test and test:
        row["test accuracy"] = written("accuracy", test["accuracy"])
        row["95% interval"] = interval("accuracy", test)
        if name in test:
            row[f"test {title(name)}"] = written(name, test[name])
        row["test macro F1"] = f"{test['macro_f1']:.3f}"
        row["its interval"] = interval(name, test)
    return [row.get(column, "") for column in standing_columns(metric, has_test=has_test)]


def sentence(standing: Standing, metric: str) -> str:
    """A run's figures in words, for MLflow."""
    names = dict.fromkeys(("accuracy", bare(metric)))
    parts = []
    for name in names:
        if name in standing.val:
            error = standing.val.get(name + ERROR)
            spread = "" if error is None else f" ± {error:.4f}"
            parts.append(f"validation {title(name)} {standing.val[name]:.4f}{spread}")
    for name in names:
        if name in standing.test:
            ends = f"{name}_low", f"{name}_high"
            low, high = (standing.test.get(end) for end in ends)
            bounds = "" if low is None or high is None else f" (95% interval {low:.4f} to {high:.4f})"
            parts.append(f"test {title(name)} {standing.test[name]:.4f}{bounds}")
    if standing.seconds is not None:
        parts.append(f"{standing.seconds:.1f} s of training")
    return ", ".join(parts)
