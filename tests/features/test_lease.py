"""Claims under clocks that jump, owners that die, and machines that do not share a kernel."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import pytest
from store_support import NUM_ROWS, all_rows, make_features, make_key, make_store, script, torch

from trainables.features.lease import LeaseDesk

LEASE_S = 30.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def far_desk(clock: Clock, name: str) -> LeaseDesk:
    """A desk on a machine of its own: file locks of others mean nothing to it."""
    return LeaseDesk(LEASE_S, clock=clock, machine=name)


def test_one_of_two_gets_it_and_the_other_after_it_is_given_back(tmp_path: Path) -> None:
    path, desk = tmp_path / "lease", LeaseDesk(LEASE_S)
    lease = desk.try_acquire(path)
    assert lease is not None
    for other in (desk, LeaseDesk(LEASE_S), LeaseDesk(LEASE_S, machine="elsewhere")):
        assert other.try_acquire(path) is None
    desk.release(lease)
    assert not path.exists()
    again = LeaseDesk(LEASE_S).try_acquire(path)
    assert again is not None
    again.release()


def test_many_threads_never_hold_it_together(tmp_path: Path) -> None:
    held, overlaps, turns = threading.Lock(), [], []

    def work() -> None:
        desk = LeaseDesk(LEASE_S)
        for _ in range(40):
            lease = desk.try_acquire(tmp_path / "lease")
            if lease is not None:
                overlaps.append(not held.acquire(blocking=False))
                turns.append(1)
                time.sleep(0.001)
                held.release()
                desk.release(lease)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert turns
    assert not any(overlaps)


def test_a_dead_owner_here_is_noticed_at_once(tmp_path: Path) -> None:
    body = f"lease = LeaseDesk(1000).try_acquire(Path({str(tmp_path / 'lease')!r}))\nprint('held', flush=True)\ninput()"
    owner = subprocess.Popen(script(body), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout.readline() == "held\n"
        assert LeaseDesk(1000).try_acquire(tmp_path / "lease") is None
        owner.kill()
    lease = LeaseDesk(1000).try_acquire(tmp_path / "lease")
    assert lease is not None
    lease.release()


def test_a_silent_owner_elsewhere_is_given_a_lease_of_the_waiters_time(tmp_path: Path) -> None:
    path, owner, waiter = tmp_path / "lease", Clock(), Clock()
    waiter.now = 5.0  # clocks of two machines have nothing in common
    assert far_desk(owner, "one").try_acquire(path) is not None
    desk = far_desk(waiter, "two")
    assert desk.try_acquire(path) is None
    waiter.now += LEASE_S - 1
    assert desk.try_acquire(path) is None
    waiter.now += 1
    assert desk.try_acquire(path) is not None


def test_an_owner_that_shows_life_keeps_it_for_ever_but_not_beyond_the_limit(tmp_path: Path) -> None:
    path, clock = tmp_path / "lease", Clock()
    lease = far_desk(clock, "one").try_acquire(path)
    desk = far_desk(clock, "two")
    for _ in range(19):  # 600 s is the limit for one piece of work
        assert desk.try_acquire(path) is None
        clock.now += LEASE_S - 1
        lease.beat(clock.now)
    assert desk.try_acquire(path) is None
    for _ in range(3):
        clock.now += LEASE_S - 1
        lease.beat(clock.now)
    assert desk.try_acquire(path) is None
    clock.now += LEASE_S
    lease.beat(clock.now)
    taken = desk.try_acquire(path)
    assert taken is not None
    lease.release()  # the old owner's end does not touch the new one
    assert path.exists()


@pytest.mark.parametrize("jump_s", [-1e6, -10.0, 1e6])
def test_jumps_of_the_waiters_clock_neither_block_for_ever_nor_break_a_living_lease(
    tmp_path: Path, jump_s: float
) -> None:
    path, clock = tmp_path / "lease", Clock()
    lease = far_desk(Clock(), "one").try_acquire(path)
    desk = far_desk(clock, "two")
    assert desk.try_acquire(path) is None
    lease.beat(1001.0)
    clock.now += jump_s
    assert desk.try_acquire(path) is None  # it lives: it has changed since the last look
    clock.now += LEASE_S
    assert desk.try_acquire(path) is not None  # silent for one lease: over


def test_owners_refresh_by_themselves(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    desk = LeaseDesk(0.4)
    lease = desk.try_acquire(path)
    other = LeaseDesk(0.4, machine="elsewhere")
    deadline = time.monotonic() + 2
    seen = set()
    while time.monotonic() < deadline:
        seen.add(path.read_text())
        time.sleep(0.05)
    assert len(seen) > 4
    assert other.try_acquire(path) is None
    desk.release(lease)


@pytest.mark.parametrize("jump_s", [-86400.0, 86400.0])
def test_a_wall_clock_that_jumps_gives_neither_two_fillers_nor_an_endless_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    store, key = make_store(tmp_path), make_key()
    features, real = make_features(key), time.time
    writer = store.fill(key, NUM_ROWS, (4, 3, 3))
    part = next(parts := writer.parts())
    monkeypatch.setattr(time, "time", lambda: real() + jump_s)
    rival = make_store(tmp_path).fill(key, NUM_ROWS, (4, 3, 3))
    taken = []
    for other in rival.parts(is_waiting=False):
        rival.put(other, features[other.first : other.stop])
        taken.append(other.number)
    assert taken == [1, 2]
    writer.put(part, features[part.first : part.stop])
    assert list(parts) == []
    writer.close()
    rival.close()
    assert torch.equal(all_rows(make_store(tmp_path), key), features)


def test_a_file_that_is_no_lease_is_waited_for_and_then_replaced(tmp_path: Path) -> None:
    path, clock = tmp_path / "lease", Clock()
    path.write_bytes(b"\xff nonsense")
    desk = far_desk(clock, "one")
    assert desk.try_acquire(path) is None
    clock.now += LEASE_S
    assert desk.try_acquire(path) is not None
