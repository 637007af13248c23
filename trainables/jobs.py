"""What a lane can be asked to do, and what it answers.

A job travels from the driver or a Tune trial through the switchboard to a lane's workers; messages travel back. Both
are plain JSON values on the way, so that no process needs torch to carry them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pydantic import Field, TypeAdapter

from trainables.config import AugmentationConfig, Precision, Settings, SplitName, TrialConfig

Outcome = Literal["completed", "stopped_early", "diverged", "failed", "interrupted"]
LAST_CHECKPOINT = "last.ckpt"
BEST_CHECKPOINT = "best.ckpt"
SPREAD = "_std"
"""Behind the name of a validation score: its standard deviation over folds, or over seeds where there are no folds."""
CutsToKeep = dict[Literal["train", "val"], tuple[int, ...]]
"""Depths whose features a job may store, by side."""


class TrainJob(Settings):
    """Train one configuration to its end; go on from the checkpoint in ``directory`` if there is one."""

    kind: Literal["train"] = "train"
    config: TrialConfig
    directory: str = Field(description="Path or URI that holds this trial's checkpoints and nothing else.")
    metric: str = Field("val/accuracy", description="Decides which epoch is the trial's best.")
    mode: Literal["max", "min"] = "max"
    last_epoch: int | None = Field(
        None,
        ge=1,
        description="Train this far of the configuration's schedule; None: to its end. What is kept is the best epoch, "
        "or the last one where all folds are learnt from and no side says which is best.",
    )
    reported_epochs: int = Field(0, ge=0, description="Epochs whose results are already known to the asker.")
    inherited_epochs: int = Field(
        0,
        ge=0,
        description="Epochs that another trial trained, with other settings: without their checkpoint it cannot begin.",
    )
    cuts_to_keep: CutsToKeep | None = Field(
        None,
        description="Depths whose features may be stored, by side; None: the trial's own depth on both. Decides speed, "
        "never a number.",
    )

    @property
    def num_epochs(self) -> int:
        """Epochs in all."""
        return self.last_epoch or self.config.epochs


class ScoreJob(Settings):
    """Score a trained trial on one side."""

    kind: Literal["score"] = "score"
    config: TrialConfig
    checkpoint: str = Field(description="Path or URI of a checkpoint of that configuration.")
    side: SplitName


class ProbeJob(Settings):
    """Say how much the features behind every stage tell of the classes, without training anything."""

    kind: Literal["probe"] = "probe"
    config: TrialConfig = Field(description="Of a trial that freezes every stage and sees pictures as they are.")
    cuts_to_keep: CutsToKeep | None = Field(
        None, description="Cuts whose features the pass may store; None: the last one on both sides."
    )

    @classmethod
    def of(
        cls,
        config: TrialConfig,
        num_stages: int,
        cuts_to_keep: CutsToKeep | None = None,
    ) -> ProbeJob:
        """The probe of the network that ``config``, of whatever depth, stands on."""
        as_is = AugmentationConfig(policy="none", num_views=1)
        changes = {"freeze_depth": num_stages, "head_init": "random", "augmentation": as_is}
        return cls(config=config.model_copy(update=changes), cuts_to_keep=cuts_to_keep)


class MeasureJob(Settings):
    """Say how long steps of a network take, for each combination of the choices that are open."""

    kind: Literal["measure"] = "measure"
    backbone: str
    num_classes: int = Field(ge=2)
    image_size_px: int = Field(ge=8)
    freeze_depth: int = Field(ge=0, description="The shallowest depth that is trained: the most that a step computes.")
    deepest: int = Field(ge=0, description="The deepest one: the most that a pass through frozen stages computes.")
    batch_size: int = Field(ge=2, description="Pictures per step of one worker.")
    prefix_batch_size: int = Field(ge=1)
    precisions: tuple[Precision, ...] = Field(description="Of the trained part; none: it is not measured.")
    prefix_precisions: tuple[Precision, ...] = Field(description="Of the frozen part; none: it is not measured.")
    layouts: tuple[bool, ...] = Field(description="Whether channels are last.")
    memory: str = Field(description="Path or URI of the folder where times are remembered.")


AnyJob = TrainJob | ScoreJob | ProbeJob | MeasureJob
Job = Annotated[AnyJob, Field(discriminator="kind")]
_JOBS: TypeAdapter[AnyJob] = TypeAdapter(Job)


def parse_job(values: dict[str, Any]) -> AnyJob:
    """A job from its JSON values."""
    return _JOBS.validate_python(values)


class DepthProbe(TypedDict):
    """What the features behind one stage say of the classes.

    ``probe_accuracy`` is of a ridge classifier on the validation pictures (none: NaN), ``loo_accuracy`` on training
    pictures that it has not seen, ``num_judged`` the number of both together; ``log_me`` is the log evidence per
    picture and class, ``num_features`` the width after pooling, ``seconds`` what fitting took.
    """

    depth: int
    stage: str
    probe_accuracy: float
    loo_accuracy: float
    accuracy: float
    num_judged: int
    log_me: float
    num_features: int
    seconds: float


class Timing(TypedDict):
    """How long one picture takes in a training step, or in a pass through the frozen part, with these choices."""

    part: Literal["trained", "frozen"]
    precision: Precision
    channels_last: bool
    seconds: float


class Message(TypedDict):
    """What a lane says of a job.

    ``epoch``: one more epoch is trained (``epoch`` counts from 1), ``outcome`` is set on the trial's last one.
    ``score``: the answer to a ``ScoreJob``: what an `Evaluation` holds, and for each picture the number of what was
    dealt to sides as one with it (``clusters``).
    ``probe``: the answer to a ``ProbeJob``, ``probes`` by depth.
    ``measured``: the answer to a ``MeasureJob``, ``timings`` taken or remembered, and on what (``place``).
    ``failed``: the job is over, for the ``reason``; with the outcome ``interrupted`` it is not the job's fault and may
    go on when the reason is gone. ``dropped``: the lane is another's or gone; the job is none the worse for it.
    """

    kind: Literal["epoch", "score", "probe", "measured", "failed", "dropped"]
    epoch: NotRequired[int]
    metrics: NotRequired[dict[str, float]]
    is_best: NotRequired[bool]
    outcome: NotRequired[Outcome | None]
    reason: NotRequired[str]
    confusion: NotRequired[list[Any]]
    areas: NotRequired[list[float]]
    average_precisions: NotRequired[list[float | None]]
    true: NotRequired[list[int]]
    decided: NotRequired[list[int]]
    clusters: NotRequired[list[int]]
    probes: NotRequired[list[DepthProbe]]
    timings: NotRequired[list[Timing]]
    is_remembered: NotRequired[bool]
    place: NotRequired[str]


LAST_WORDS = frozenset({"score", "probe", "measured"})
"""Kinds of message that answer a job whole."""
