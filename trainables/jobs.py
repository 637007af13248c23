"""What a lane can be asked to do, and what it answers.

A job travels from the driver or a Tune trial through the switchboard to a lane's workers; messages travel back. Both
are plain JSON values on the way, so that no process needs torch to carry them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pydantic import Field, TypeAdapter

from trainables.config import Settings, SplitName, TrialConfig

Outcome = Literal["completed", "stopped_early", "diverged", "failed", "interrupted"]
LAST_CHECKPOINT = "last.ckpt"
BEST_CHECKPOINT = "best.ckpt"


class TrainJob(Settings):
    """Train one configuration to its end; go on from the checkpoint in ``directory`` if there is one."""

    kind: Literal["train"] = "train"
    config: TrialConfig
    directory: str = Field(description="Path or URI that holds this trial's checkpoints and nothing else.")
    metric: str = Field("val/accuracy", description="Decides which epoch is the trial's best.")
    mode: Literal["max", "min"] = "max"
    reported_epochs: int = Field(0, ge=0, description="Epochs whose results are already known to the asker.")
    cuts_to_keep: dict[Literal["train", "val"], tuple[int, ...]] | None = Field(
        None,
        description="Depths whose features may be stored, by side; None: the trial's own depth on both. Decides speed, "
        "never a number.",
    )


class ScoreJob(Settings):
    """Score a trained trial on one side."""

    kind: Literal["score"] = "score"
    config: TrialConfig
    checkpoint: str = Field(description="Path or URI of a checkpoint of that configuration.")
    side: SplitName


Job = Annotated[TrainJob | ScoreJob, Field(discriminator="kind")]
_JOBS: TypeAdapter[TrainJob | ScoreJob] = TypeAdapter(Job)


def parse_job(values: dict[str, Any]) -> TrainJob | ScoreJob:
    """A job from its JSON values."""
    return _JOBS.validate_python(values)


class Message(TypedDict):
    """What a lane says of a job.

    ``epoch``: one more epoch is trained (``epoch`` counts from 1), ``outcome`` is set on the trial's last one.
    ``score``: the answer to a ``ScoreJob``. ``failed``: the job is over, for the ``reason``.
    ``dropped``: the asker has moved on.
    """

    kind: Literal["epoch", "score", "failed", "dropped"]
    epoch: NotRequired[int]
    metrics: NotRequired[dict[str, float]]
    is_best: NotRequired[bool]
    outcome: NotRequired[Outcome | None]
    reason: NotRequired[str]
    confusion: NotRequired[list[list[int]]]
