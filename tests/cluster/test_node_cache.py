"""A node copies a shared file once, whoever of its processes asks, and never keeps half of one."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest

from trainables.errors import InputError
from trainables.files.node_cache import cache_root, fetch_once


def fetch_slowly(path: Path, *, log: Path) -> None:
    with log.open("a") as lines:
        lines.write("fetched\n")
    path.mkdir()
    (path / "first").write_text("first")
    time.sleep(0.5)
    (path / "second").write_text("second")


def fetch_and_look(root: Path, log: Path) -> list[str]:
    return sorted(path.name for path in fetch_once("tables/abc", partial(fetch_slowly, log=log), root=root).iterdir())


def fetch_and_die(root: Path) -> None:
    def fetch(path: Path) -> None:
        path.mkdir()
        (path / "first").write_text("half")
        os._exit(9)

    fetch_once("tables/abc", fetch, root=root)


def test_two_workers_of_one_node_fetch_once_and_both_see_the_whole(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        seen = pool.starmap(fetch_and_look, [(tmp_path / "node", tmp_path / "log")] * 2, chunksize=1)
    assert seen == [["first", "second"]] * 2
    assert (tmp_path / "log").read_text() == "fetched\n"


def test_a_worker_that_dies_while_fetching_blocks_nobody_and_leaves_nothing(tmp_path: Path) -> None:
    dying = multiprocessing.get_context("spawn").Process(target=fetch_and_die, args=(tmp_path / "node",))
    dying.start()
    dying.join()
    assert dying.exitcode == 9
    assert not (tmp_path / "node" / "tables" / "abc").exists()
    assert fetch_and_look(tmp_path / "node", tmp_path / "log") == ["first", "second"]


def test_what_could_not_be_fetched_is_not_there(tmp_path: Path) -> None:
    def fetch(path: Path) -> None:
        path.write_text("wrong")
        raise InputError("not what was promised")

    with pytest.raises(InputError, match="not what was promised"):
        fetch_once("weights/abc", fetch, root=tmp_path)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [".abc.lock"]


def test_an_unusable_copy_is_fetched_again(tmp_path: Path) -> None:
    def fetch(path: Path) -> None:
        path.write_text("whole")

    (tmp_path / "abc").write_text("wh")
    place = fetch_once(
        "abc", fetch, is_usable=lambda path: path.exists() and path.read_text() == "whole", root=tmp_path
    )
    assert place.read_text() == "whole"


def test_the_cache_lies_where_the_environment_says_else_in_a_private_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_root({"THAW_CACHE": str(tmp_path / "disk" / "thaw")}) == tmp_path / "disk" / "thaw"
    assert (tmp_path / "disk" / "thaw").is_dir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = cache_root({})
    assert root.parent == tmp_path
    assert root.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(InputError, match="belongs to another user; set THAW_CACHE"):
        cache_root({})
