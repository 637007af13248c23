"""What is half written goes with its writer, also a killed one, and is never taken from one that lives."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainables.files import half_written as module
from trainables.files.half_written import half_written, remove_half_written


@contextmanager
def writer(place: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is writing for a place, a folder and what lies beside it."""
    code = f"""
from pathlib import Path
from trainables.files.half_written import half_written
with half_written(Path({str(place)!r})) as path:
    path.mkdir()
    (path / "half").touch()
    path.with_name(path.name + "-journal").touch()
    print("writing", flush=True)
    input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_what_was_moved_to_its_place_stays(tmp_path: Path) -> None:
    place = tmp_path / "with[brackets]"
    with half_written(place) as path:
        path.write_text("whole")
        path.with_name(f"{path.name}-journal").touch()
        path.replace(place)
    assert names(tmp_path) == [place.name]
    with pytest.raises(ValueError, match="no"), half_written(place) as path:
        path.write_text("half")
        raise ValueError("no")
    assert (names(tmp_path), place.read_text()) == ([place.name], "whole")


def test_nothing_is_taken_from_the_living_and_nothing_of_the_killed_stays(tmp_path: Path) -> None:
    place = tmp_path / "place"
    with writer(place) as other:
        living = names(tmp_path)
        assert len(living) == 3, "a folder, what lies beside it, and the mark"
        remove_half_written(place)
        with half_written(place) as path:
            path.write_text("whole")
            path.replace(place)
        assert names(tmp_path) == [*living, "place"]
        other.kill()
        other.wait()
        remove_half_written(tmp_path / "another")
        assert names(tmp_path) == [*living, "place"]
        remove_half_written(place)
    assert names(tmp_path) == ["place"]


def test_another_machines_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "place"
    with writer(place):
        living = names(tmp_path)
        monkeypatch.setattr(module, "_machine", lambda: "elsewhere")
        remove_half_written(place)
        with half_written(place) as path:
            path.write_text("whole")
        assert names(tmp_path) == living


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "place"
    with writer(place) as other:
        other.kill()
    left = names(tmp_path)

    def refuse(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr("trainables.files.locks.fcntl.flock", refuse)
    with half_written(place) as path:
        path.write_text("whole")
        path.replace(place)
    assert names(tmp_path) == [*left, "place"]


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/sys").is_dir(), reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_no_fault_of_a_look(tmp_path: Path) -> None:
    remove_half_written(tmp_path / "missing" / "place")
    remove_half_written(Path("/proc/sys/place"))
