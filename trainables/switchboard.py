"""The actor between those who want trials trained and the lanes that train them.

One asyncio process per sweep, without torch: per lane a mailbox (the current job with its number one way, messages
the other way), and the list of lanes that are free. Jobs are numbered: a worker that reports for a number that is no
longer wanted is told to drop it. Nothing here computes, and nothing here is needed after the sweep.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, NamedTuple

from trainables.jobs import Message

_MOST_HANDOUTS = 3
"""A job whose workers died this often without one more epoch is given up."""


class Order(NamedTuple):
    """A job as a lane receives it: its number, its values, and the epochs already reported."""

    number: int
    job: dict[str, Any]
    reported_epochs: int


class _Mailbox:
    def __init__(self) -> None:
        self.number = 0
        self.job: dict[str, Any] | None = None
        self.epoch = 0
        self.handouts = 0
        self.messages: deque[Message] = deque()
        self.is_closed = False


class Switchboard:
    """Lends lanes to clients and carries jobs and messages. Every method runs in one event loop.

    A client is any hashable name; it holds at most one lane. Meant to be wrapped by ``ray.remote``.
    """

    def __init__(self) -> None:
        self._lanes: dict[int, _Mailbox] = {}
        self._free: deque[int] = deque()
        self._lent: dict[str, int] = {}
        self._failure: str | None = None
        self._changed = asyncio.Condition()

    # --- the lanes' side -------------------------------------------------------------------------------------

    async def next_job(self, lane: int, last_number: int) -> Order | None:
        """Waits for a job other than ``last_number``; None when the lane is to end.

        A lane that comes (back) with no last number gets the job under way, if there is one.
        """
        async with self._changed:
            box = self._lanes.get(lane)
            if box is None:
                box = self._lanes[lane] = _Mailbox()
                self._free.append(lane)
                self._changed.notify_all()
            while True:
                await self._changed.wait_for(
                    lambda: box.is_closed or (box.job is not None and box.number != last_number)
                )
                if box.is_closed:
                    return None
                box.handouts += 1
                if box.handouts <= _MOST_HANDOUTS:
                    return Order(box.number, box.job or {}, box.epoch)
                self._finish(box, {"kind": "failed", "reason": f"its worker died {_MOST_HANDOUTS} times"})

    async def report(self, lane: int, number: int, message: Message) -> bool:
        """Takes a message; False when the job is no longer wanted."""
        async with self._changed:
            box = self._lanes[lane]
            if number != box.number or box.job is None:
                return False
            if message["kind"] == "epoch":
                if message["epoch"] <= box.epoch:
                    return True
                box.epoch, box.handouts = message["epoch"], 1
            if message["kind"] != "epoch" or message.get("outcome"):
                self._finish(box, message)
            else:
                box.messages.append(message)
                self._changed.notify_all()
            return True

    async def dropped(self, lane: int, number: int) -> None:
        """Returns once ``number`` is no longer wanted of ``lane``."""
        async with self._changed:
            box = self._lanes[lane]
            await self._changed.wait_for(lambda: box.number != number or box.job is None)

    # --- the clients' side -----------------------------------------------------------------------------------

    async def borrow(self, client: str) -> int:
        """Waits for a free lane and lends it.

        Raises:
            RuntimeError: No lane will come any more.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._free or self._failure)
            if self._failure:
                raise RuntimeError(self._failure)
            self._lent[client] = self._free.popleft()
            return self._lent[client]

    async def start(self, client: str, job: dict[str, Any]) -> int:
        """Puts ``job`` on the client's lane in place of whatever ran there; returns its number."""
        async with self._changed:
            box = self._lanes[self._lent[client]]
            box.number += 1
            box.job, box.epoch, box.handouts = job, int(job.get("reported_epochs", 0)), 0
            box.messages.clear()
            self._changed.notify_all()
            return box.number

    async def message(self, client: str, number: int) -> Message:
        """Waits for the next message about the client's job."""
        async with self._changed:
            box = self._lanes[self._lent[client]]
            await self._changed.wait_for(lambda: box.messages or box.number != number)
            return box.messages.popleft() if box.number == number else {"kind": "dropped"}

    async def give_back(self, client: str) -> None:
        """Ends the client's job, if one runs, and takes its lane back; harmless when it holds none."""
        async with self._changed:
            lane = self._lent.pop(client, None)
            if lane is None:
                return
            box = self._lanes[lane]
            box.number += 1
            box.job = None
            box.messages.clear()
            if not box.is_closed:
                self._free.append(lane)
            self._changed.notify_all()

    async def give_back_all(self, prefix: str) -> None:
        """Takes back the lanes of every client whose name starts with ``prefix`` (a dead process's, say)."""
        for client in [name for name in self._lent if name.startswith(prefix)]:
            await self.give_back(client)

    # --- the pool's side -------------------------------------------------------------------------------------

    async def num_lanes(self) -> int:
        """Lanes that have come up and not ended."""
        return sum(not box.is_closed for box in self._lanes.values())

    async def close_lane(self, lane: int, reason: str | None = None) -> None:
        """Ends one lane; its running job fails for ``reason``."""
        async with self._changed:
            box = self._lanes.setdefault(lane, _Mailbox())
            box.is_closed = True
            if lane in self._free:
                self._free.remove(lane)
            if box.job is not None:
                self._finish(box, {"kind": "failed", "reason": reason or "the sweep ended"})
            self._changed.notify_all()

    async def fail(self, reason: str) -> None:
        """No lane will come any more: everyone who waits for one is told why."""
        async with self._changed:
            self._failure = reason
            self._changed.notify_all()

    def _finish(self, box: _Mailbox, message: Message) -> None:
        box.job = None
        box.messages.append(message)
        self._changed.notify_all()
