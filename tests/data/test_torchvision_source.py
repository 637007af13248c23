"""torchvision's sets, read from files in the layouts that torchvision and the sets' makers use."""

from __future__ import annotations

import gzip
import inspect
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from idx_files import write_mnist
from PIL import Image

from trainables.data.decoding import decode_picture
from trainables.data.sources import open_source
from trainables.data.torchvision_source import SETS
from trainables.errors import InputError

Folder = Callable[..., Path]


class Patterns:
    """Three pictures as a set of torchvision's, the second of them damaged."""

    classes = ("plain", "striped")

    def __init__(self, root: str, **_: object) -> None:
        self.targets = [0, 1, 0]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        if number == 1:
            raise SyntaxError("broken PNG file (chunk b'x')")
        return Image.new("RGB", (8, 8), (number * 9, 0, 0)), self.targets[number]


@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_mnists_kind_of_files(below: str, tmp_path: Path) -> None:
    write_mnist(tmp_path / "set" / below, num_train=12, num_test=3)
    pictures = open_source(f"torchvision:FashionMNIST:{tmp_path / 'set'}").pictures()
    assert Counter(picture.side for picture in pictures) == {"train": 12, "test": 3}
    eleventh = next(picture for picture in pictures if picture.name == "train/000011")
    assert eleventh.class_name == "Trouser"
    pixels_HWC = decode_picture(eleventh.read(), 28)
    assert pixels_HWC.shape == (28, 28, 3)
    assert set(pixels_HWC.flatten().tolist()) == {11}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("byte", "damaged"),
        ("cut", "damaged"),
        ("other", "its magic number is 2051, not 2049"),
        ("short", "3 pictures and 2 labels on the test side"),
    ],
)
def test_damaged_files_are_named(damage: str, message: str, tmp_path: Path) -> None:
    write_mnist(tmp_path / "set")
    file = tmp_path / "set" / "t10k-labels-idx1-ubyte.gz"
    match damage:
        case "byte":
            content = bytearray(file.read_bytes())
            content[12] ^= 0xFF
            file.write_bytes(content)
        case "cut":
            file.write_bytes(file.read_bytes()[:-12])
        case "other":
            file.write_bytes((tmp_path / "set" / "t10k-images-idx3-ubyte.gz").read_bytes())
        case "short":
            write_mnist(tmp_path / "short", num_test=2)
            file.write_bytes((tmp_path / "short" / file.name).read_bytes())
    with pytest.raises(InputError, match=message):
        open_source(f"torchvision:MNIST:{tmp_path / 'set'}").pictures()
    assert gzip.decompress((tmp_path / "set" / "train-labels-idx1-ubyte.gz").read_bytes())


def test_files_of_a_set_with_more_classes_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path / "letters")
    labels = np.array([2049, 3], ">u4").tobytes() + bytes([0, 25, 1])
    (tmp_path / "letters" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    with pytest.raises(InputError, match="label 25 on the test side, and MNIST has 10 classes"):
        open_source(f"torchvision:MNIST:{tmp_path / 'letters'}").pictures()


def test_a_download_that_was_broken_off_is_torchvisions_to_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets

    write_mnist(tmp_path / "whole", num_train=4)
    raw = tmp_path / "set" / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    first = "train-images-idx3-ubyte.gz"
    shutil.copy(tmp_path / "whole" / first, raw / first)

    def finish(root: str, train: bool = True, *, download: bool = False) -> None:
        if not download:
            raise RuntimeError("not found")
        shutil.copytree(tmp_path / "whole", raw, dirs_exist_ok=True)

    monkeypatch.setattr(torchvision.datasets, "KMNIST", finish)
    source = open_source(f"torchvision:KMNIST:{tmp_path / 'set'}")
    before = source.signature()
    assert Counter(picture.side for picture in source.pictures()) == {"train": 4, "test": 3}
    assert source.signature() == before


def test_sets_that_torchvision_reads(folder: Folder, tmp_path: Path) -> None:
    """One without parts and one with; both of folders, so that their files can be made here."""
    folder("data/eurosat/2750", Forest=3, River=2)
    pictures = open_source(f"torchvision:EuroSAT:{tmp_path / 'data'}").pictures()
    assert Counter((picture.class_name, picture.side) for picture in pictures) == {
        ("Forest", None): 3,
        ("River", None): 2,
    }
    for side, number in (("train", 3), ("val", 2)):
        place = folder(f"data/imagenette2/{side}", n01440764=number, n02102040=number)
        for path in list(place.rglob("*.png")):
            Image.open(path).save(path.with_suffix(".JPEG"), "JPEG")
            path.unlink()
    pictures = open_source(f"torchvision:Imagenette:{tmp_path / 'data'}").pictures()
    assert Counter(picture.side for picture in pictures) == {"train": 6, "val": 4}
    assert {picture.class_name for picture in pictures} == {"tench", "English springer"}
    assert decode_picture(pictures[0].read(), 16).shape == (16, 20, 3)


def test_what_cannot_be_had_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no classification set is called 'MINST': did you mean 'MNIST'"):
        open_source("torchvision:MINST")
    with pytest.raises(InputError, match="no such folder"):
        open_source(f"torchvision:MNIST:{tmp_path / 'gone'}")
    import torchvision.datasets

    def away(root: str, split: str = "train", *, download: bool = False) -> None:
        raise RuntimeError("the network is away" if download else "not found")

    monkeypatch.setattr(torchvision.datasets, "DTD", away)
    with pytest.raises(InputError, match=r"cannot be downloaded \(the network is away\): put its files there"):
        open_source(f"torchvision:DTD:{tmp_path}").pictures()


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "folder"), [("MNIST", "mnist"), ("FashionMNIST", "fashion_mnist")])
def test_real_files(name: str, folder: str, shared_data: Path) -> None:
    pictures = open_source(f"torchvision:{name}:{shared_data / folder}").pictures()
    assert Counter(picture.side for picture in pictures) == {"train": 60_000, "test": 10_000}
    assert set(Counter(picture.class_name for picture in pictures if picture.side == "test").values()) <= set(
        range(800, 1200)
    )


def test_every_set_takes_what_it_is_given() -> None:
    import torchvision.datasets

    for name, parts in SETS.items():
        for options, side in parts:
            inspect.signature(getattr(torchvision.datasets, name)).bind("root", **options)
            assert side in (None, "train", "val", "test")


def test_letters_are_read_by_torchvision(tmp_path: Path) -> None:
    write_mnist(tmp_path / "made", num_train=6, num_test=2)
    raw = tmp_path / "set" / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for side, prefix in (("train", "train"), ("test", "t10k")):
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            content = gzip.decompress((tmp_path / "made" / f"{prefix}-{kind}.gz").read_bytes())
            (raw / f"emnist-balanced-{side}-{kind}").write_bytes(content)
    pictures = open_source(f"torchvision:EMNIST:{tmp_path / 'set'}").pictures()
    assert Counter(picture.side for picture in pictures) == {"train": 6, "test": 2}
    assert {picture.class_name for picture in pictures} <= set("0123456789")


def test_what_is_not_read_says_why() -> None:
    with pytest.raises(InputError, match="CelebA is not read from torchvision: its labels are forty attributes"):
        open_source("torchvision:CelebA")


def test_other_pictures_under_the_same_labels_are_another_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets, "DTD", Patterns)
    (tmp_path / "data.bin").write_bytes(b"1")
    source = open_source(f"torchvision:DTD:{tmp_path}")
    before = source.signature()
    assert source.signature() == before
    (tmp_path / "data.bin").write_bytes(b"22")
    assert source.signature() != before


def test_what_torchvision_cannot_read_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets, "DTD", Patterns)
    pictures = open_source(f"torchvision:DTD:{tmp_path}").pictures()
    assert decode_picture(pictures[0].read(), 8).shape == (8, 8, 3)
    with pytest.raises(InputError, match="torchvision cannot read it: broken PNG file"):
        pictures[1].read()


def test_labels_in_a_file_of_their_own_are_read_without_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets

    class Files:
        def File(self, path: Path) -> AbstractContextManager[dict[str, np.ndarray]]:  # noqa: N802
            assert path == tmp_path / "pcam" / "labels.h5"
            return nullcontext({"y": np.array([1, 0, 1]).reshape(3, 1, 1, 1)})

    class Pcam:
        def __init__(self, root: str, split: str = "train", **_: object) -> None:
            self.h5py, self._base_folder, self._split = Files(), Path(root) / "pcam", split
            self._FILES = {side: {"targets": ("labels.h5", "id", "md5")} for side in ("train", "val", "test")}

        def __len__(self) -> int:
            return 3

    monkeypatch.setattr(torchvision.datasets, "PCAM", Pcam)
    pictures = open_source(f"torchvision:PCAM:{tmp_path}").pictures()
    assert Counter((picture.side, picture.class_name) for picture in pictures) == {
        (side, name): number for side in ("train", "val", "test") for name, number in (("1", 2), ("0", 1))
    }
