"""What a sweep leaves in a person's hands: its trials as a table, its champion, its baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainables.config import TrialConfig
from tuner.paths import HomePaths, SweepPaths
from tuner.records.journal import Ancestor, TrialRecord
from tuner.records.reuse import Reuse
from tuner.records.trial_rows import trials_frame

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Standing:
    """A trained configuration and what it reached.

    Attributes:
        name: ``trial 7``, or a baseline's name.
        val: Validation scores of its best epoch, without their group (``accuracy``, ``loss``, ...).
        test: Test scores, with ``accuracy_low`` and ``accuracy_high`` (95%) and ``majority_rate``; empty where
            nothing is tested.
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
        epoch: Its best one, which the scores and the weights are of.
    """

    number: int
    params: dict[str, Any]
    config: TrialConfig
    standing: Standing
    model_uri: str | None = None
    alias: str | None = None
    reason: str | None = None
    lineage: tuple[Ancestor, ...] = ()
    epoch: int = 0


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
        """One row per trial: see `trials_frame`."""
        return trials_frame(self.records, self.metric, self.mode)

    @property
    def paths(self) -> SweepPaths:
        """The sweep's files."""
        return self.home.sweep(self.name)

    def _repr_html_(self) -> str:
        """What a notebook shows of it: what the command line says at a sweep's end."""
        from tuner.notebook import exported, recorder
        from tuner.report.output import show_result

        console = recorder()
        show_result(self, console)
        return exported(console)
