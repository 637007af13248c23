"""Who gets which lane: first come, first served, and of several free ones the nearest."""

from __future__ import annotations

import pytest
from switchboard_support import JOB, OTHER, begin, epoch, lend, play

from trainables.lanes.switchboard import Order, Switchboard


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
