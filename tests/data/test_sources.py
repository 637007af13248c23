"""One contract for every source, and what is particular to folders."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from idx_files import write_mnist

import trainables
from trainables.data.decoding import decode_picture
from trainables.data.sources import Source, open_source
from trainables.errors import InputError

Folder = Callable[..., Path]


@pytest.fixture(params=["digits", "class folders", "side folders", "csv", "parquet", "torchvision", "idx"])
def source(request: pytest.FixtureRequest, folder: Folder, tmp_path: Path) -> Source:
    return open_source(_make(request.param, folder, tmp_path))


def _make(kind: str, folder: Folder, tmp_path: Path) -> str:
    """Pictures in one form or another; returns how a spec names them."""
    uri = kind
    match kind:
        case "class folders":
            uri = f"folder:{folder(ants=4, bees=3)}"
        case "side folders":
            folder("sided/train", ants=3, bees=3)
            uri = str(folder("sided/val", ants=2, bees=1).parent)
        case "csv":
            (folder(ants=2, bees=1) / "list.csv").write_text("file,label\nants/000.png,a\nbees/000.png,b\n")
            uri = f"csv:{tmp_path / 'pictures' / 'list.csv'}"
        case "parquet":
            contents = [picture.read() for picture in open_source(str(folder(ants=3))).pictures()]
            pq.write_table(pa.table({"image": contents, "label": ["a", "b", "a"]}), tmp_path / "set.parquet")
            uri = f"parquet:{tmp_path / 'set.parquet'}"
        case "torchvision":
            uri = f"torchvision:EuroSAT:{folder('eurosat/2750', Forest=2, River=2).parents[1]}"
        case "idx":
            write_mnist(tmp_path / "mnist")
            uri = f"torchvision:MNIST:{tmp_path / 'mnist'}"
    return uri


class TestContract:
    def test_pictures_are_sorted_unique_and_the_same_again(self, source: Source) -> None:
        facts = [(picture.name, picture.class_name, picture.side) for picture in source.pictures()]
        names = [name for name, _, _ in facts]
        assert len(set(names)) == len(names) > 0
        assert names == sorted(names)
        again = open_source(source.uri)
        assert facts == [(picture.name, picture.class_name, picture.side) for picture in again.pictures()]

    def test_uri_finds_the_same_pictures_from_elsewhere(
        self, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert open_source(source.uri).signature() == source.signature()

    def test_every_picture_can_be_read_and_decoded_twice(self, source: Source) -> None:
        for picture in list(source.pictures())[:5]:
            data = picture.read()
            assert data == picture.read()
            assert decode_picture(data).shape[2] == 3

    def test_pictures_travel_between_processes(self, source: Source) -> None:
        picture = source.pictures()[0]
        assert pickle.loads(pickle.dumps(picture)).read() == picture.read()

    def test_signature_is_stable(self, source: Source) -> None:
        assert source.signature() == source.signature()


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = open_source("digits").pictures()
    assert [int(picture.class_name) for picture in pictures] == digits.target.tolist()
    grey = np.stack([decode_picture(picture.read())[:, :, 0] for picture in pictures])
    np.testing.assert_array_equal(grey, np.rint(digits.images * 255 / 16))
    assert {picture.side for picture in pictures} == {None}


def test_class_folders(folder: Folder) -> None:
    source = open_source(str(folder(bees=2, ants=1)))
    assert [picture.name for picture in source.pictures()] == ["ants/000.png", "bees/000.png", "bees/001.png"]
    assert [picture.class_name for picture in source.pictures()] == ["ants", "bees", "bees"]


@pytest.mark.parametrize("val_name", ["val", "valid", "validation", "Val"])
def test_side_folders(folder: Folder, val_name: str) -> None:
    folder("x/train", ants=3, bees=2)
    folder(f"x/{val_name}", ants=1, bees=1)
    root = folder("x/test", ants=1).parent
    (root / "notes").mkdir()
    (root / "README.txt").write_text("about these pictures")
    pictures = open_source(str(root)).pictures()
    assert Counter((picture.class_name, picture.side) for picture in pictures) == {
        ("ants", "train"): 3,
        ("bees", "train"): 2,
        ("ants", "val"): 1,
        ("bees", "val"): 1,
        ("ants", "test"): 1,
    }


def test_a_class_may_be_called_train(folder: Folder) -> None:
    """Vehicles: without a folder of another side beside it, `train` is a class."""
    pictures = open_source(str(folder(car=2, plane=2, train=2))).pictures()
    assert {picture.class_name for picture in pictures} == {"car", "plane", "train"}
    assert {picture.side for picture in pictures} == {None}


def test_every_file_is_a_candidate_except_hidden_and_litter(folder: Folder) -> None:
    root = folder(ants=1)
    for name in ("notes.txt", "picture", "UPPER.JPG", ".hidden.png", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (root / "ants" / name).write_bytes(b"x")
    for name in ("deep/er", ".git", "__MACOSX"):
        (root / "ants" / name).mkdir(parents=True)
        (root / "ants" / name / "inside.png").write_bytes(b"x")
    (root / ".cache").mkdir()
    (root / "loose.png").write_bytes(b"x")
    names = [picture.name for picture in open_source(str(root)).pictures()]
    assert names == ["ants/000.png", "ants/UPPER.JPG", "ants/deep/er/inside.png", "ants/notes.txt", "ants/picture"]


def test_names_with_spaces_brackets_and_other_scripts(folder: Folder) -> None:
    root = folder(ants=1)
    strange = root / "Bären [groß] (2)"
    strange.mkdir()
    names = ["a b.png", "[1].png", "50% #1?.png", "蜂*.png", "new\nline.png"]
    for name in names:
        shutil.copy(root / "ants" / "000.png", strange / name)
    Path(os.fsdecode(bytes(strange) + b"/latin-\xe9.png")).write_bytes(b"x")
    pictures = [picture for picture in open_source(str(root)).pictures() if picture.class_name != "ants"]
    assert {picture.class_name for picture in pictures} == {"Bären [groß] (2)"}
    assert {Path(picture.name).name for picture in pictures} == {*names, r"latin-\xe9.png"}
    assert all(picture.name.encode("utf-8") and picture.read() for picture in pictures)


def test_class_names_are_composed_unicode(folder: Folder) -> None:
    root = folder(ants=1)
    (root / "Ba\u0308ren").mkdir()
    shutil.copy(root / "ants" / "000.png", root / "Ba\u0308ren" / "1.png")
    assert {picture.class_name for picture in open_source(str(root)).pictures()} == {"ants", "B\u00e4ren"}


def test_links_are_followed_loops_end_and_dangling_ones_stay_named(folder: Folder, tmp_path: Path) -> None:
    root = folder(ants=1)
    elsewhere = folder("elsewhere", more=2) / "more"
    (root / "ants" / "linked").symlink_to(elsewhere)
    (root / "ants" / "linked" / "up").symlink_to(root / "ants")
    (root / "ants" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(root / "ants" / "pipe")
    pictures = open_source(str(root)).pictures()
    assert [picture.name for picture in pictures] == [
        "ants/000.png",
        "ants/gone.png",
        "ants/linked/000.png",
        "ants/linked/001.png",
    ]
    with pytest.raises(FileNotFoundError):
        pictures[1].read()


def test_signature_changes_with_every_change(folder: Folder) -> None:
    root = folder(ants=3, bees=2)
    source = open_source(str(root))
    untouched = source.signature()
    seen = {untouched}

    def must_be_new() -> None:
        assert source.signature() not in seen
        seen.add(source.signature())

    shutil.copy(root / "ants" / "000.png", root / "bees" / "added.png")
    must_be_new()
    (root / "bees" / "added.png").rename(root / "bees" / "renamed.png")
    must_be_new()
    (root / "bees" / "renamed.png").unlink()
    assert source.signature() == untouched
    (root / "ants" / "002.png").unlink()
    must_be_new()
    before = (root / "ants" / "000.png").stat()
    data = bytearray((root / "ants" / "000.png").read_bytes())
    data[-1] ^= 1
    (root / "ants" / "000.png").write_bytes(data)
    os.utime(root / "ants" / "000.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    must_be_new()  # same name, size and modification time, other content
    (root / "bees").rename(root / "wasps")
    must_be_new()
    (root / "README.txt").write_text("not in a class folder")
    assert source.signature() in seen


def test_a_file_too_large_to_be_a_picture_is_not_read(folder: Folder) -> None:
    root = folder(ants=1)
    with (root / "ants" / "film.mp4").open("wb") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(InputError, match="the file has 300 MiB, more than 256"):
        open_source(str(root)).pictures()[1].read()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("digit", "no such folder: did you mean `digits`"),
        ("foldr:x/y", "no source is called 'foldr': did you mean `folder:x/y`"),
        (
            "s3://bucket/x",
            "no source is called 's3': give a folder's path or one of csv, digits, folder, parquet, torchvision",
        ),
        ("missing/place", "no such folder"),
        ("folder:missing/place", "no such folder"),
        ("folder:", "no such folder"),
        ("digits:3", "takes no path"),
        ("", "no such folder"),
    ],
)
def test_unknown_places_are_refused_in_one_line(uri: str, message: str) -> None:
    with pytest.raises(InputError, match="data source") as caught:
        open_source(uri)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_without_pictures_are_refused(folder: Folder, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no class folders there"):
        open_source(str(empty)).pictures()
    (empty / "loose.png").write_bytes(b"x")
    with pytest.raises(InputError, match="no class folders there"):
        open_source(str(empty)).pictures()
    (empty / "ants").mkdir()
    with pytest.raises(InputError, match="hold no pictures"):
        open_source(str(empty)).pictures()
    with pytest.raises(InputError, match="is a file, not a folder"):
        open_source(f"folder:{empty / 'loose.png'}")
    for name, scheme in (("list.csv", "csv"), ("list.TSV", "csv"), ("shots.parquet", "parquet")):
        (empty / name).write_text("")
        with pytest.raises(InputError, match=rf"is a file, not a folder: write '{scheme}:.*{name}'"):
            open_source(f"folder:{empty / name}")
    root = folder(ants=2)
    (root / "wasps").mkdir()
    with pytest.raises(InputError, match="class folder 'wasps' is empty"):
        open_source(str(root)).pictures()


def test_a_lone_side_folder_is_refused_with_its_path(folder: Folder) -> None:
    root = folder("lone/train", ants=2, bees=2).parent
    with pytest.raises(InputError, match=f"give 'folder:{root}/train'"):
        open_source(str(root)).pictures()


def test_reading_and_packing_import_neither_torch_nor_pandas_nor_scikit_learn(tmp_path: Path) -> None:
    """The driver packs while the workers import torch: it must not wait for imports of its own."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from trainables.config import SplitConfig\n"
        "from trainables.data.packing import pack\n"
        "from trainables.data.sources import open_source\n"
        "from trainables.data.splits import assign_sides\n"
        "from trainables.data.table import ImageTable\n"
        "report = pack(open_source('digits'), Path(sys.argv[1]), side_px=8)\n"
        "table = ImageTable.open(report.path)\n"
        "assert len(assign_sides(table.ids, table.sides, SplitConfig())) == len(table.names) == 1797\n"
        "print(sorted({'torch', 'torchvision', 'pandas', 'sklearn', 'scipy', 'mlflow', 'ray'} & set(sys.modules)))\n"
    )
    root = Path(trainables.__file__).parents[1]
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize(
    "uri", ["folder:~nobody-here/parts", "~nobody-here/parts", "csv:~nobody-here", "torchvision:MNIST:~nobody-here"]
)
def test_a_home_of_nobody_is_refused_with_the_remedy(uri: str) -> None:
    with pytest.raises(InputError, match="a user called 'nobody-here', whom this machine does not know; write ~/"):
        open_source(uri)


def test_a_nul_character_is_refused() -> None:
    with pytest.raises(InputError, match="no path holds a NUL character"):
        open_source("folder:a\0b")


def test_a_folders_address_is_that_folder_and_its_links_end(folder: Folder) -> None:
    root = folder("my pictures", ants=2, bees=1)
    (root / "bees" / "upwards").symlink_to(root)
    source = open_source(f"folder:{root.as_uri()}")
    assert source.uri == f"folder:{root}"
    assert [picture.name for picture in source.pictures()] == ["ants/000.png", "ants/001.png", "bees/000.png"]


def test_a_folder_of_mnists_files_is_told_from_one_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"x")
    with pytest.raises(InputError, match=rf"files of MNIST's kind: give torchvision:MNIST:{tmp_path}, or FashionMNIST"):
        open_source(f"folder:{tmp_path}").pictures()
