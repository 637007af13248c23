"""A switchboard in one event loop, and the calls of its lanes and clients."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from trainables.jobs import Message
from trainables.lanes.switchboard import Order, Switchboard

T = TypeVar("T")
JOB: dict[str, Any] = {"kind": "train", "name": "first"}
OTHER: dict[str, Any] = {"kind": "train", "name": "second"}
SCORE: Message = {"kind": "score", "metrics": {}}


def epoch(number: int, **more: Any) -> Message:
    return {"kind": "epoch", "epoch": number, "metrics": {"val/accuracy": number / 10}, **more}  # type: ignore[typeddict-item]


def play(scene: Callable[[Switchboard], Coroutine[Any, Any, None]]) -> None:
    """Runs a scene on a new switchboard; a call that waits in vain fails it."""
    asyncio.run(asyncio.wait_for(scene(Switchboard()), timeout=10))


async def begin(call: Awaitable[T]) -> asyncio.Task[T]:
    """Starts a call and lets it go as far as it gets."""
    task = asyncio.ensure_future(call)
    for _ in range(10):
        await asyncio.sleep(0)
    return task


async def lend(board: Switchboard, client: str = "a", lane: int = 0) -> asyncio.Task[Order | None]:
    """A lane that has come up, lent to a client; returns the lane's question for a job."""
    asking = await begin(board.next_job(lane, -1))
    assert await board.borrow(client) == lane
    return asking
