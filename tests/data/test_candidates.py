"""A folder's files in few bytes each are the same pictures as many objects would be."""

from __future__ import annotations

import tracemalloc
from functools import partial

from trainables.data.candidates import Candidate, Candidates


def content(name: bytes, size_bytes: int) -> bytes:
    return name * size_bytes


def reader(name: bytes, size_bytes: int) -> partial[bytes]:
    return partial(content, name, size_bytes)


def test_candidates_are_sorted_by_what_is_shown() -> None:
    names = ["b/2", "b-c/1", "b/10", "ä/1", "z/1", "日本/1"]
    raw = [*(name.encode() for name in names), b"b/\xff"]
    found = Candidates((Candidate(name, "c", "val", 2, (1, 2)) for name in raw), reader)
    assert [each.name for each in found] == sorted([*names, r"b/\xff"])
    assert {each.read() for each in found} == {name * 2 for name in raw}
    assert found[-1].name == "日本/1"
    assert [each.name for each in found[:2]] == ["b-c/1", "b/10"]
    assert {(each.class_name, each.side, each.group) for each in found} == {("c", "val", "")}


def test_whatever_changes_changes_the_digest() -> None:
    first = Candidate(b"a/1", "a", None, 5, (1, 2))
    changes = [{"name": b"a/2"}, {"size_bytes": 6}, {"times_ns": (2, 2)}, {"times_ns": (1, 3)}]
    lists = [[first], [], [first, first._replace(name=b"b")], *([first._replace(**change)] for change in changes)]
    digests = {Candidates(found, reader).digest(place) for found in lists for place in (b"here", b"there")}
    assert len(digests) == 2 * len(lists)
    assert not list(Candidates([], reader))


def test_each_name_keeps_its_own_facts() -> None:
    listed = [
        Candidate(b"c", "wasps", "test", 7, group="3"),
        Candidate(b"a", "bees", None, 5),
        Candidate(b"b", "ants", "train", 6, group="1"),
        Candidate(b"d", "bees", "val", 2**40, group="3"),
    ]
    found = Candidates(listed, reader)
    assert [(each.name, each.class_name, each.side, each.group) for each in found] == [
        ("a", "bees", None, ""), ("b", "ants", "train", "1"), ("c", "wasps", "test", "3"), ("d", "bees", "val", "3"),
    ]  # fmt: skip
    assert found.sides == {None, "train", "val", "test"}
    assert set(found.class_names) == {"ants", "bees", "wasps"}
    assert [each.read() for each in found[:3]] == [b"aaaaa", b"bbbbbb", b"ccccccc"]


def test_the_digest_stays_what_it_was() -> None:
    """Another one would have every table packed again."""
    listed = [Candidate("ä/1".encode(), "ä", "val", 5, (1, 2)), Candidate(b"a/\xff", "a", None, 3, (4, 2**62))]
    assert Candidates(listed, reader).digest(b"/here") == (
        "9bc484a6935418649b96d1687635bb995dbbd20f4eec56f731edfdd789162a0f"
    )


def test_a_repeated_name_is_found_with_both_places() -> None:
    names = [b"z", b"b", b"a", b"c", b"a", b"z"]
    listed = [Candidate(name, "c", None, place) for place, name in enumerate(names)]
    assert Candidates(listed, reader).repeated() == ("a", 2, 4), "the first that comes again"
    assert Candidates(listed[:3], reader).repeated() is None
    assert Candidates([], reader).repeated() is None


def test_eighty_bytes_are_enough_for_a_picture() -> None:
    count = 20_000
    tracemalloc.start()
    try:
        found = Candidates(
            (Candidate(b"class/picture-%06d.jpg" % number, "c", None, 9, (1, 2)) for number in range(count)), reader
        )
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 80 * count
    assert peak < 250 * count
    assert found[count - 1].name == f"class/picture-{count - 1:06d}.jpg"
