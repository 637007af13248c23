"""The switchboard as a plain object in one event loop: which messages count, and who is told what."""

from __future__ import annotations

import asyncio

import pytest
from switchboard_support import JOB, OTHER, SCORE, begin, epoch, lend, play

from trainables.lanes.switchboard import Order, Switchboard


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


def test_what_a_lane_without_a_place_had_goes_to_another_one_and_it_is_lent_when_it_is_back() -> None:
    async def scene(board: Switchboard) -> None:
        await lend(board)
        number = await board.start("a", JOB)
        waiting = await begin(board.message("a", number))
        await board.set_aside(0, "lane 0 has no place to begin again")
        assert not waiting.done(), "there is no other lane"
        other = await begin(board.next_job(1, -1))
        await board.set_aside(0, "lane 0 has no place to begin again")
        assert await waiting == {"kind": "dropped", "reason": "lane 0 has no place to begin again"}
        await board.give_back("a")
        assert await board.borrow("a") == 1
        again = await board.start("a", JOB)
        assert (await other).number == again  # type: ignore[union-attr]
        later = await begin(board.borrow("b"))
        assert not later.done(), "a lane without workers is lent to nobody"
        await begin(board.next_job(0, -1))
        assert await later == 0

    play(scene)


def test_a_lane_that_comes_back_in_time_keeps_its_job() -> None:
    async def scene(board: Switchboard) -> None:
        await lend(board)
        number = await board.start("a", JOB)
        await board.set_aside(0, "lane 0 has no place to begin again")
        assert await board.next_job(0, -1) == Order(number, JOB, 0)
        await begin(board.next_job(1, -1))
        assert await board.borrow("b") == 1, "and not the lane that is lent already"

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
