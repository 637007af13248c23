"""Mistakes, each made for real, and what Thaw says of it.

In: an empty folder. Out: for each mistake the lines that a user sees, with that folder written as PATH.
"""

from __future__ import annotations

import base64
import http.server
import io
import os
import re
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from PIL import Image

from tuner import cli

SPEC = """
version: 1
name: mistakes
data: {source: nowhere, image_size_px: 16, split: {train: 0.6, val: 0.2, test: 0.2}}
model: {backbone: lenet, weights: none}
search: {batch_size: [4, 8], num_trials: 3}
budget: {epochs: 2}
"""
LONG_NAME = "é" * 100 + " [1] " + "x" * 40 + ".png"  # 249 bytes
Made = list[str]
"""What is typed behind ``thaw``."""


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes:
        title: In a few words.
        make: Makes it in an empty folder; returns what is typed behind ``thaw``.
        goes_on: Whether the sweep runs all the same; else it is refused with exit code 2.
    """

    title: str
    make: Callable[[Path], Made]
    goes_on: bool = False

    @property
    def key(self) -> str:
        """The title as an identifier."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def run_thaw(arguments: Made, work: Path) -> tuple[int, str, str]:
    """The command in this process, its home below ``work``: exit code, standard output and error."""
    out, err = io.StringIO(), io.StringIO()
    environment = {"THAW_HOME": str(work / "home"), "COLUMNS": "10000"}
    with mock.patch.dict(os.environ, environment), mock.patch.object(sys, "argv", ["thaw", *arguments]):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        with redirect_stdout(out), redirect_stderr(err):
            try:
                cli.main()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def lines_of(mistake: Mistake, work: Path) -> tuple[int, list[str]]:
    """Makes a mistake; gives the exit code and what is said of it."""
    arguments = mistake.make(work)
    place = work / "cwd"
    place.mkdir(exist_ok=True)
    with chdir(place):
        code, out, err = run_thaw(arguments, work)
    assert "Traceback" not in err, err
    assert not list(place.iterdir()), "something was written into the working directory"
    said = [line.removeprefix("thaw: ") for line in err.splitlines() if line.startswith("thaw: ")]
    said += [line for line in out.splitlines() if line.startswith("set aside: ")]
    return code, [_without_places(line, work) for line in said]


def _without_places(line: str, work: Path) -> str:
    line = line.replace(str(work.resolve()), "PATH").replace(str(work), "PATH")
    line = re.sub(r"truncated \(\d+ bytes", "truncated (12 bytes", line)  # another libjpeg, another number
    return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:5000", re.sub(r"tables/[0-9a-f]{32}", "tables/...", line))


# --- pictures ------------------------------------------------------------------------------------------------


def picture(path: Path, number: int = 0, kind: str = "PNG") -> Path:
    """A picture unlike those of other numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (20, 20), (number % 251, 7 * number % 253, number // 251))
    image.save(path, kind)
    return path


def classes(root: Path, *names: str, count: int = 36) -> Path:
    """A folder of class folders."""
    for place, name in enumerate(names):
        for number in range(count):
            picture(root / name / f"{number:03d}.png", 1000 * place + number)
    return root


def plan(work: Path, source: str, *overrides: str) -> Made:
    """A dry run over a source: all that can be refused is refused in it."""
    spec = work / "parts.yaml"
    spec.write_text(SPEC)
    sets = [f"data.source={source}", *overrides]
    return ["sweep", str(spec), "--dry-run", *(part for text in sets for part in ("--set", text))]


def plan_of(root: Path, *overrides: str) -> Made:
    """`plan` of a folder, whose parent is the folder to work in."""
    return plan(root.parent, f"folder:{root}", *overrides)


def _beside(write: Callable[[Path], object], *overrides: str) -> Callable[[Path], Made]:
    """One file made by ``write`` among seventy-two good pictures."""

    def make(work: Path) -> Made:
        root = classes(work / "parts", "bolt", "nut")
        write(root / "bolt")
        return plan_of(root, *overrides)

    return make


def _truncated(folder: Path) -> None:
    Image.radial_gradient("L").save(folder / "cut.jpg")
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])


def _animated(folder: Path) -> None:
    frames = [Image.new("RGB", (20, 20), (shade, 200, 100)) for shade in (0, 128, 255)]
    frames[0].save(folder / "moves.gif", save_all=True, append_images=frames[1:])


def _bomb(folder: Path) -> None:
    """A PNG of a few bytes that says it has 2,500 million pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def _loops(folder: Path) -> None:
    (folder / "upwards").symlink_to(folder.parent, target_is_directory=True)
    (folder / "one.png").symlink_to(folder / "other.png")
    (folder / "other.png").symlink_to(folder / "one.png")


def _alike(work: Path) -> Made:
    return plan_of(classes(work / "parts", "bolt", "Bolt ", "nut"))


def _a_class_per_picture(work: Path) -> Made:
    blank = picture(work / "blank.png").read_bytes()
    for number in range(10_000):
        folder = work / "parts" / f"{number:05d}"
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(blank + number.to_bytes(4, "big"))
    return plan_of(work / "parts")


def _sides(work: Path, **names: tuple[str, ...]) -> Path:
    for place, (side, of_side) in enumerate(names.items()):
        for number in range(12):
            for each, name in enumerate(of_side):
                picture(work / "parts" / side / name / f"{number}.png", 3000 * place + 1000 * each + number)
    return work / "parts"


def _empty_side(work: Path) -> Made:
    root = _sides(work, train=("bolt", "nut"))
    (root / "val").mkdir()
    return plan_of(root)


def _no_share(work: Path) -> Made:
    root = classes(work / "parts", "bolt", "nut", count=5)
    return plan_of(root, "data.split={train: 0.98, val: 0.01, test: 0.01}")


def _other_classes(work: Path) -> Made:
    return plan_of(_sides(work, train=("bolt", "nut", "washer"), val=("bolt", "nut")))


def _large_batch(work: Path) -> Made:
    return plan_of(_sides(work, train=("bolt", "nut"), val=("bolt", "nut")), "search.batch_size=512")


def _null_labels(work: Path) -> Made:
    classes(work / "parts", "bolt", "nut")
    (work / "parts" / "labels.csv").write_text("file,label\nbolt/000.png,bolt\nbolt/001.png,\nnut/000.png,nut\n")
    return plan(work, f"csv:{work / 'parts' / 'labels.csv'}")


def _null_labels_in_parquet(work: Path) -> Made:
    import pyarrow as pa
    import pyarrow.parquet

    images = [picture(work / "a.png", number).read_bytes() for number in range(6)]
    labels = ["bolt", "bolt", "bolt", None, "nut", "nut"]
    pyarrow.parquet.write_table(pa.table({"image": images, "label": labels}), work / "parts.parquet")
    return plan(work, f"parquet:{work / 'parts.parquet'}")


def _spec(text: str) -> Callable[[Path], Made]:
    def make(work: Path) -> Made:
        (work / "parts.yaml").write_text(text)
        return ["sweep", str(work / "parts.yaml"), "--dry-run"]

    return make


def _with(*overrides: str) -> Callable[[Path], Made]:
    return lambda work: plan_of(classes(work / "parts", "bolt", "nut"), *overrides)


def _long_names(folder: Path) -> None:
    picture(folder / LONG_NAME, 5000)
    for number in range(9):
        picture(folder.parent / "Größe 部品" / f"{number}.png", 6000 + number)


@contextmanager
def locked_mlflow() -> Iterator[str]:
    """The address of a server that knows one user, as MLflow's basic authentication answers everybody else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            right = "Basic " + base64.b64encode(b"kim:right").decode()
            self.send_response(200 if self.headers.get("Authorization") == right else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


MISTAKES = (
    Mistake("A truncated picture", _beside(_truncated), goes_on=True),
    Mistake("A file of zero bytes", _beside(lambda folder: (folder / "empty.png").touch()), goes_on=True),
    Mistake("A file that is no picture", _beside(lambda f: (f / "notes.txt").write_text("to do")), goes_on=True),
    Mistake("A decompression bomb", _beside(_bomb), goes_on=True),
    Mistake("A PNG named .jpg", _beside(lambda f: picture(f / "photo.jpg", 700)), goes_on=True),
    Mistake("An animation", _beside(_animated), goes_on=True),
    Mistake("Links that lead in a circle", _beside(_loops), goes_on=True),
    Mistake("Names in other scripts, and names of 249 bytes", _beside(_long_names), goes_on=True),
    Mistake("More bad files than `max_bad_fraction`", _beside(_truncated, "data.max_bad_fraction=0.01")),
    Mistake("Folder names that differ by case or space only", _alike),
    Mistake("10,000 classes with a picture each", _a_class_per_picture),
    Mistake("An empty folder for a side", _empty_side),
    Mistake("A side whose share is too small", _no_share),
    Mistake("A class in train/ that val/ lacks", _other_classes),
    Mistake("A batch larger than the data", _large_batch),
    Mistake("A CSV file with a label missing", _null_labels),
    Mistake("A Parquet column of labels with nulls", _null_labels_in_parquet),
    Mistake("A spec of a newer version", _spec(f"{SPEC.replace('version: 1', 'version: 2')}heads: 3\n")),
    Mistake("A field misspelt", _with("search.num_trails=3")),
    Mistake("A preset misspelt", lambda _: ["sweep", "quikc", "--dry-run"]),
    Mistake("A backbone misspelt", _with("model.backbone=resnet81")),
    Mistake("Two fields that contradict each other", _with("model.backbones=[resnet18]")),
    Mistake("Mixed pictures, where each may have several labels", _with("data.labels=multi", "search.mixup_alpha=0.2")),
    Mistake("Mixing pictures in batches of one", _with("search.mixup_alpha=0.2", "search.batch_size=1")),
    Mistake("A folder that is not there", lambda work: plan(work, f"folder:{work / 'prats'}")),
    Mistake("A home of nobody's", lambda work: plan(work, "folder:~nobody-here/parts")),
    Mistake("A name that no registered model may have", _with("tracking.model_name=parts/v2")),
    Mistake("A folder of records as MLflow's address", _with("tracking.uri=./mlruns")),
)
"""Those that need nothing but a folder; the tests know some more, which need a disk, a server or Ray."""
