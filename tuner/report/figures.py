"""Which figures people are shown of a run.

In: names of metrics and a `Standing`. Out: words.
"""

from __future__ import annotations

from collections.abc import Mapping

from tuner.metric_names import bare, is_percent, title, written
from tuner.report.clusters import NUM_CLUSTERS
from tuner.report.result import Champion, Standing
from tuner.report.spread import ERROR, explanation

_SECONDS, _MANY_S = "s of training", 10


def _interval(name: str, test: Mapping[str, float]) -> str:
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
        row["95% interval"] = _interval("accuracy", test)
        if name in test:
            row[f"test {title(name)}"] = written(name, test[name])
        row["test macro F1"] = f"{test['macro_f1']:.3f}"
        row["its interval"] = _interval(name, test)
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


def explanations(champion: Champion) -> list[str]:
    """What is to be known of a champion's ± and intervals, a sentence or two each."""
    test = champion.standing.test
    said = [explanation(champion.config, has_test=bool(test))]
    if NUM_CLUSTERS in test:
        said.append(
            f"The test pictures are of {test[NUM_CLUSTERS]:.0f} groups or single finds: their intervals are as wide as "
            "shots of one find, which are right or wrong together, ask for."
        )
    return [each for each in said if each is not None]
