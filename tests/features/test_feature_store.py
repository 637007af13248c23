"""What goes in comes out, from one worker or several, within the budget."""

from __future__ import annotations

import math
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from store_support import NUM_ROWS, all_rows, entry, fill, make_features, make_key, make_store, put_all, script, shards
from typer.testing import CliRunner

from trainables.features.filling import parts_together
from trainables.features.inventory import Entry, removal_order
from trainables.features.key import ViewKey
from trainables.features.layout import shard_rows
from trainables.features.store import FeatureStore
from tuner.cli import app


def view_key(index: int, **changes: Any):
    return make_key(view=ViewKey(policy="flip", magnitude=None, seed=0, index=index), **changes)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(4, 3, 3), (7,), (5, 2), (), (8, 1, 1)], ids=str)
@pytest.mark.parametrize("channels_last", [True, False])
def test_features_come_back_with_their_bits(tmp_path: Path, dtype: str, shape: tuple, channels_last: bool) -> None:
    store, key = make_store(tmp_path), make_key(dtype=dtype, channels_last=channels_last)
    features = make_features(key, shape=shape)
    if shape == (7,):
        features[0, :3] = torch.tensor([float("nan"), float("-inf"), -0.0])
    assert fill(store, key, features) == NUM_ROWS
    opened = store.open(key)
    assert opened is not None
    with opened:
        assert (len(opened), opened.shape) == (NUM_ROWS, shape)
        order = np.random.Generator(np.random.Philox(key=3)).permutation(NUM_ROWS)
        found = opened.rows(order)
        bits = torch.int16 if dtype == "bf16" else torch.int32
        assert found.dtype == features.dtype
        assert torch.equal(found.contiguous().view(bits), features[order].contiguous().view(bits))
        if len(shape) == 3 and channels_last:
            assert found.is_contiguous(memory_format=torch.channels_last)
        whole = opened.tensor
        assert whole.shape == features.shape
        assert torch.equal(whole.contiguous().view(bits), features.contiguous().view(bits))


def test_rows_may_repeat_and_be_few_but_must_exist(tmp_path: Path) -> None:
    store, key = make_store(tmp_path), make_key()
    features = make_features(key)
    fill(store, key)
    with store.open(key) as opened:
        chosen = torch.tensor([149, 0, 0, 64, 63])
        assert torch.equal(opened.rows(chosen), features[chosen])
        assert opened.rows(np.array([], dtype=np.int64)).shape == (0, 4, 3, 3)
        for position in (-1, NUM_ROWS):
            with pytest.raises(IndexError, match="150 rows"):
                opened.rows(np.array([0, position]))


def test_rows_can_be_written_to_given_memory(tmp_path: Path) -> None:
    store, key = make_store(tmp_path), make_key(dtype="bf16")
    fill(store, key)
    buffer = torch.empty(10 * 36, dtype=torch.bfloat16)
    with store.open(key) as opened:
        found = opened.rows(np.arange(8), out=buffer)
        assert found.data_ptr() == buffer.data_ptr()
        assert torch.equal(found, make_features(key)[:8])
        with pytest.raises(ValueError, match="bfloat16 of at least 396"):
            opened.rows(np.arange(11), out=buffer)


def test_the_whole_is_one_tensor_on_the_map(tmp_path: Path) -> None:
    store, key = make_store(tmp_path), make_key()
    features = make_features(key, num_rows=150, shape=(16, 3, 3))
    fill(store, key, features)
    with store.open(key) as opened:
        assert opened.tensor.data_ptr() == opened.tensor.data_ptr()
        assert opened.tensor.is_contiguous(memory_format=torch.channels_last)
        opened.tensor[0] = 7.0  # reaches no file
        assert opened.rows(np.array([0])).eq(7.0).all()
    assert torch.equal(all_rows(store, key), features)
    assert torch.equal(all_rows(make_store(tmp_path), key), features)
    assert store.verify().damaged == ()


def test_where_pages_are_larger_rows_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, key = make_store(tmp_path), make_key()
    fill(store, key)
    monkeypatch.setattr("mmap.PAGESIZE", 65536)
    assert torch.equal(all_rows(store, key), make_features(key))


def test_tensors_outlive_their_store(tmp_path: Path) -> None:
    store, key = make_store(tmp_path), make_key()
    fill(store, key)
    with store.open(key) as opened:
        tensor = opened.tensor
    store.clear()
    del opened, store
    assert torch.equal(tensor, make_features(key))


def test_shards_are_plain_arrow_files(tmp_path: Path) -> None:
    store, key = make_store(tmp_path), make_key(channels_last=False)
    fill(store, key)
    with pa.memory_map(str(shards(store, key)[0])) as mapped, pa.ipc.open_file(mapped) as reader:
        values = reader.get_batch(0).column("features").values.to_numpy()
    assert np.array_equal(values.reshape(64, 48)[:, :36], make_features(key)[:64].numpy().reshape(64, 36))


def test_a_side_without_pictures_is_an_entry_too(tmp_path: Path) -> None:
    store, key = make_store(tmp_path), make_key()
    assert fill(store, key, make_features(key, num_rows=0)) == 0
    with store.open(key) as opened:
        assert opened.tensor.shape == opened.rows(np.array([], dtype=np.int64)).shape == (0, 4, 3, 3)


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    store = make_store(tmp_path / "nowhere")
    assert store.open(make_key()) is None
    assert (store.status(), store.verify().num_entries, store.prune().num_removed) == ([], 0, 0)
    assert not (tmp_path / "nowhere").exists()


def test_a_set_is_complete_only_with_its_last_shard(tmp_path: Path) -> None:
    store, key = make_store(tmp_path), make_key()
    features = make_features(key)
    with store.fill(key, NUM_ROWS, (4, 3, 3)) as writer:
        part = next(writer.parts())
        writer.put(part, features[part.first : part.stop])
    assert not store.has(key)
    assert store.open(key) is None
    assert fill(store, key) == NUM_ROWS - 64  # what was there is not computed again
    assert store.has(key)
    assert torch.equal(all_rows(store, key), features)
    assert fill(store, key) == 0
    assert not list(entry(store, key).glob(".*")) + list(entry(store, key).glob("*.lease"))


def test_wrong_features_are_refused(tmp_path: Path) -> None:
    with make_store(tmp_path).fill(make_key(), NUM_ROWS, (4, 3, 3)) as writer:
        part = next(writer.parts())
        for rows in (torch.zeros(64, 4, 3, 2), torch.zeros(63, 4, 3, 3), torch.zeros(64, 4, 3, 3).bfloat16()):
            with pytest.raises(ValueError, match=r"promised torch.float32 \(64, 4, 3, 3\)"):
                writer.put(part, rows)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_workers_fill_each_row_once_and_the_files_do_not_depend_on_their_number(
    tmp_path: Path, world_size: int
) -> None:
    key, folder = make_key(), tmp_path / "store"
    store = make_store(folder)
    features = make_features(key)
    writers = [store.fill(key, NUM_ROWS, (4, 3, 3), rank=rank, world_size=world_size) for rank in range(world_size)]
    turns = [writer.parts() for writer in writers]
    taken = []
    while turns:  # one part each, in turns
        for turn, writer in zip(list(turns), list(writers), strict=True):
            part = next(turn, None)
            if part is None:
                turns.remove(turn)
                writers.remove(writer)
                writer.close()
            else:
                taken.append(part.number)
                writer.put(part, features[part.first : part.stop])
    assert sorted(taken) == [0, 1, 2]
    assert torch.equal(all_rows(store, key), features)
    alone = make_store(tmp_path / "alone")
    fill(alone, key)
    assert [path.name for path in shards(store, key)] == [path.name for path in shards(alone, key)]
    names = ("manifest.json", "plan.json")
    assert all((entry(store, key) / n).read_bytes() == (entry(alone, key) / n).read_bytes() for n in names)


def test_each_rank_begins_with_its_own_share(tmp_path: Path) -> None:
    store, key = make_store(tmp_path), make_key(batch_size=64)
    writers = [store.fill(key, 640, (2,), rank=rank, world_size=2) for rank in range(2)]
    assert [next(writer.parts()).number for writer in writers] == [0, 1]
    for writer in writers:
        writer.close()


def test_one_pass_fills_several_cuts(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    keys = [make_key(), make_key(dtype="bf16"), make_key(input_size_px=32)]
    features = [make_features(key) for key in keys]
    fill(store, keys[2])  # one is there already
    writers = [store.fill(key, NUM_ROWS, (4, 3, 3)) for key in keys]
    passes = 0
    for part, wanting in parts_together(writers):
        passes += 1
        assert wanting == writers[:2]
        for writer, values in zip(writers, features, strict=True):
            if writer in wanting:
                writer.put(part, values[part.first : part.stop])
    for writer in writers:
        writer.close()
    assert passes == 3
    assert all(torch.equal(all_rows(store, key), values) for key, values in zip(keys, features, strict=True))


def test_only_writers_of_the_same_rows_fill_together(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    writers = [store.fill(make_key(), NUM_ROWS, (2,)), store.fill(make_key(rows="d" * 64), NUM_ROWS, (2,))]
    with pytest.raises(ValueError, match="same rows"):
        next(parts_together(writers))
    for writer in writers:
        writer.close()


@pytest.mark.parametrize(
    ("num_rows", "batch_size"), [(1, 64), (244, 64), (4096, 16), (100_000, 48), (2_000_000, 64), (9, 200)]
)
def test_shards_are_whole_batches_and_not_too_many(num_rows: int, batch_size: int) -> None:
    rows = shard_rows(num_rows, batch_size)
    assert rows % batch_size == 0
    assert -(-num_rows // rows) <= max(64, num_rows / (64 * 64) + 1)
    assert rows % 64 == 0
    assert rows <= 64 * math.lcm(64, batch_size)


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    for index in range(3):
        fill(store, view_key(index))
    for index in (1, 2, 0):
        time.sleep(0.02)  # times of files come in ticks of some milliseconds
        all_rows(store, view_key(index))
    one = max(entry.num_bytes for entry in store.entries())
    report = store.prune(2 * one)
    assert report.num_removed == 1
    assert [store.has(view_key(index)) for index in range(3)] == [True, False, True]
    assert report.kept_bytes == sum(entry.num_bytes for entry in store.entries()) <= 2 * one


def test_filling_makes_room_within_the_budget(tmp_path: Path) -> None:
    store = make_store(tmp_path, budget_bytes=190_000)
    for index in range(4):
        fill(store, view_key(index))
        assert sum(entry.num_bytes for entry in store.entries()) <= store.budget_bytes
    assert [store.has(view_key(index)) for index in range(4)] == [False, False, True, True]


def test_what_has_no_room_beside_what_is_in_use_drives_nothing_out(tmp_path: Path) -> None:
    store = make_store(tmp_path, budget_bytes=200_000)
    used, unused = view_key(0), view_key(1)
    for key in (used, unused):
        fill(store, key)
    size = store.entries()[0].num_bytes
    store = make_store(tmp_path, budget_bytes=2 * size + size // 2)
    with store.open(used), store.open(view_key(1)) as _:
        pass
    small = make_store(tmp_path, budget_bytes=round(1.9 * size))
    with small.open(used):
        assert fill(small, view_key(2)) == 0
    assert small.has(unused)


def test_what_exceeds_the_budget_is_not_stored_and_drives_nothing_out(tmp_path: Path) -> None:
    store = make_store(tmp_path, budget_bytes=200_000)
    fill(store, make_key())
    big = make_key(input_size_px=96)
    assert fill(store, big, make_features(big, shape=(64, 8, 8))) == 0
    assert store.has(make_key())
    assert not store.has(big)
    assert store.storing.is_on


def test_what_is_read_or_filled_is_never_removed(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    read, filled, idle = view_key(0), view_key(1), view_key(2)
    for key in (read, idle):
        fill(store, key)
    opened = store.open(read)
    writer = store.fill(filled, NUM_ROWS, (4, 3, 3))
    elsewhere = make_store(tmp_path)
    report = elsewhere.clear()
    assert (report.num_removed, report.num_in_use) == (1, 2)
    assert torch.equal(opened.rows(np.arange(NUM_ROWS)), make_features(read))
    put_all(writer, make_features(filled))
    writer.close()
    assert store.has(filled)
    opened.close()
    assert elsewhere.clear().num_removed == 2
    assert elsewhere.entries() == []


def test_use_in_another_process_protects(tmp_path: Path) -> None:
    store, key = make_store(tmp_path), make_key()
    fill(store, key)
    reader = subprocess.Popen(
        script(f"opened = make_store(Path({str(tmp_path)!r})).open(make_key())\nprint('open', flush=True)\ninput()"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with reader:
        assert reader.stdout.readline() == "open\n"
        assert store.clear().num_in_use == 1
        assert store.has(key)
        reader.kill()
    assert store.clear().num_removed == 1


def test_status_adds_up_per_backbone_cut_and_policy(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    frozen = make_key().frozen
    deeper = frozen.model_copy(update={"cut": (*frozen.cut, "layer2")})
    for key in (view_key(0), view_key(1), make_key(view=ViewKey(policy="none", magnitude=None, seed=None, index=0))):
        fill(store, key)
    with store.fill(view_key(0, frozen=deeper), NUM_ROWS, (4, 3, 3)):
        pass
    found = {(holding.cut, holding.depth, holding.policy): holding for holding in store.status()}
    assert set(found) == {("layer1", 2, "flip"), ("layer1", 2, "none"), ("layer2", 3, "flip")}
    flips = found["layer1", 2, "flip"]
    assert (flips.backbone, flips.num_entries, flips.num_complete, flips.num_rows) == ("resnet18", 2, 2, 300)
    assert flips.num_bytes == sum(
        e.num_bytes for e in store.entries() if e.digest in {view_key(0).digest(), view_key(1).digest()}
    )
    assert found["layer2", 3, "flip"].num_complete == 0


def test_unreadable_entries_go_before_used_ones() -> None:
    def make(name: str, last_used: float, plan: Any) -> Entry:
        return Entry(name, plan, True, 1, 1, last_used)

    entries = [make("a", 5.0, "plan"), make("b", 3.0, "plan"), make("c", 9.0, None)]
    assert [entry.digest for entry in removal_order(entries)] == ["c", "b", "a"]


def test_reading_takes_no_anonymous_memory(tmp_path: Path) -> None:
    body = f"""
def held(kind):
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024
store, key = make_store(Path({str(tmp_path)!r})), make_key(channels_last=False)
if sys.argv[1:] == ['fill']:
    with store.fill(key, 640, (25600,)) as writer:
        for part in writer.parts():
            writer.put(part, torch.full((part.stop - part.first, 25600), float(part.number)))
else:
    opened = store.open(key)
    opened.rows(np.arange(32)).sum()
    before = held('RssAnon')
    for first in range(0, 640, 32):
        assert opened.rows(np.arange(first, first + 32)).sum() == sum(n // 64 for n in range(first, first + 32)) * 25600
    opened.tensor.sum()
    assert opened.num_bytes > 60e6
    print(held('RssAnon') - before, held('RssFile'))
    opened.release()
    print(held('RssFile'))
"""
    subprocess.run([*script(body), "fill"], check=True)
    output = subprocess.run(script(body), check=True, capture_output=True, text=True).stdout
    grown, mapped, released = map(int, output.split())
    assert grown < 16e6  # a batch is 3.3 MB, the store 66 MB
    assert released < mapped - 50e6


def test_a_store_is_opened_by_text_path_too(tmp_path: Path) -> None:
    fill(make_store(tmp_path), make_key())
    opened = FeatureStore(str(tmp_path), 1 << 20).open(make_key())
    assert opened is not None
    opened.close()


def test_the_command_looks_where_a_spec_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THAW_HOME", str(tmp_path / "home"))
    fill(make_store(tmp_path / "kept"), make_key())
    there = ["--directory", str(tmp_path / "kept")]

    def say(*words: str) -> str:
        run = CliRunner().invoke(app, ["cache", *words], env={"COLUMNS": "200"})
        assert run.exit_code == 0, run.output
        return run.output

    assert "0 entries" in say("verify")
    assert "1 entries" in say("verify", *there)
    assert "resnet18" in say("status", *there)
    assert "0 entries removed" in say("clear")
    assert "1 entries removed" in say("prune", "--budget-gb", "0", *there)
    assert "0 entries" in say("verify", *there)
