"""Pictures that a CSV or Parquet file lists: what it says of them, and what is wrong with it by line."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest
from fsspec.implementations.local import LocalFileSystem

from trainables.data import listed_sources, parquet_rows
from trainables.data.limited_source import LimitedSource
from trainables.data.packing import pack
from trainables.data.sources import open_source
from trainables.data.table import ImageTable
from trainables.errors import InputError, StorageError

Folder = Callable[..., Path]


def write_csv(folder: Path, text: str, name: str = "list.csv") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return f"csv:{folder / name}"


def write_parquet(path: Path, columns: dict[str, object], metadata: dict[bytes, bytes] | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns).replace_schema_metadata(metadata)
    pa.parquet.write_table(table, path, row_group_size=2)
    return f"parquet:{path}"


def test_a_csv_file_gives_labels_sides_and_groups(folder: Folder, tmp_path: Path) -> None:
    pictures = folder("shots", one=2, two=2)
    text = "File,Class,Split,Group\none/000.png,good,train,part 1\none/001.png,bad,VALID,\n two/001.png ,bad,,part 1\n"
    source = open_source(write_csv(pictures, text))
    facts = [(each.name, each.class_name, each.side, each.group) for each in source.pictures()]
    assert facts == [
        ("one/000.png", "good", "train", "part 1"),
        ("one/001.png", "bad", "val", ""),
        ("two/001.png", "bad", None, "part 1"),
    ]
    assert source.pictures()[0].read() == (pictures / "one" / "000.png").read_bytes()
    before = source.signature()
    shutil.copy(pictures / "two" / "000.png", pictures / "one" / "000.png")
    assert source.signature() != before
    report = pack(source, tmp_path / "tables", side_px=8)
    assert ImageTable.open(report.path).source_groups == ["part 1", "", "part 1"]


def test_tabs_and_a_byte_order_mark(folder: Folder) -> None:
    pictures = folder("shots", one=1)
    uri = write_csv(pictures, "\ufefffilename\tlabel\none/000.png\tgut, aber klein\n", "list.tsv")
    assert [each.class_name for each in open_source(uri).pictures()] == ["gut, aber klein"]


def test_a_list_as_spreadsheets_write_it_where_a_comma_is_in_numbers(folder: Folder) -> None:
    pictures = folder("shots", one=1)
    uri = write_csv(pictures, "\ufefffile;label\none/000.png;gut, aber klein\n")
    assert [(each.name, each.class_name) for each in open_source(uri).pictures()] == [
        ("one/000.png", "gut, aber klein")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na.png,x\n", "no column 'file' among name, label: call one of them 'file'"),
        ("file,colour\na.png,x\n", "no column 'label' among file, colour"),
        ("", "no column 'file' among none"),
        ("file,label\n", "no line below the header"),
        ("file,label\na.png,x\nb.png,\n", "line 3: no label: fill it in, or remove the row"),
        ("file,label\na.png,x\nb.png\n", "line 3: no label"),
        ("file,label\n,x\n", "line 2: no file"),
        ("file,label\na.png,x\na.png,y\n", "line 3: a.png stands on line 2 already"),
        ("file,label\na\0b.png,x\n", r"line 2: 'a\\x00b\.png': no file's name holds a NUL character"),
        ("file,label,split\na.png,x,dev\n", "line 2: split is 'dev': use train, val or test"),
    ],
)
def test_a_csv_file_that_will_not_do(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_source(write_csv(tmp_path, text)).pictures()


def test_a_csv_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("file,label\na.png,grün\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"cannot be read .*: save it as CSV in UTF-8"):
        open_source(f"csv:{tmp_path / 'list.csv'}").pictures()


def test_a_file_that_is_not_there_is_set_aside_by_name(folder: Folder, tmp_path: Path) -> None:
    uri = write_csv(folder("shots", one=1), "file,label\none/000.png,x\none/gone.png,x\n")
    (bad,) = pack(open_source(uri), tmp_path / "tables", side_px=8).bad_files
    assert (bad.name, bad.reason) == ("one/gone.png", "cannot be read: No such file or directory")


def test_parquet_files_give_the_pictures_that_a_folder_gives(folder: Folder, tmp_path: Path) -> None:
    pictures = open_source(str(folder("shots", ants=3, bees=4))).pictures()
    kept = [(picture.read(), picture.class_name) for picture in pictures]
    for number, part in enumerate((kept[:4], kept[4:])):
        columns = {"image": [content for content, _ in part], "label": [name for _, name in part]}
        write_parquet(tmp_path / "set" / f"part-{number}.parquet", columns)
    source = open_source(f"parquet:{tmp_path / 'set'}")
    assert [(picture.read(), picture.class_name) for picture in source.pictures()] == kept
    tables = [
        ImageTable.open(pack(each, tmp_path / "tables", side_px=8).path)
        for each in (source, open_source(str(tmp_path / "shots")))
    ]
    assert np.array_equal(*(table.ids for table in tables))
    assert tables[0].fingerprint == tables[1].fingerprint


def test_parquet_as_hugging_face_writes_it(folder: Folder, tmp_path: Path) -> None:
    contents = [picture.read() for picture in open_source(str(folder("shots", one=3))).pictures()]
    features = {"label": {"_type": "ClassLabel", "names": ["crack", "scratch"]}, "image": {"_type": "Image"}}
    uri = write_parquet(
        tmp_path / "train.parquet",
        {
            "image": [{"bytes": content, "path": None} for content in contents],
            "label": [1, 0, 1],
            "split": ["train", "test", None],
            "group": [7, None, 7],
        },
        {b"huggingface": json.dumps({"info": {"features": features}}).encode()},
    )
    pictures = open_source(uri).pictures()
    assert [(each.class_name, each.side, each.group) for each in pictures] == [
        ("scratch", "train", "7"),
        ("crack", "test", ""),
        ("scratch", None, "7"),
    ]
    assert [picture.read() for picture in pictures] == contents


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture bytes": [b"a"], "label": ["x"]}, "no column 'image' among picture bytes, label"),
        ({"image": [b"a", b"b"], "label": ["x", None]}, "row 1: no label"),
        ({"image": [b"a"], "label": ["x"], "split": ["holdout"]}, "row 0: split is 'holdout'"),
    ],
)
def test_parquet_that_will_not_do(tmp_path: Path, columns: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_source(write_parquet(tmp_path / "set.parquet", columns)).pictures()


def test_a_row_without_a_picture_is_set_aside(folder: Folder, tmp_path: Path) -> None:
    (picture,) = open_source(str(folder("shots", one=1))).pictures()
    uri = write_parquet(tmp_path / "set.parquet", {"image": [picture.read(), None], "label": ["x", "x"]})
    (bad,) = pack(open_source(uri), tmp_path / "tables", side_px=8).bad_files
    assert (bad.name, bad.reason) == ("set.parquet#00000001", "the row holds no picture")


def test_places_without_parquet_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.parquet").write_text("text")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        open_source(f"parquet:{tmp_path / 'no.parquet'}").pictures()
    with pytest.raises(InputError, match="no Parquet file there"):
        open_source(f"parquet:{tmp_path / 'gone'}")
    with pytest.raises(InputError, match="cannot be reached"):
        open_source("parquet:nosuch://bucket/set")
    with pytest.raises(InputError, match="no such file"):
        open_source(f"csv:{tmp_path / 'gone.csv'}")


def test_parquet_behind_a_storage_uri(folder: Folder, tmp_path: Path) -> None:
    (picture,) = open_source(str(folder("shots", one=1))).pictures()
    write_parquet(tmp_path / "bucket" / "set.parquet", {"image": [picture.read()], "label": ["x"]})
    source = open_source(f"parquet:fsspec+{(tmp_path / 'bucket').as_uri()}")
    assert [each.read() for each in source.pictures()] == [picture.read()]
    assert source.uri == f"parquet:fsspec+{(tmp_path / 'bucket').as_uri()}"


def test_a_limit_takes_the_same_pictures_of_each_class_whatever_is_added(folder: Folder) -> None:
    place = folder("shots", ants=9, bees=2)
    limited = LimitedSource(open_source(str(place)), 4)
    names = [picture.name for picture in limited.pictures()]
    assert sorted(name.split("/")[0] for name in names) == ["ants"] * 4 + ["bees"] * 2
    assert names == sorted(names) == [picture.name for picture in limited.pictures()]
    assert limited.signature() != LimitedSource(open_source(str(place)), 5).signature()
    assert (
        len({*names, *(each.name for each in LimitedSource(open_source(str(place)), 5).pictures())}) == len(names) + 1
    )


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    columns: dict[str, object] = {"image": pa.array([], pa.binary()), "label": pa.array([], pa.string())}
    with pytest.raises(InputError, match=r"empty\.parquet: no row in it"):
        open_source(write_parquet(tmp_path / "empty.parquet", columns)).pictures()


def test_labels_of_every_type_are_text_or_missing(tmp_path: Path) -> None:
    """Whole numbers with a gap come as floats, text as bytes; Hugging Face says -1 where there is no label."""

    def names(labels: pa.Array, metadata: dict[bytes, bytes] | None = None) -> list[str]:
        columns: dict[str, object] = {"image": [b"1", b"2"], "label": labels}
        uri = write_parquet(tmp_path / "list.parquet", columns, metadata)
        return [each.class_name for each in open_source(uri).pictures()]

    assert names(pa.array([b"cat", "hündin".encode()])) == ["cat", "hündin"]
    assert names(pa.array([1.0, 2.5])) == ["1", "2.5"]
    features = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
    named = {b"huggingface": json.dumps(features).encode()}
    assert names(pa.array([1, 0]), named) == ["dog", "cat"]
    for missing in (pa.array([1.0, float("nan")]), pa.array([1, None])):
        with pytest.raises(InputError, match="row 1: no label"):
            names(missing)
    for missing in (pa.array([1, -1]), pa.array([1, 2])):
        with pytest.raises(InputError, match="row 1: no label"):
            names(missing, named)


def test_rows_of_one_large_row_group_are_read_in_any_order(tmp_path: Path) -> None:
    contents = [b"%d" % number for number in range(300)]
    table = pa.table({"image": contents, "label": ["x"] * 300, "group": [f"g{number // 7}" for number in range(300)]})
    pa.parquet.write_table(table, tmp_path / "one.parquet", row_group_size=1000)
    pa.parquet.write_table(table.slice(0, 5), tmp_path / "two.parquet", row_group_size=2)
    pictures = open_source(f"parquet:{tmp_path}").pictures()
    assert [picture.read() for picture in pictures] == contents + contents[:5]
    assert [pictures[place].read() for place in (299, 0, 150, 149, 20, 304, 21)] == [
        b"299", b"0", b"150", b"149", b"20", b"4", b"21",
    ]  # fmt: skip
    assert [pictures[place].group for place in (0, 7, 299)] == ["g0", "g1", "g42"]


def test_a_damaged_page_is_said_for_each_row_and_stops_nothing_else(tmp_path: Path) -> None:
    noise = np.random.Generator(np.random.Philox(key=0))
    contents = [noise.bytes(3000) for _ in range(200)]
    table = pa.table({"image": contents, "label": ["x"] * 200})
    path = tmp_path / "one.parquet"
    pa.parquet.write_table(
        table, path, data_page_size=20_000, use_dictionary=False, write_page_checksum=True, compression="zstd"
    )
    damaged = bytearray(path.read_bytes())
    start = damaged.index(contents[100][:40]) - 40  # in the header of a page, or in the page itself
    damaged[start : start + 60] = bytes(60)
    path.write_bytes(damaged)
    pictures = open_source(f"parquet:{path}").pictures()
    assert pictures[0].read() == contents[0]
    for place in (150, 199, 150):
        with pytest.raises(InputError, match="the file is damaged there: "):
            pictures[place].read()
    assert pictures[1].read() == contents[1]


class Away(pyarrow.fs.FSSpecHandler):
    """A storage of files that may go away."""

    def __init__(self) -> None:
        super().__init__(LocalFileSystem())
        self.failures_left = 0

    def open_input_file(self, path: str) -> Any:
        if self.failures_left > 0:
            self.failures_left -= 1
            raise OSError("the connection\n was reset")
        return super().open_input_file(path)


def test_a_storage_that_goes_away_sets_no_row_aside(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [picture.read() for picture in open_source(str(folder("shots", one=9))).pictures()]
    columns: dict[str, object] = {"image": contents, "label": ["a", "b", "c"] * 3}
    uri = write_parquet(tmp_path / "bucket" / "set.parquet", columns).replace("parquet:", "parquet:s3:/")
    storage = Away()

    def opened(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
        return pyarrow.fs.PyFileSystem(storage), uri.removeprefix("s3:/")

    monkeypatch.setattr(parquet_rows, "open_filesystem", opened)
    monkeypatch.setattr(listed_sources, "open_filesystem", opened)
    monkeypatch.setattr(parquet_rows, "_PAUSE_S", 0.0)
    source = open_source(uri)
    read, given_up = parquet_rows.read_image, 0

    def goes_away(*where: Any) -> bytes:
        nonlocal given_up
        given_up += 1
        storage.failures_left = 10**9 if given_up == 5 else 0  # where another row group begins
        return read(*where)

    monkeypatch.setattr(listed_sources, "read_image", goes_away)
    with pytest.raises(StorageError, match=r"set\.parquet: cannot be reached \(the connection was reset\)"):
        pack(source, tmp_path / "t", side_px=16, num_threads=1)
    storage.failures_left = 10**9
    with pytest.raises(InputError, match="cannot be reached"):
        open_source(uri).pictures()
    storage.failures_left, given_up = 0, 100
    parquet_rows._rows_of.cache_clear()
    report = pack(source, tmp_path / "t", side_px=16)
    assert (report.num_images, report.bad_files, report.reused) == (9, (), False)
    # Away for a moment only: the row is read again.
    parquet_rows._rows_of.cache_clear()
    monkeypatch.setattr(listed_sources, "read_image", read)
    first = source.pictures()[0]
    storage.failures_left = 1
    assert first.read() == contents[0]
    assert storage.failures_left == 0


def test_a_limit_leaves_each_side_its_share(folder: Folder) -> None:
    place = folder("sided/train", ants=60, bees=3).parent
    folder("sided/val", ants=3, bees=1)
    folder("sided/test", ants=27)
    pictures = LimitedSource(open_source(str(place)), 10).pictures()
    counts = Counter((picture.class_name, picture.side) for picture in pictures)
    assert counts == {
        ("ants", "train"): 6, ("ants", "val"): 1, ("ants", "test"): 3, ("bees", "train"): 3, ("bees", "val"): 1,
    }  # fmt: skip
    assert [picture.name for picture in pictures] == sorted(picture.name for picture in pictures)
    three = Counter(picture.side for picture in LimitedSource(open_source(str(place)), 3).pictures())
    assert three == {"val": 2, "test": 1, "train": 3}
    with pytest.raises(InputError, match=r"data\.max_per_class: 2 is less than the 3 sides .* of class 'ants'"):
        LimitedSource(open_source(str(place)), 2).pictures()


def test_text_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    labels = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xe9"], pa.binary()).buffers())
    uri = write_parquet(tmp_path / "list.parquet", {"image": [b"x"], "label": labels})
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        open_source(uri).pictures()


def test_a_storage_whose_package_is_missing_is_named() -> None:
    with pytest.raises(InputError, match=r"cannot be reached \(.*nosuch"):
        open_source("parquet:fsspec+nosuch://bucket/set")
    with pytest.raises(InputError, match=r"cannot be reached \(.*nosuch"):
        open_source("folder:fsspec+nosuch://bucket/set")
