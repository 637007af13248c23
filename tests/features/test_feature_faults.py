"""Damage, full disks, dead and rival fillers: never a wrong number, never a hang."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from store_support import (
    NUM_ROWS,
    all_rows,
    entry,
    fill,
    flip_byte,
    make_features,
    make_key,
    make_store,
    put_all,
    script,
    shards,
)

from trainables.features import shards as shards_module
from trainables.features.layout import SCHEMA_VERSION, DamagedError
from trainables.features.lease import LeaseDesk

SHAPE = (4, 3, 3)


def start(body: str, **settings: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(script(body), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **settings)


def test_a_killed_filler_leaves_nothing_that_is_read_and_blocks_nobody(tmp_path: Path) -> None:
    key = make_key()
    # It dies inside the second shard's write, half of the bytes on disk.
    filler = start(f"""
from trainables.features import shards as module
store, key = make_store(Path({str(tmp_path)!r})), make_key()
write = module._HashingSink.write
def half(self, data):
    if writer.rows_written and len(memoryview(data).cast('B')) > 1000:
        write(self, memoryview(data).cast('B')[:1000])
        print('writing', flush=True)
        input()
    return write(self, data)
module._HashingSink.write = half
with store.fill(key, NUM_ROWS, SHAPE) as writer:
    put_all(writer, make_features(key))
""")
    with filler:
        assert filler.stdout.readline() == "writing\n"
        store = make_store(tmp_path)
        with store.fill(key, NUM_ROWS, SHAPE) as writer:  # while it lives, its shard is not ours
            assert [part.number for part in writer.parts(is_waiting=False)] == [2]
        assert store.clear().num_in_use == 1
        filler.send_signal(signal.SIGKILL)
    assert len(list(entry(store, key).glob(".*.tmp"))) == 1
    assert store.open(key) is None
    started = time.monotonic()
    assert fill(store, key) == NUM_ROWS - 64
    assert time.monotonic() - started < 10  # a lease is 30 s
    assert torch.equal(all_rows(store, key), make_features(key))
    assert not list(entry(store, key).glob(".*.tmp"))


def test_a_stopped_filler_is_superseded_and_does_no_harm_when_it_wakes(tmp_path: Path) -> None:
    key = make_key()
    filler = start(f"""
store, key = make_store(Path({str(tmp_path)!r}), desk=LeaseDesk(1.0)), make_key()
features = make_features(key)
with store.fill(key, NUM_ROWS, SHAPE) as writer:
    for part in writer.parts():
        print(part.number, flush=True)
        input()
        writer.put(part, features[part.first:part.stop])
print('ended', torch.equal(all_rows(store, key), features), flush=True)
""")
    with filler:
        assert filler.stdout.readline() == "0\n"
        filler.send_signal(signal.SIGSTOP)
        store = make_store(tmp_path, desk=LeaseDesk(1.0))
        started = time.monotonic()
        assert fill(store, key) == NUM_ROWS
        assert 0.9 < time.monotonic() - started < 8
        names = [path.name for path in shards(store, key)]
        filler.send_signal(signal.SIGCONT)
        assert filler.communicate("\n\n\n")[0] == "ended True\n"
    assert [path.name for path in shards(store, key)] == names
    assert torch.equal(all_rows(store, key), make_features(key))


def test_two_processes_compute_each_row_once(tmp_path: Path) -> None:
    body = f"""
import time
store, key = make_store(Path({str(tmp_path)!r})), make_key()
features = make_features(key, num_rows=640)
print('ready', flush=True)
input()
with store.fill(key, 640, SHAPE) as writer:
    for part in writer.parts():
        time.sleep(0.05)
        writer.put(part, features[part.first:part.stop])
print(writer.rows_written, torch.equal(all_rows(store, key), features), flush=True)
"""
    fillers = [start(body), start(body)]
    for filler in fillers:
        assert filler.stdout.readline() == "ready\n"
    for filler in fillers:
        filler.stdin.write("\n")
        filler.stdin.flush()
    answers = [filler.communicate()[0].split() for filler in fillers]
    assert sum(int(rows) for rows, _ in answers) == 640
    assert all(int(rows) > 0 and equal == "True" for rows, equal in answers)


@pytest.mark.parametrize("check", ["open", "touch"])
@pytest.mark.parametrize("offset", [3, 700, -600, -5], ids=["magic", "schema", "values", "footer"])
def test_a_flipped_byte_is_found_and_only_its_shard_computed_anew(
    tmp_path: Path, offset: int, check: str, caplog: pytest.LogCaptureFixture
) -> None:
    store, key = make_store(tmp_path), make_key()
    fill(store, key)
    damaged = shards(store, key)[1]
    flip_byte(damaged, offset)
    if check == "open":
        assert store.open(key) is None
    else:
        opened = store.open(key, check="touch")
        assert torch.equal(opened.rows(np.arange(64)), make_features(key)[:64])
        with pytest.raises(DamagedError, match="altered"):
            opened.rows(np.array([0, 64]))
    assert len([record for record in caplog.records if "computed anew" in record.message]) == 1
    assert not damaged.exists()
    assert fill(store, key) == 64
    assert torch.equal(all_rows(store, key), make_features(key))


def test_verify_finds_what_changed_after_it_was_read(tmp_path: Path) -> None:
    store, key, other = make_store(tmp_path), make_key(), make_key(dtype="bf16")
    for each in (key, other):
        fill(store, each)
    state = shards(store, key)[2].stat()
    flip_byte(shards(store, key)[2], -600)
    os.utime(shards(store, key)[2], ns=(state.st_atime_ns, state.st_mtime_ns))  # as a bad disk does it
    report = store.verify()
    assert report.num_entries == 2
    assert [line.split(": ")[0] for line in report.damaged] == [key.digest()[:12]]
    assert store.open(key) is None
    assert store.verify().damaged == ()
    assert torch.equal(all_rows(store, other), make_features(other))


@pytest.mark.parametrize("damage", ["cut short", "emptied", "removed", "swapped"])
def test_other_damage_to_a_shard(tmp_path: Path, damage: str) -> None:
    store, key = make_store(tmp_path), make_key()
    fill(store, key)
    first, second, _ = shards(store, key)
    if damage == "cut short":
        os.truncate(first, first.stat().st_size // 2)
    elif damage == "emptied":
        first.write_bytes(b"")
    elif damage == "removed":
        first.unlink()
    else:
        shutil.copy(second, first)
    assert store.open(key, check="touch" if damage == "removed" else "open") is None
    assert fill(store, key) == 64
    assert torch.equal(all_rows(store, key), make_features(key))


def older_schema(text: str) -> str:
    return text.replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 0')


@pytest.mark.parametrize(
    "change",
    [
        older_schema,
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"num_rows": 150', '"num_rows": 149'),
        lambda text: text.replace("resnet18", "resnet34"),
        lambda text: json.dumps([text]),
        lambda _: "",
    ],
    ids=["older schema", "half", "rows", "key", "list", "empty"],
)
@pytest.mark.parametrize("name", ["manifest.json", "plan.json"])
def test_an_altered_or_older_manifest_is_not_read(tmp_path: Path, change: Any, name: str) -> None:
    store, key = make_store(tmp_path), make_key()
    fill(store, key)
    path = entry(store, key) / name
    path.write_text(change(path.read_text()))
    if name == "plan.json":  # matters only while the entry is not complete
        (entry(store, key) / "manifest.json").unlink()
        [holding] = store.status()
        assert holding.backbone == "(unreadable)"
    assert store.open(key) is None
    assert fill(store, key) == NUM_ROWS
    assert torch.equal(all_rows(store, key), make_features(key))


def test_an_older_store_is_never_read_and_is_pruned_first(tmp_path: Path) -> None:
    store, key = make_store(tmp_path), make_key()
    older = make_key(schema_version=SCHEMA_VERSION - 1)
    for each in (older, key):
        fill(store, each)
    path = entry(store, older) / "manifest.json"
    path.write_text(older_schema(path.read_text()))
    all_rows(store, key)
    assert store.open(key) is not None
    assert {holding.backbone for holding in store.status()} == {"(unreadable)", "resnet18"}
    store.prune(store.entries()[0].num_bytes + 9)
    assert [each.digest for each in store.entries()] == [key.digest()]


def test_a_shard_deleted_under_a_reader(tmp_path: Path) -> None:
    store, key = make_store(tmp_path), make_key()
    fill(store, key)
    opened = store.open(key)
    shards(store, key)[0].unlink()
    assert torch.equal(opened.rows(np.arange(NUM_ROWS)), make_features(key))
    assert store.open(key) is None
    assert fill(store, key) == 64
    assert torch.equal(opened.rows(np.arange(NUM_ROWS)), make_features(key))
    shutil.rmtree(tmp_path)
    assert torch.equal(opened.rows(np.arange(NUM_ROWS)), make_features(key))
    opened.close()


def test_an_entry_removed_under_a_filler(tmp_path: Path) -> None:
    store, key = make_store(tmp_path), make_key()
    with store.fill(key, NUM_ROWS, SHAPE) as writer:
        parts = writer.parts()
        part = next(parts)
        shutil.rmtree(entry(store, key))
        assert not writer.put(part, make_features(key)[:64])
        assert list(parts) == []
    assert store.storing.is_on
    assert fill(store, key) == NUM_ROWS


def test_a_full_disk_turns_storing_off_with_one_warning(tmp_path: Path) -> None:
    body = f"""
import logging, subprocess
logging.basicConfig(stream=sys.stdout, format='LOG %(message)s')
folder = Path({str(tmp_path)!r})
if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=200k', 'tmpfs', str(folder)]).returncode:
    sys.exit(77)
store, key, other = make_store(folder / 'store'), make_key(), make_key(dtype='bf16')
fill(store, other)
big = make_features(key, num_rows=1500)
with store.fill(key, 1500, SHAPE) as writer:
    writer.plan  # promised 216 kB to a disk of 200
    print('taken', [writer.put(part, big[part.first:part.stop]) for part in writer.parts()])
print('is_on', writer.is_on, store.storing.is_on, fill(store, make_key(input_size_px=32)))
print('left', [entry.digest == other.digest() for entry in store.entries()])
print('other', torch.equal(all_rows(store, other), make_features(other)))
"""
    # The free space promised by the file system is not believed, so that the write itself fails.
    body = body.replace(
        "store, key,", "import shutil\nshutil.disk_usage = lambda _: type('Usage', (), {'free': 1 << 40})\nstore, key,"
    )
    command = ["unshare", "--user", "--map-root-user", "--mount", *script(body)]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare to mount a small tmpfs with; the next test injects the error")
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode == 77 or "unshare" in run.stderr:
        pytest.skip(f"no tmpfs may be mounted here ({run.stderr.strip()}); the next test injects the error")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    [warning] = [line for line in lines if line.startswith("LOG")]
    assert "No space left on device" in warning
    assert next(line for line in lines if not line.startswith("LOG")).count("False") == 1
    assert lines[-3:] == ["is_on False False 0", "left [True]", "other True"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("place", ["shard", "lease", "manifest"])
def test_a_failing_write_ends_storing_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int, place: str
) -> None:
    store, key, kept = make_store(tmp_path), make_key(), make_key(dtype="bf16")
    fill(store, kept)

    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    if place == "shard":
        monkeypatch.setattr(shards_module._HashingSink, "write", fail)
    elif place == "lease":
        monkeypatch.setattr(LeaseDesk, "_place", fail)
    else:
        monkeypatch.setattr("trainables.features.filling.write_bytes", fail)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with store.fill(key, NUM_ROWS, SHAPE) as writer:
                put_all(writer, make_features(key))
    monkeypatch.undo()
    assert len(caplog.records) == 1
    assert os.strerror(code) in caplog.text
    assert [held.digest for held in store.entries()] == [kept.digest()]
    assert store.open(key) is None
    assert torch.equal(all_rows(store, kept), make_features(kept))
    again = make_store(tmp_path)
    assert fill(again, key) == NUM_ROWS


def test_a_limit_on_file_sizes_is_a_full_disk_too(tmp_path: Path) -> None:
    body = f"""
import resource
store, key = make_store(Path({str(tmp_path)!r})), make_key()
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
print(fill(store, key), store.storing.reason)
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    run = subprocess.run(script(body), capture_output=True, text=True, check=True)
    assert run.stdout.startswith("0 [Errno 27] File too large")


def test_space_is_left_to_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = make_store(tmp_path, spare_bytes=1 << 60)
    assert fill(store, make_key()) + fill(store, make_key(dtype="bf16")) == 0
    assert len(caplog.records) == 1
    assert "GB would stay free" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; a file in the way is tested below")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    key = make_key()
    fill(make_store(tmp_path), key)
    tmp_path.chmod(0o500)
    store = make_store(tmp_path)
    try:
        assert fill(store, make_key(dtype="bf16")) == 0
        assert torch.equal(all_rows(store, key), make_features(key))
    finally:
        tmp_path.chmod(0o700)
    assert not store.storing.is_on


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    store = make_store(tmp_path / "store")
    assert store.open(make_key()) is None
    assert fill(store, make_key()) == 0
    assert not store.storing.is_on
