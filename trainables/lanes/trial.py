"""Ray Tune's trial: borrows a lane, turns each epoch into one step, gives the lane back. No torch in here.

The Tune configuration holds ``switchboard`` (actor name), ``namespace``, ``number`` (the trial's) and ``job`` (a
``TrainJob`` as JSON values), ``affinity`` (what it reads of the feature store; none: nothing).
The actor is reused from trial to trial; checkpoints are written by the lane, next to each other per trial, so Tune's
own checkpoint only names the trial's directory.
"""

from __future__ import annotations

import json
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune

from trainables.files.outages import patiently
from trainables.jobs import Message

EPOCH = "thaw/epoch"
OUTCOME = "thaw/outcome"
REASON = "thaw/reason"
WAITED = "thaw/waited_s"


class LaneLostError(RuntimeError):
    """The lane that ran the trial is gone; on another one the trial goes on."""


def client_prefix(number: int) -> str:
    """How a trial's clients of the switchboard are named: by it, a dead actor's lane can be taken back."""
    return f"trial-{number}-"


class LaneTrial(tune.Trainable):
    """One actor that runs trial after trial on borrowed lanes."""

    _number: int | None = None
    _epoch = 0
    _waited_s = 0.0

    def setup(self, config: dict[str, Any]) -> None:
        """Finds the switchboard; the lane is borrowed by the first step, where waiting is nobody's error."""
        self._board = ray.get_actor(config["switchboard"], namespace=config["namespace"])
        self._take(config)

    def step(self) -> dict[str, Any]:
        """Waits for the lane's next epoch; a trial that failed ends with that as its outcome.

        Raises:
            LaneLostError: The lane is gone. What is raised here makes Tune start the trial again.
        """
        if self._number is None:
            asked = time.monotonic()
            ray.get(self._board.borrow.remote(self._client, self._affinity))
            self._waited_s = time.monotonic() - asked
            self._number = ray.get(self._board.start.remote(self._client, self._job))
        message: Message = ray.get(self._board.message.remote(self._client, self._number))
        if message["kind"] == "dropped":
            self._release()
            raise LaneLostError(message.get("reason", "the lane was taken away"))
        outcome = message.get("outcome") or ("failed" if message["kind"] == "failed" else None)
        self._epoch = message.get("epoch", self._epoch)
        if outcome:
            self._release()
        result = {
            **message.get("metrics", {}),
            EPOCH: self._epoch,
            OUTCOME: outcome,
            REASON: message.get("reason"),
            WAITED: self._waited_s,
        }
        return {**result, "done": bool(outcome)}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next trial in the same actor."""
        self._release()
        self._take(new_config)
        return True

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Tune's own; a storage that is full or away is waited for.

        Raises:
            StorageAwayError: It stays so.
        """
        return patiently(partial(super().save, checkpoint_dir), "Tune's notes")

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Names the directory in which the lane keeps this trial's checkpoints, and gives the lane to others.

        Tune saves a trial that is to wait: what the lane kept of it is of the last epoch that was asked for.
        """
        self._release()
        self._go_on_after(self._epoch)
        state = {"directory": self._job["directory"], "epoch": self._epoch}
        Path(checkpoint_dir, "trial.json").write_text(json.dumps(state))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Goes on from the lane's newest checkpoint of that trial; the job already names its directory."""
        self._go_on_after(json.loads(Path(checkpoint_dir, "trial.json").read_text())["epoch"])

    def cleanup(self) -> None:
        """Gives the lane back when the actor ends."""
        self._release()

    def _take(self, config: dict[str, Any]) -> None:
        self._client = client_prefix(config["number"]) + uuid.uuid4().hex[:8]
        self._job, self._affinity = config["job"], config.get("affinity")
        self._number, self._epoch = None, 0

    def _go_on_after(self, epoch: int) -> None:
        self._epoch = epoch
        self._job = {**self._job, "reported_epochs": max(epoch, self._job["reported_epochs"])}

    def _release(self) -> None:
        self._number = None
        ray.get(self._board.give_back.remote(self._client))
