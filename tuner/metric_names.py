"""How a metric is called and written, and which way it is better. Names are bare (``auroc``) but for `bare`'s own."""

from __future__ import annotations

_TITLES = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1", "auroc": "AUROC", "map": "mAP"}
_PERCENT = ("accuracy", "balanced_accuracy")
_UNBOUNDED = _SMALL_IS_GOOD = ("loss", "cost")


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
