"""A sweep's trials as rows of a table, or as a DataFrame with the best first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tuner.records.champion import best_epoch
from tuner.records.journal import TrialRecord

if TYPE_CHECKING:
    import pandas as pd


def trial_rows(records: Sequence[TrialRecord], metric: str, mode: str) -> list[dict[str, Any]]:
    """One mapping per trial: number, outcome, reason, epochs, seconds, FLOPs, the best epoch's scores, the parameters.

    ``gflops`` is what was computed, ``predicted_gflops`` what a whole trial should have cost.
    """
    rows = []
    for record in records:
        best = best_epoch(record, metric, mode) or {}
        rows.append(
            {
                "number": record.number,
                "outcome": record.outcome or "unfinished",
                "reason": record.reason,
                "epochs": len(record.epochs),
                "best_epoch": int(best["epoch"]) if best else None,
                "seconds": (record.metrics or {}).get("time/trial_s"),
                "gflops": (record.metrics or {}).get("compute/trial_gflops"),
                "predicted_gflops": (record.predicted or {}).get("compute/predicted_gflops"),
                **{name: best.get(name) for name in best if name.startswith("val/")},
                **record.params,
            }
        )
    return rows


def trials_frame(records: Sequence[TrialRecord], metric: str, mode: str) -> pd.DataFrame:
    """The rows of ``trial_rows`` as a DataFrame in the order of ``choose_champion``, those that cannot win last."""
    import pandas as pd

    frame = pd.DataFrame(trial_rows(records, metric, mode))
    if metric not in frame:
        return frame
    ranked = frame.assign(unfit=frame["outcome"].isin(("diverged", "failed")))
    order = {"unfit": True, metric: mode == "min", "val/loss": True, "number": True}
    order = {name: is_ascending for name, is_ascending in order.items() if name in ranked}
    ranked = ranked.sort_values(list(order), ascending=list(order.values()), na_position="last", ignore_index=True)
    return ranked.drop(columns="unfit")
