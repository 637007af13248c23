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
        self.node = ""
        self.group = ""
        self.number = 0
        self.job: dict[str, Any] | None = None
        self.epoch = 0
        self.handouts = 0
        self.num_askings = 0
        self.num_reports = 0
        self.num_asked = 0
        self.num_posted = 0
        self.messages: deque[Message] = deque()
        self.is_closed = False
        self.is_aside = False
        self.aside_reason = ""
        self.closing_reason = "the sweep ended"


class Switchboard:
    """Lends lanes to clients and carries jobs and messages. Every method runs in one event loop.

    A client is any name; it holds at most one lane. Whoever calls may die at any moment, and its call then waits here
    on: such a call must never be handed a lane or a job. Meant to be wrapped by ``ray.remote``.
    """

    def __init__(self) -> None:
        self._lanes: dict[int, _Mailbox] = {}
        self._free: deque[int] = deque()
        self._lent: dict[str, int] = {}
        self._waiting: dict[str, object] = {}
        self._served: dict[str, list[int]] = {}
        self._failure: str | None = None
        self._changed = asyncio.Condition()

    # --- the lanes' side -------------------------------------------------------------------------------------

    async def next_job(self, lane: int, last_number: int, node: str = "", group: str = "") -> Order | None:
        """Waits for a job other than ``last_number``; None when the lane is to end.

        ``node`` names the machine whose features the lane reads, ``group`` the placement group that holds its workers;
        both may be others after a restart.
        A lane that comes (back) with no last number gets the job under way, if there is one. One process asks for a
        lane at a time, so an earlier call that still waits is a dead worker's, and ends with None.
        """
        async with self._changed:
            box = self._lanes.get(lane)
            if box is None:
                box = self._lanes[lane] = _Mailbox()
                self._free.append(lane)
            if box.is_aside:
                box.is_aside = False
                if lane not in self._lent.values():
                    self._free.append(lane)
            self._move_on()
            box.node, box.group = node, group
            box.num_askings += 1
            asking = box.num_askings
            self._changed.notify_all()
            while True:
                await self._changed.wait_for(
                    lambda: (
                        box.is_closed
                        or box.num_askings != asking
                        or (box.job is not None and box.number != last_number)
                    )
                )
                if box.is_closed or box.num_askings != asking:
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
            box.num_reports += 1
            if message["kind"] == "epoch":
                if message["epoch"] <= box.epoch and not message.get("outcome"):
                    return True
                box.epoch, box.handouts = message["epoch"], 1
            if message["kind"] != "epoch" or message.get("outcome"):
                self._finish(box, message)
            else:
                self._post(box, message)
            return True

    async def wants_more(self, lane: int, number: int) -> bool:
        """Waits until the client has taken every message and asks for one more; False when it has dropped the job.

        A lane asks before it keeps an epoch: it may train one epoch while its client decides about the last one, and
        what is on disk never runs ahead of what the client wants.
        """
        async with self._changed:
            box = self._lanes[lane]
            await self._changed.wait_for(
                lambda: box.number != number or box.job is None or box.num_asked > box.num_posted
            )
            return box.number == number and box.job is not None

    async def dropped(self, lane: int, number: int) -> None:
        """Returns once ``number`` is no longer wanted of ``lane``."""
        async with self._changed:
            box = self._lanes[lane]
            await self._changed.wait_for(lambda: box.number != number or box.job is None)

    # --- the clients' side -----------------------------------------------------------------------------------

    async def borrow(self, client: str, affinity: str | None = None) -> int:
        """Waits for a free lane and lends it; first come, first served. A client that holds one keeps it.

        Args:
            client: Who asks.
            affinity: Names what the client will read. Of several free lanes it gets one that served this name before,
                else one on the same node as such a lane, because what was read or stored there is there still. Nobody
                waits for the sake of it.

        Raises:
            RuntimeError: No lane will come any more, or the client was given up while it waited.
        """
        async with self._changed:
            if client in self._lent:
                return self._lent[client]
            ticket = self._waiting[client] = object()
            try:
                await self._changed.wait_for(
                    lambda: (
                        self._failure
                        or self._waiting.get(client) is not ticket
                        or (self._free and next(iter(self._waiting)) == client)
                    )
                )
                if self._waiting.get(client) is not ticket:
                    raise RuntimeError(f"{client} was given up while it waited for a lane")
                if self._failure:
                    raise RuntimeError(self._failure)
                lane = self._lent[client] = self._nearest_free(affinity)
                self._free.remove(lane)
                if affinity is not None:
                    self._served.setdefault(affinity, []).append(lane)
                return lane
            finally:
                if self._waiting.get(client) is ticket:
                    del self._waiting[client]
                self._changed.notify_all()

    async def start(self, client: str, job: dict[str, Any]) -> int:
        """Puts ``job`` on the client's lane in place of whatever ran there; returns its number.

        Raises:
            RuntimeError: The client holds no lane (any more).
        """
        async with self._changed:
            if client not in self._lent:
                raise RuntimeError(f"{client} holds no lane")
            box = self._lanes[self._lent[client]]
            box.number += 1
            box.job, box.epoch, box.handouts = job, int(job.get("reported_epochs", 0)), 0
            box.num_asked = box.num_posted = 0
            box.messages.clear()
            if box.is_closed:
                self._finish(box, {"kind": "dropped", "reason": box.closing_reason})
            self._move_on()
            self._changed.notify_all()
            return box.number

    async def message(self, client: str, number: int) -> Message:
        """Waits for the next message about the client's job; ``dropped`` when the lane is no longer the client's."""
        async with self._changed:
            if client not in self._lent:
                return {"kind": "dropped"}
            box = self._lanes[self._lent[client]]
            if box.number == number:
                box.num_asked += 1
                self._changed.notify_all()
            await self._changed.wait_for(lambda: box.messages or box.number != number)
            return box.messages.popleft() if box.number == number else {"kind": "dropped"}

    async def give_back(self, client: str) -> None:
        """Ends the client's job or its waiting, and takes its lane back; harmless when it holds none."""
        async with self._changed:
            self._waiting.pop(client, None)
            lane = self._lent.pop(client, None)
            if lane is not None:
                box = self._lanes[lane]
                box.number += 1
                box.job = None
                box.messages.clear()
                if not box.is_closed and not box.is_aside:
                    self._free.append(lane)
            self._changed.notify_all()

    async def give_back_all(self, prefix: str) -> None:
        """Takes back the lanes of every client whose name starts with ``prefix`` (a dead process's, say)."""
        for client in [name for name in (*self._lent, *self._waiting) if name.startswith(prefix)]:
            await self.give_back(client)

    # --- the pool's side -------------------------------------------------------------------------------------

    async def num_lanes(self) -> int:
        """Lanes that have come up and not ended."""
        return sum(not box.is_closed for box in self._lanes.values())

    async def num_reports(self, lane: int) -> int:
        """How often the lane's workers have reported something that was wanted: whether it gets anywhere."""
        return self._lanes[lane].num_reports if lane in self._lanes else 0

    async def placement_group(self, lane: int) -> str:
        """Id (hex) of the placement group that a lane's workers were last seen in; empty before they came up."""
        return self._lanes[lane].group if lane in self._lanes else ""

    async def set_aside(self, lane: int, reason: str) -> None:
        """Lends a lane, whose workers are gone and have no place to begin again, to nobody until they are back.

        Its running job is dropped where another lane can take it.
        """
        async with self._changed:
            box = self._lanes.get(lane)
            if box is None or box.is_closed:
                return
            box.is_aside, box.aside_reason = True, reason
            if lane in self._free:
                self._free.remove(lane)
            self._move_on()
            self._changed.notify_all()

    async def close_lane(self, lane: int, reason: str | None = None) -> None:
        """Ends one lane; its running job, and any that is still put on it, is dropped for ``reason``."""
        async with self._changed:
            box = self._lanes.setdefault(lane, _Mailbox())
            box.is_closed = True
            box.closing_reason = reason or box.closing_reason
            if lane in self._free:
                self._free.remove(lane)
            if box.job is not None:
                self._finish(box, {"kind": "dropped", "reason": box.closing_reason})
            self._changed.notify_all()

    async def fail(self, reason: str) -> None:
        """No lane will come any more: everyone who waits for one is told why."""
        async with self._changed:
            self._failure = reason
            self._changed.notify_all()

    def _nearest_free(self, affinity: str | None) -> int:
        """The free lane that served the name, or is on a node that did; else the one that is free for longest."""
        served = self._served.get(affinity, []) if affinity is not None else []
        nodes = {self._lanes[lane].node for lane in served if self._lanes[lane].node}
        return max(self._free, key=lambda lane: (lane in served, self._lanes[lane].node in nodes))

    def _move_on(self) -> None:
        """Drops the jobs of lanes that are aside, where there is another lane to take them."""
        if any(not box.is_closed and not box.is_aside for box in self._lanes.values()):
            for box in self._lanes.values():
                if box.is_aside and box.job is not None:
                    self._finish(box, {"kind": "dropped", "reason": box.aside_reason})

    def _finish(self, box: _Mailbox, message: Message) -> None:
        box.job = None
        self._post(box, message)

    def _post(self, box: _Mailbox, message: Message) -> None:
        box.messages.append(message)
        box.num_posted += 1
        self._changed.notify_all()
