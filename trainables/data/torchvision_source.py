"""torchvision's classification sets, from its download or from files that are there: `torchvision:NAME[:FOLDER]`.

In: the set's name as torchvision spells it, and maybe the folder that holds it. Out: a `Source`. The families of MNIST
are read straight from their gzipped files; everything else goes through torchvision, which decodes, so that what is
hashed and packed is the decoded picture, as PPM.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import io
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.config import SplitName
from trainables.data.decoding import DAMAGE_ERRORS
from trainables.data.picture import Picture, pgm
from trainables.errors import InputError, first_line
from trainables.files.node_cache import cache_root
from trainables.files.typed_path import expand
from trainables.wording import shorten, shorten_place

_Parts = tuple[tuple[Mapping[str, Any], SplitName | None], ...]


def _split(**sides: SplitName) -> _Parts:
    return tuple(({"split": name}, side) for name, side in sides.items())


_BY_FLAG: _Parts = (({"train": True}, "train"), ({"train": False}, "test"))
_TWO = _split(train="train", test="test")
_THREE = _split(train="train", val="val", test="test")
_WHOLE: _Parts = (({}, None),)
SETS: dict[str, _Parts] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS"), _BY_FLAG),
    **dict.fromkeys(("Food101", "GTSRB", "STL10", "StanfordCars", "SVHN"), _TWO),
    **dict.fromkeys(("DTD", "FGVCAircraft", "Flowers102", "PCAM", "RenderedSST2"), _THREE),
    "Country211": _split(train="train", valid="val", test="test"),
    **dict.fromkeys(("CLEVRClassification", "ImageNet", "Imagenette"), _split(train="train", val="val")),
    "EMNIST": tuple(({"split": "balanced", **options}, side) for options, side in _BY_FLAG),
    "FER2013": _split(train="train"),
    "OxfordIIITPet": _split(trainval="train", test="test"),
    **dict.fromkeys(("Caltech101", "Caltech256", "EuroSAT", "SEMEION", "SUN397"), _WHOLE),
}
"""Each set's parts: what torchvision's class is given, and the side that this is."""
_NOT_READ = {
    "CelebA": "its labels are forty attributes: list its pictures in a csv: source, with data.labels multi",
    "INaturalist": "it has several versions and levels of classes: unpack one, and give its folder of class folders",
    "Kinetics": "it holds films",
    "LFWPeople": "nobody is in both of its halves: give them as a folder of class folders",
    "LSUN": "it comes as databases: unpack them into class folders",
    "Omniglot": "its two halves have no class in common: give one of them as a folder of class folders",
    "QMNIST": "it is MNIST with more to test on: take MNIST",
    "Places365": "its files are of several sizes and depths: unpack them, and give their folder of class folders",
}
"""Sets with classes that torchvision knows and that are not read, and why, or what to do instead."""

_FASHION = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_IDX_CLASSES: dict[str, tuple[str, ...]] = {
    "MNIST": tuple("0123456789"),
    "FashionMNIST": _FASHION,
    "KMNIST": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}
_IDX_PREFIXES: dict[SplitName, str] = {"train": "train", "test": "t10k"}
_IDX_IMAGES, _IDX_LABELS = 2051, 2049
_IDX_FILES = tuple(
    f"{prefix}-{kind}" for prefix in _IDX_PREFIXES.values() for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
)
_NOT_AT_ONCE = ("PCAM",)
"""Sets that several threads may not read at once: HDF5 is one library with one state."""
_one_at_a_time = threading.Lock()


class TorchvisionSource:
    """One of torchvision's classification sets; downloaded by torchvision where its files are not there."""

    def __init__(self, place: str) -> None:
        name, colon, folder = place.partition(":")
        where = f"data source {shorten_place(f'torchvision:{place}')}"
        if name in _NOT_READ:
            raise InputError(f"{where}: {name} is not read from torchvision: {_NOT_READ[name]}")
        if name not in SETS:
            nearest = difflib.get_close_matches(name, SETS, n=1, cutoff=0.4)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(sorted(SETS))}"
            raise InputError(f"{where}: no classification set is called {shorten(name)}: {hint}")
        self._name = name
        self._folder = expand(folder, "data source").resolve() if colon else Path(cache_root()) / "torchvision"
        if colon and not self._folder.is_dir():
            raise InputError(f"{where}: no such folder: give the one that holds the set")

    @property
    def uri(self) -> str:
        """The set and its folder."""
        return f"torchvision:{self._name}:{self._folder}"

    def pictures(self) -> Sequence[Picture]:
        """All pictures of all parts; see `Source.pictures`.

        Raises:
            InputError: The set's files are not there and cannot be downloaded.
        """
        folder = self._idx_folder()
        found = self._decoded_pictures() if folder is None else self._idx_pictures(folder)
        return sorted(found, key=lambda picture: picture.name)

    def signature(self) -> str:
        """SHA-256 over the set's name and the size and time of its files, or its labels."""
        digest = hashlib.sha256(self.uri.encode())
        if self._name in _IDX_CLASSES and self._idx_folder() is None:
            _open(self._name, self._folder, 0)  # downloads: the files are what is signed, then and ever after
        if (folder := self._idx_folder()) is not None:
            for path in sorted(folder.glob("*-idx?-ubyte*")):
                stat = path.stat()
                digest.update(f"\0{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
        else:
            for picture in self.pictures():
                digest.update(f"\0{picture.name}\0{picture.class_name}".encode())
            # Other pictures under the same labels are another set. Sets keep files of their own below the folder, or in
            # it; what belongs to another set there only has this one read once more.
            for path in sorted(path for path in self._folder.rglob("*") if path.is_file()):
                stat = path.stat()
                digest.update(f"\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
        return digest.hexdigest()

    def _idx_folder(self) -> Path | None:
        """Where MNIST's kind of files lie: flat, or as torchvision keeps them."""
        if self._name not in _IDX_CLASSES:
            return None
        for folder in (self._folder, self._folder / self._name / "raw"):
            # All four: a download that was broken off is torchvision's to finish.
            if all(any((folder / f"{name}{end}").is_file() for end in ("", ".gz")) for name in _IDX_FILES):
                return folder
        return None

    def _idx_pictures(self, folder: Path) -> Iterator[Picture]:
        names = _IDX_CLASSES[self._name]
        for side, prefix in _IDX_PREFIXES.items():
            images_NHW = _read_idx(folder, f"{prefix}-images-idx3-ubyte", _IDX_IMAGES)
            labels_N = _read_idx(folder, f"{prefix}-labels-idx1-ubyte", _IDX_LABELS)
            if len(images_NHW) != len(labels_N):
                raise InputError(
                    f"{self.uri}: {len(images_NHW)} pictures and {len(labels_N)} labels on the {side} side: "
                    "fetch the files again"
                )
            if len(labels_N) and labels_N.max() >= len(names):
                raise InputError(
                    f"{self.uri}: label {labels_N.max()} on the {side} side, and {self._name} has {len(names)} "
                    "classes: give the files of that set, or unpack these into class folders"
                )
            for number, (grey_HW, label) in enumerate(zip(images_NHW, labels_N.tolist(), strict=True)):
                read = partial(pgm, grey_HW.tobytes(), *grey_HW.shape)
                yield Picture(f"{side}/{number:06d}", names[label], side, read)

    def _decoded_pictures(self) -> Iterator[Picture]:
        for part, (_, side) in enumerate(SETS[self._name]):
            opened = _open(self._name, self._folder, part)
            named: Sequence[Any] = getattr(opened, "classes", None) or getattr(opened, "categories", None) or ()
            names = [each[0] if isinstance(each, tuple) else str(each) for each in named]
            if len(set(names)) < len(names):  # ImageNet has two cranes, and tells them apart by their other names
                names = [", ".join(each) if isinstance(each, tuple) else str(each) for each in named]
            for number, label in enumerate(_labels(self._name, self._folder, part)):
                class_name = names[label] if label < len(names) else str(label)
                read = partial(_read, self._name, self._folder, part, number)
                yield Picture(f"{side or 'all'}/{number:06d}", class_name, side, read)


def _read_idx(folder: Path, name: str, magic: int) -> NDArray[np.uint8]:
    """An array of bytes as MNIST's files hold it (LeCun et al. 1998): magic number, sizes, values."""
    for path in (folder / f"{name}.gz", folder / name):
        if not path.is_file():
            continue
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            found, *sizes = np.frombuffer(content, ">u4", 1 + magic % 256).tolist()
            if found != magic:
                raise ValueError(f"its magic number is {found}, not {magic}")
            return np.frombuffer(content, np.uint8, offset=4 * (1 + len(sizes))).reshape(sizes)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise InputError(f"{path}: damaged ({error}): fetch it again") from error
    raise InputError(f"{folder}: there is no {name} and no {name}.gz: fetch it")


@lru_cache(8)
def _open(name: str, folder: Path, part: int) -> Any:
    import torchvision.datasets

    factory = getattr(torchvision.datasets, name)
    options = dict(SETS[name][part][0])
    try:
        return factory(str(folder), **options)
    except (RuntimeError, OSError, ValueError):
        pass  # not there, or not whole
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return factory(str(folder), **options, download=True)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise InputError(
            f"data source 'torchvision:{name}': it is not in {folder} and cannot be downloaded ({first_line(error)}): "
            f"put its files there, or name their folder: torchvision:{name}:FOLDER"
        ) from error


@lru_cache(8)
def _labels(name: str, folder: Path, part: int) -> list[int]:
    """Every label, without decoding the pictures where the set keeps its labels in one of the usual places."""
    opened = _open(name, folder, part)
    for place in ("targets", "labels", "_labels", "y"):
        values = getattr(opened, place, None)
        if values is not None and len(values) == len(opened):
            return [int(value) for value in values]
    for place in ("samples", "_samples"):
        pairs = getattr(opened, place, None)
        if pairs is not None and len(pairs) == len(opened):
            return [int(label) for _, label in pairs]
    if name == "PCAM":  # whose labels are a file beside that of its pictures
        with opened.h5py.File(opened._base_folder / opened._FILES[opened._split]["targets"][0]) as targets:
            return [int(label) for label in np.asarray(targets["y"]).reshape(-1)]
    return [int(opened[number][1]) for number in range(len(opened))]


def _read(name: str, folder: Path, part: int, number: int) -> bytes:
    try:
        with _one_at_a_time if name in _NOT_AT_ONCE else nullcontext():
            picture, _ = _open(name, folder, part)[number]
            picture.load()
    except DAMAGE_ERRORS as error:
        if isinstance(error, InputError) or getattr(error, "errno", None):
            raise
        raise InputError(f"torchvision cannot read it: {first_line(error)}") from error
    with io.BytesIO() as stream:
        picture.convert("RGB").save(stream, "PPM")
        return stream.getvalue()
