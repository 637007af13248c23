"""What a sweep leaves in a person's hands: its trials as a table, its champion, its baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainables.config import TrialConfig
from tuner.champion import best_epoch
from tuner.journal import Ancestor, Record, TrialRecord, read_records, trials_of
from tuner.paths import HomePaths, SweepPaths
from tuner.reuse import Reuse

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Standing:
    """A trained configuration and what it reached.

    Attributes:
        name: ``trial 7``, or a baseline's name.
        val: Validation scores of its best epoch, without their group (``accuracy``, ``loss``, ...).
        test: Test scores, with ``accuracy_low`` and ``accuracy_high`` (95% Wilson) and ``majority_rate``; empty
            where nothing is tested.
        seconds: What its epochs took, training and validation; None where nobody says.
    """

    name: str
    val: Mapping[str, float]
    test: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True)
class Champion:
    """The trial that won.

    Attributes:
        number: Of the trial.
        params: Its point of the search space.
        config: The whole configuration.
        standing: Its scores.
        model_uri: ``models:/NAME/VERSION`` in MLflow; None when MLflow could not be told.
        alias: ``champion``, or ``challenger`` when the present champion stays.
        reason: Why that alias.
        lineage: Who trained its weights before it did, in a population.
    """

    number: int
    params: dict[str, Any]
    config: TrialConfig
    standing: Standing
    model_uri: str | None = None
    alias: str | None = None
    reason: str | None = None
    lineage: tuple[Ancestor, ...] = ()


@dataclass(frozen=True)
class SweepResult:
    """What ``run_sweep`` returns.

    Attributes:
        name: The sweep's name.
        home: Where its files are.
        tracking_uri: MLflow's address.
        metric: What chose.
        mode: ``max`` or ``min``.
        records: The search's trials.
        champion: None while the sweep is interrupted.
        baselines: Runs beside the search.
        is_finished: False after an interruption.
        untold: Records that MLflow has not been told.
        seconds: Wall time of this run.
        reuse: What stored features were worth to the search.
    """

    name: str
    home: HomePaths
    tracking_uri: str
    metric: str
    mode: str
    records: tuple[TrialRecord, ...]
    champion: Champion | None
    baselines: tuple[Standing, ...] = ()
    is_finished: bool = True
    untold: int = 0
    seconds: float = 0.0
    reuse: Reuse | None = None

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial: see ``trials_frame``."""
        return trials_frame(self.records, self.metric, self.mode)

    @property
    def paths(self) -> SweepPaths:
        """The sweep's files."""
        return self.home.sweep(self.name)

    def _repr_html_(self) -> str:
        """What a notebook shows of it: what the command line says at a sweep's end."""
        from tuner.notebook import exported, recorder
        from tuner.output import show_result

        console = recorder()
        show_result(self, console)
        return exported(console)


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


def read_result(home: HomePaths, name: str) -> tuple[list[Record], list[TrialRecord]]:
    """A sweep's journal and its trials.

    Raises:
        FileNotFoundError: There is no such sweep.
    """
    records = read_records(home.sweep(name).journal)
    return records, trials_of(records)
