"""Several labels of one picture: how lists give them, how they are dealt, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from search_spaces.loading import parse_spec
from search_spaces.spec import DataSpec
from trainables.data.label_sets import may_be_a_set, members_of, names_in, set_name
from trainables.data.sources import open_source
from trainables.errors import InputError
from tuner.paths import HomePaths
from tuner.pictures.dealing import deal_data, prepare_data
from tuner.pictures.dealt import DealtData, Judged

SETS = ["crack|rust", " rust | crack ", "", "rust", "crack", "scratch|rust", "rust|rust", "scratch"]


def png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Forty-eight pictures, and the list that labels them."""
    lines = ["file,label"]
    for number in range(48):
        (tmp_path / f"{number:02d}.png").write_bytes(png(number))
        lines.append(f"{number:02d}.png,{SETS[number % 8]}")
    path = tmp_path / "list.csv"
    path.write_text("\n".join(lines))
    return path


def test_a_set_is_what_is_in_it() -> None:
    assert [set_name(text.split("|"), "|") for text in SETS[:3]] == ["crack|rust", "crack|rust", ""]
    assert names_in(["", "crack|rust", "rust|scratch"], "|") == ("crack", "rust", "scratch")
    found = members_of(["", "crack|rust"], ("rust", "scratch", "crack"), "|")
    assert found.tolist() == [[False] * 3, [True, False, True]]


def test_a_label_that_ends_as_the_separator_does_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "list.csv").write_text("file,label\na.png,b--a-")
    with pytest.raises(InputError, match=r"line 2: labels .*: one ends or begins as '--' does; set"):
        list(open_source(f"csv:{tmp_path / 'list.csv'}", "--").pictures())


def test_folds_are_dealt_by_label(listed: Path, tmp_path: Path) -> None:
    split = {"train": 0.5, "val": 0.25, "test": 0.25}
    raw = {"source": f"csv:{listed}", "labels": "multi", "image_size_px": 8, "split": split}
    home = HomePaths.at(tmp_path / "home")
    data = prepare_data(parse_spec({**raw, "folds": 3}, DataSpec, "test"), home, lambda *_: None)
    assert data.counts["val"] == {"crack": 0, "rust": 0, "scratch": 0}
    assert sum(side.size for side in data.judged) == data.size("train") == 48 - data.size("test")
    for name, total in data.counts["train"].items():
        assert sorted(side.counts[name] for side in data.judged) == pytest.approx([total / 3] * 3, abs=1)
    rarest = min(data.counts["train"].values())
    with pytest.raises(InputError, match=f"but class 'scratch' has {rarest} pictures, .*at most {rarest} folds"):
        prepare_data(parse_spec({**raw, "folds": rarest + 1}, DataSpec, "test"), home, lambda *_: None)


def test_a_label_that_a_fold_lacks_is_told_of(listed: Path, tmp_path: Path) -> None:
    spec = DataSpec(source=f"csv:{listed}", labels="multi", image_size_px=8, folds=3)
    dealt = deal_data(spec, HomePaths.at(tmp_path / "home"), lambda *_: None)
    assert [*dealt.notes()] == []
    counts = {"crack": 0, "rust": 9, "scratch": 3}
    with mock.patch.object(DealtData, "judged", return_value=[Judged(12, {**counts, "crack": 4}), Judged(12, counts)]):
        assert [*dealt.notes()] == [
            "no picture of fold 2 of 3 shows 'crack': such folds say nothing of it; give fewer folds, or try another "
            "data.split.seed"
        ]


def test_folds_beside_a_val_side_are_refused_before_pictures_are_read(listed: Path, tmp_path: Path) -> None:
    sides = ["split", *["train", "train", "train", "val"] * 12]
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join(f"{line},{side}" for line, side in zip(lines, sides, strict=True)))
    spec = DataSpec(source=f"csv:{listed}", labels="multi", image_size_px=8, folds=3)
    done: list[object] = []
    with pytest.raises(InputError, match=r"data\.folds: 3, but the source has a validation side of its own"):
        prepare_data(spec, HomePaths.at(tmp_path / "home"), lambda *told: done.append(told))
    assert done == []


def test_classes_that_read_as_sets_of_labels_are_told_of(tmp_path: Path) -> None:
    assert may_be_a_set(("crack", "crack | rust", "dirt"), "|") == "crack | rust"
    assert may_be_a_set(("crack|rust", "dirt|rust"), "|") == "crack|rust"
    assert may_be_a_set(("a|b", "c", "", "d|d"), "|") is None
    assert may_be_a_set(("crack", "crack|rust"), ";") is None
    lines = ["file,label"]
    for number in range(36):
        (tmp_path / f"{number:02d}.png").write_bytes(png(number))
        lines.append(f"{number:02d}.png,{('crack', 'rust', 'crack|rust')[number % 3]}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    spec = DataSpec(source=f"csv:{tmp_path / 'list.csv'}", image_size_px=8)
    said = (
        "the class 'crack|rust' reads as several labels of one picture: if it is, set data.labels to multi (in a csv: "
        "or parquet: source)"
    )
    assert [*deal_data(spec, HomePaths.at(tmp_path / "home"), lambda *_: None).notes()] == [said]
    # A set that only one picture has is no class, and the refusal says what it may be.
    (tmp_path / "one.png").write_bytes(png(100))
    (tmp_path / "list.csv").write_text("\n".join([*lines, "one.png,crack|dirt"]))
    with pytest.raises(InputError) as refused:
        prepare_data(spec, HomePaths.at(tmp_path / "home"), lambda *_: None)
    assert "class 'crack|dirt' has 1 usable pictures" in str(refused.value)
    assert str(refused.value).endswith("; " + said.replace("crack|rust", "crack|dirt"))


def test_a_list_gives_sets_and_pictures_are_counted_for_each_label(listed: Path, tmp_path: Path) -> None:
    sets = {picture.class_name for picture in open_source(f"csv:{listed}", "|").pictures()}
    assert sets == {"", "crack", "crack|rust", "rust", "rust|scratch", "scratch"}
    split = {"train": 0.5, "val": 0.25, "test": 0.25}
    spec = DataSpec(source=f"csv:{listed}", labels="multi", image_size_px=8, split=split)
    data = prepare_data(spec, HomePaths.at(tmp_path / "home"), lambda *_: None)
    assert data.config.class_names == ("crack", "rust", "scratch")
    assert sum(data.size(side) for side in ("train", "val", "test")) == 48
    total = {name: sum(counts[name] for counts in data.counts.values()) for name in data.config.class_names}
    assert total == {"crack": 18, "rust": 30, "scratch": 12}
    without = deal_data(spec.model_copy(update={"exclude_classes": ("rust",)}), HomePaths.at(tmp_path / "home"), print)
    assert without.config.class_names == ("crack", "scratch")
    assert len(without.rows) == 48
    assert without.has_labels().sum(0).tolist() == [18, 12]


def test_parquet_lists_are_sets_and_both_kinds_of_table_stay_apart(listed: Path, tmp_path: Path) -> None:
    labels = [[label.strip() for label in text.split("|") if label.strip()] for text in SETS]
    table = pa.table({"image": [png(number) for number in range(8)], "label": labels})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    source = open_source(f"parquet:{tmp_path / 'a.parquet'}", "|")
    assert [picture.class_name for picture in source.pictures()] == [set_name(each, "|") for each in labels]
    with pytest.raises(InputError, match="the label is a list: set data"):
        open_source(f"parquet:{tmp_path / 'a.parquet'}").pictures()
    with pytest.raises(InputError, match=r"label 'crack' contains 'r': set data.label_separator"):
        open_source(f"parquet:{tmp_path / 'a.parquet'}", "r").pictures()
    assert source.signature() != open_source(f"parquet:{tmp_path / 'a.parquet'}").signature()
    assert open_source(f"csv:{listed}", "|").signature() != open_source(f"csv:{listed}", ";").signature()


def test_what_gives_one_label_only_or_none_of_a_kind_is_refused(listed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.labels: multi, and 'digits' gives each picture one class"):
        open_source("digits", "|")
    home = HomePaths.at(tmp_path / "home")
    spec = DataSpec(source=f"csv:{listed}", labels="multi", image_size_px=8, exclude_classes=("dent",))
    with pytest.raises(InputError, match="no class 'dent'; there are crack, rust, scratch"):
        deal_data(spec, home, lambda *_: None)
    listed.write_text(listed.read_text().replace("46.png,rust|rust", "46.png,dent"))
    with pytest.raises(InputError, match="class 'dent' has 1 usable pictures"):
        prepare_data(spec.model_copy(update={"exclude_classes": ()}), home, lambda *_: None)
