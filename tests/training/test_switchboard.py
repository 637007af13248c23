"""The switchboard as a plain object in one event loop: who gets which lane, which messages count, who is told what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest

from trainables.jobs import Message
from trainables.switchboard import Order, Switchboard

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


def test_a_job_goes_to_the_lane_and_its_messages_come_back() -> None:
    async def scene(board: Switchboard) -> None:
        asking = await lend(board)
        assert not asking.done()
        number = await board.start("a", JOB)
        order = await asking
        assert order == Order(number, JOB, 0)
        assert await board.report(0, number, epoch(1))
        assert await board.report(0, number, epoch(2, outcome="completed"))
        assert [await board.message("a", number) for _ in range(2)] == [epoch(1), epoch(2, outcome="completed")]

    play(scene)


def test_jobs_are_numbered_and_a_lane_is_not_given_the_same_one_twice() -> None:
    async def scene(board: Switchboard) -> None:
        asking = await lend(board)
        first = await board.start("a", JOB)
        assert (await asking).number == first
        await board.report(0, first, SCORE)
        waiting = await begin(board.next_job(0, first))
        assert not waiting.done()
        second = await board.start("a", OTHER)
        assert second > first
        assert await waiting == Order(second, OTHER, 0)

    play(scene)


def test_a_lane_that_reports_for_an_old_number_is_told_to_drop_it() -> None:
    async def scene(board: Switchboard) -> None:
        await lend(board)
        first = await board.start("a", JOB)
        dropped = await begin(board.dropped(0, first))
        more = await begin(board.wants_more(0, first))
        assert not dropped.done()
        second = await board.start("a", OTHER)
        await dropped
        assert await more is False
        assert not await board.report(0, first, epoch(1))
        assert await board.report(0, second, epoch(1))
        assert (await board.message("a", second)) == epoch(1)
        assert (await board.message("a", first)) == {"kind": "dropped"}

    play(scene)


def test_a_finished_job_takes_no_more_messages() -> None:
    async def scene(board: Switchboard) -> None:
        await lend(board)
        number = await board.start("a", JOB)
        assert await board.report(0, number, {"kind": "failed", "reason": "no memory"})
        assert not await board.report(0, number, {"kind": "failed", "reason": "said by the other rank too"})
        assert not await board.report(0, number, epoch(1))
        assert await board.wants_more(0, number) is False
        assert await board.message("a", number) == {"kind": "failed", "reason": "no memory"}

    play(scene)


def test_a_lane_trains_at_most_one_epoch_ahead_of_its_client() -> None:
    async def scene(board: Switchboard) -> None:
        await lend(board)
        number = await board.start("a", JOB)
        first = await begin(board.wants_more(0, number))
        assert not first.done(), "the client has not asked yet"
        asking = await begin(board.message("a", number))
        assert await first is True
        await board.report(0, number, epoch(1))
        assert await asking == epoch(1)
        second = await begin(board.wants_more(0, number))
        assert not second.done(), "the client is still thinking about epoch 1"
        await begin(board.message("a", number))
        assert await second is True

    play(scene)


# --- lending -------------------------------------------------------------------------------------------------


def test_lanes_are_lent_first_come_first_served() -> None:
    async def scene(board: Switchboard) -> None:
        waiting = [await begin(board.borrow(name)) for name in "abc"]
        await begin(board.next_job(7, -1))
        await begin(board.next_job(5, -1))
        assert [task.done() for task in waiting] == [True, True, False]
        assert [await waiting[0], await waiting[1]] == [7, 5]
        late = await begin(board.borrow("d"))
        await board.give_back("b")
        assert await waiting[2] == 5
        await board.give_back("a")
        assert await late == 7
        assert await board.num_lanes() == 2

    play(scene)


async def come_up(board: Switchboard, nodes: dict[int, str]) -> None:
    for lane, node in nodes.items():
        await begin(board.next_job(lane, -1, node))


def test_of_several_free_lanes_a_client_gets_the_one_that_served_its_like() -> None:
    async def scene(board: Switchboard) -> None:
        await come_up(board, {0: "here", 1: "there", 2: "there"})
        assert [await board.borrow(name, kind) for name, kind in (("a", "flip"), ("b", "none"))] == [0, 1]
        for name in "ab":
            await board.give_back(name)
        assert await board.borrow("c", "none") == 1, "though lanes 2 and 0 have been free for longer"
        assert await board.borrow("d", "none") == 2, "the same machine's store"
        assert await board.borrow("e", "none") == 0, "nobody waits for the sake of it"

    play(scene)


def test_without_an_affinity_the_lane_that_is_free_for_longest_is_lent() -> None:
    async def scene(board: Switchboard) -> None:
        await come_up(board, {0: "", 1: ""})
        assert await board.borrow("a", "flip") == 0
        await board.give_back("a")
        assert await board.borrow("b") == 1
        await board.give_back("b")
        assert await board.borrow("c", "none") == 0
        await board.give_back("c")
        # Lanes whose node is not known are not on the same one.
        assert await board.borrow("d", "flip") == 0
        assert await board.borrow("e", "flip") == 1

    play(scene)


def test_those_who_wait_are_served_in_their_order_whatever_they_prefer() -> None:
    async def scene(board: Switchboard) -> None:
        await come_up(board, {0: "here"})
        await board.borrow("a", "flip")
        waiting = [await begin(board.borrow(name, kind)) for name, kind in (("b", "none"), ("c", "flip"))]
        await board.give_back("a")
        assert await waiting[0] == 0
        await board.give_back("b")
        assert await waiting[1] == 0

    play(scene)


def test_a_client_holds_one_lane_however_often_it_asks() -> None:
    async def scene(board: Switchboard) -> None:
        await lend(board)
        await begin(board.next_job(1, -1))
        assert await board.borrow("a") == 0
        assert await board.borrow("b") == 1

    play(scene)


def test_a_lane_that_is_given_back_ends_its_job_and_is_lent_again() -> None:
    async def scene(board: Switchboard) -> None:
        asking = await lend(board)
        number = await board.start("a", JOB)
        await asking
        waiting = await begin(board.message("a", number))
        await board.report(0, number, epoch(1))
        assert await waiting == epoch(1)
        waiting = await begin(board.message("a", number))
        await board.give_back("a")
        await board.give_back("a")
        assert await waiting == {"kind": "dropped"}
        assert not await board.report(0, number, epoch(2))
        assert await board.message("a", number) == {"kind": "dropped"}
        with pytest.raises(RuntimeError, match="a holds no lane"):
            await board.start("a", JOB)
        assert await board.borrow("b") == 0
        again = await board.start("b", OTHER)
        assert await board.next_job(0, number) == Order(again, OTHER, 0)

    play(scene)


def test_a_dead_client_is_given_up_by_its_name() -> None:
    async def scene(board: Switchboard) -> None:
        await lend(board, "trial-1-x")
        number = await board.start("trial-1-x", JOB)
        waiting = await begin(board.borrow("trial-2-y"))
        await board.give_back_all("trial-1-")
        assert await waiting == 0
        await board.dropped(0, number)
        await board.give_back_all("trial-")
        assert await board.borrow("c") == 0

    play(scene)


def test_a_client_that_died_while_it_waited_is_lent_nothing() -> None:
    async def scene(board: Switchboard) -> None:
        dead = await begin(board.borrow("trial-1-x"))
        alive = await begin(board.borrow("trial-2-y"))
        await board.give_back_all("trial-1-")
        with pytest.raises(RuntimeError, match="given up while it waited"):
            await dead
        await begin(board.next_job(0, -1))
        assert await alive == 0

    play(scene)


# --- workers that die ----------------------------------------------------------------------------------------


def test_a_restarted_worker_gets_the_job_under_way_and_what_was_reported() -> None:
    async def scene(board: Switchboard) -> None:
        asking = await lend(board)
        number = await board.start("a", {**JOB, "reported_epochs": 2})
        assert await asking == Order(number, {**JOB, "reported_epochs": 2}, 2)
        assert await board.report(0, number, epoch(3))
        assert (await board.next_job(0, -1)).reported_epochs == 3
        assert await board.report(0, number, epoch(3)), "it comes again after a restart"
        assert await board.report(0, number, epoch(4))
        assert [await board.message("a", number) for _ in range(2)] == [epoch(3), epoch(4)], "and is passed on once"

    play(scene)


def test_an_outcome_that_was_already_reported_still_ends_the_job() -> None:
    async def scene(board: Switchboard) -> None:
        await lend(board)
        number = await board.start("a", {**JOB, "reported_epochs": 4})
        assert await board.report(0, number, epoch(4, outcome="completed"))
        assert await board.message("a", number) == epoch(4, outcome="completed")

    play(scene)


def test_a_job_that_kills_its_workers_is_given_up() -> None:
    async def scene(board: Switchboard) -> None:
        asking = await lend(board)
        number = await board.start("a", JOB)
        assert (await asking).number == number
        for _ in range(2):
            assert (await board.next_job(0, -1)).number == number
        await board.report(0, number, epoch(1))
        for _ in range(2):
            assert (await board.next_job(0, -1)).number == number, "an epoch is a sign of life"
        waiting = await begin(board.next_job(0, -1))
        assert not waiting.done()
        assert await board.message("a", number) == epoch(1)
        assert await board.message("a", number) == {"kind": "failed", "reason": "its worker died 3 times"}
        again = await board.start("a", OTHER)
        assert await waiting == Order(again, OTHER, 0)

    play(scene)


def test_a_dead_workers_question_is_not_counted_and_not_answered() -> None:
    """Workers that die while their lane is idle leave questions behind, which must not use up the next job's lives."""

    async def scene(board: Switchboard) -> None:
        dead = [await begin(board.next_job(0, -1)) for _ in range(5)]
        alive = await begin(board.next_job(0, -1))
        assert [await question for question in dead] == [None] * 5
        await board.borrow("a")
        number = await board.start("a", JOB)
        assert (await alive).number == number
        for _ in range(2):
            assert (await board.next_job(0, -1)).number == number

    play(scene)


def test_reports_that_were_wanted_are_counted() -> None:
    async def scene(board: Switchboard) -> None:
        assert await board.num_reports(0) == 0
        await lend(board)
        number = await board.start("a", JOB)
        await board.report(0, number, epoch(1))
        await board.report(0, number - 1, epoch(2))
        await board.report(0, number, SCORE)
        assert await board.num_reports(0) == 2

    play(scene)


# --- the end -------------------------------------------------------------------------------------------------


def test_a_closed_lane_ends_and_fails_what_runs_on_it() -> None:
    async def scene(board: Switchboard) -> None:
        await lend(board)
        number = await board.start("a", JOB)
        waiting = await begin(board.message("a", number))
        await board.close_lane(0, "lane 0 is lost: no memory")
        assert await waiting == {"kind": "dropped", "reason": "lane 0 is lost: no memory"}
        assert await board.next_job(0, number) is None
        assert not await board.report(0, number, epoch(1))
        await board.dropped(0, number)
        assert await board.num_lanes() == 0
        await board.give_back("a")
        later = await begin(board.borrow("b"))
        assert not later.done(), "a closed lane is not lent again"
        await begin(board.next_job(1, -1))
        assert await later == 1

    play(scene)


def test_a_job_for_a_lane_that_closed_meanwhile_fails_at_once() -> None:
    async def scene(board: Switchboard) -> None:
        await lend(board)
        await board.close_lane(0, "lane 0 is lost")
        number = await board.start("a", JOB)
        assert await board.message("a", number) == {"kind": "dropped", "reason": "lane 0 is lost"}

    play(scene)


def test_a_lane_that_comes_up_after_it_was_closed_ends() -> None:
    async def scene(board: Switchboard) -> None:
        await board.close_lane(3)
        assert await board.next_job(3, -1) is None
        idle = await begin(board.next_job(0, -1))
        await board.close_lane(0)
        assert await idle is None

    play(scene)


def test_when_every_lane_is_lost_all_who_wait_are_told() -> None:
    async def scene(board: Switchboard) -> None:
        waiting = [await begin(board.borrow(name)) for name in "ab"]
        await board.fail("every lane is lost; the last one: no GPU")
        for task in [*waiting, await begin(board.borrow("c"))]:
            with pytest.raises(RuntimeError, match="every lane is lost; the last one: no GPU"):
                await task

    play(scene)


def test_many_clients_share_few_lanes_and_each_job_runs_once() -> None:
    """Clients and lanes that act at once, some of them dropping their job half-way."""

    async def lane(board: Switchboard, number: int, done: list[str]) -> None:
        last = -1
        while (order := await board.next_job(number, last)) is not None:
            last = order.number
            for step in range(1, 4):
                if not await board.wants_more(number, order.number):
                    break
                outcome = {"outcome": "completed"} if step == 3 else {}
                if not await board.report(number, order.number, epoch(step, **outcome)):
                    break
                if outcome:
                    done.append(order.job["name"])

    async def client(board: Switchboard, name: str, num_epochs: int) -> list[int]:
        await board.borrow(name)
        number = await board.start(name, {"name": name})
        seen = [(await board.message(name, number))["epoch"] for _ in range(num_epochs)]
        await board.give_back(name)
        return seen

    async def scene(board: Switchboard) -> None:
        done: list[str] = []
        lanes = [asyncio.ensure_future(lane(board, number, done)) for number in range(3)]
        seen = await asyncio.gather(*(client(board, f"c{i}", 3 if i % 3 else 1) for i in range(30)))
        for number in range(3):
            await board.close_lane(number)
        await asyncio.gather(*lanes)
        assert seen == [[1, 2, 3] if i % 3 else [1] for i in range(30)]
        assert sorted(done) == sorted(f"c{i}" for i in range(30) if i % 3)

    play(scene)
