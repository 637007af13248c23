"""What `thaw data inspect` and `thaw augment preview` say and draw, on pictures made to be remarked upon."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from search_spaces.data_spec import DataSpec
from trainables.errors import InputError
from tuner.cli import app
from tuner.paths import HomePaths
from tuner.pictures.contact_sheet import SheetRow, contact_sheet
from tuner.pictures.dealing import deal_data
from tuner.pictures.inspecting import Inspection, difference_hash, inspect_data
from tuner.pictures.sheets import sheet_of_classes

Folder = Callable[..., Path]
Photo = Callable[..., Image.Image]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HomePaths:
    monkeypatch.setenv("THAW_HOME", str(tmp_path / "home"))
    return HomePaths.from_env()


def inspected(place: Path, home: HomePaths, **fields: object) -> Inspection:
    spec = DataSpec.model_validate({"source": f"folder:{place}", "image_size_px": 16, **fields})
    return inspect_data(spec, deal_data(spec, home, lambda *_: None), lambda *_: None)


def test_hashes_follow_looks_and_not_bytes(photo: Photo) -> None:
    first, other = photo(64, 48, seed=1).convert("L"), photo(64, 48, seed=2).convert("L")
    assert difference_hash(first) == difference_hash(first.resize((128, 96), Image.Resampling.BICUBIC))
    brighter = first.point(lambda value: value * 0.8 + 40)
    assert (difference_hash(first) ^ difference_hash(brighter)).bit_count() <= 2
    assert (difference_hash(first) ^ difference_hash(other)).bit_count() > 10


def test_look_alikes_across_sides_are_named_and_groups_keep_them_together(
    photo: Photo, tmp_path: Path, home: HomePaths
) -> None:
    place = tmp_path / "parts"
    for number in range(40):
        shot = photo(32, 32, seed=number)
        for copy, brightness in enumerate((1.0, 0.93)):
            file = place / f"class {number % 2}" / f"part{number:02d}_shot{copy}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            shot.point(lambda value, factor=brightness: round(value * factor)).save(file)
    alone = inspected(place, home)
    assert alone.num_pictures == 80
    assert len(alone.look_alikes) >= 3
    assert len({frozenset((pair.first, pair.second)) for pair in alone.look_alikes}) == len(alone.look_alikes)
    pair = alone.look_alikes[0]
    assert pair.first[:-5] == pair.second[:-5]
    assert pair.sides[0] != pair.sides[1]
    assert any("data.group_pattern" in remark for remark in alone.remarks)
    together = inspected(place, home, group_pattern=r"part(\d+)_")
    assert together.num_groups == 40
    assert together.look_alikes == ()


def test_what_is_wrong_is_remarked_upon(folder: Folder, photo: Photo, home: HomePaths) -> None:
    place = folder(many=30, few=2)
    photo(90, 30, seed=900).save(place / "many" / "long.png")
    (place / "many" / "again.png").write_bytes((place / "many" / "000.png").read_bytes())
    (place / "many" / "text.png").write_text("no picture")
    found = inspected(place, home)
    remarks = "\n".join(found.remarks)
    assert "A sweep would refuse these pictures: data: class 'few' has 2 usable pictures" in remarks
    assert "'many' has 16 times as many pictures as 'few'" in remarks
    assert "data.fit: auto takes squash: a centre crop would lose 21% of the pictures' area, of one 67%" in remarks
    assert "1 files are copies of others, byte for byte, such as many/000.png, many/again.png;" in remarks
    assert "1 files cannot be used:\n  many/text.png: " in remarks
    assert found.classes[0].total + found.classes[1].total == 34
    assert "Sizes from 20 x 16 to 90 x 30 px" in next(found.lines())


def test_files_with_several_pictures_or_another_kinds_name_are_listed(
    folder: Folder, photo: Photo, home: HomePaths
) -> None:
    place = folder(ants=24, bees=24)
    frames = [photo(20, 16, seed=500 + number) for number in range(3)]
    frames[0].save(place / "ants" / "moves.gif", save_all=True, append_images=frames[1:])
    frames[0].save(place / "ants" / "pages.tif", save_all=True, append_images=frames[1:])
    frames[1].save(place / "bees" / "named.jpg", "PNG")
    frames[2].save(place / "bees" / "unnamed", "PNG")
    found = inspected(place, home)
    assert (found.with_frames, found.misnamed) == (("ants/moves.gif", "ants/pages.tif"), ("bees/named.jpg",))
    remarks = "\n".join(found.remarks)
    assert "2 files are animated or have pages, such as ants/moves.gif: the first is read." in remarks
    assert "1 files are named as pictures of another kind, such as bees/named.jpg" in remarks
    assert json.loads(found.to_json())["misnamed"] == ["bees/named.jpg"]


def test_what_stands_on_several_sides_of_the_source_is_counted(folder: Folder, photo: Photo, home: HomePaths) -> None:
    place = folder("sided", **{"train/a": 8, "train/b": 8, "test/a": 4, "test/b": 4})
    for side in ("train", "test"):
        photo(30, 30, seed=77).save(place / side / "a" / "both.png")
    found = inspected(place, home)
    assert found.on_two_sides == (("test/a/both.png", "train/a/both.png"),)
    assert any(
        remark.startswith("1 pictures stand on several sides of the source, such as test/a/both.png, train/a/both.png,")
        for remark in found.remarks
    )
    assert json.loads(found.to_json())["on_two_sides"] == [["test/a/both.png", "train/a/both.png"]]


def test_groups_that_share_a_picture_are_said_to_be_one(photo: Photo, tmp_path: Path, home: HomePaths) -> None:
    place = tmp_path / "parts"
    for number in range(40):
        file = place / f"class {number % 2}" / f"part{number:02d}_0.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        photo(32, 32, seed=number).save(file)
    for number in range(0, 40, 2):
        photo(32, 32, seed=100).save(place / "class 0" / f"part{number:02d}_black.png")
    found = inspected(place, home, group_pattern=r"part(\d+)_")
    said = "40 groups stay together as 21, because they share pictures, byte for byte"
    assert any(remark.startswith(said) for remark in found.remarks)
    # A class that is one group is on one side; where that is not train, the refusal says why.
    refusals = [inspected(place, home, group_pattern=r"part(\d+)_", split={"seed": seed}).refusal for seed in range(20)]
    assert any(refusals)
    assert all(said in refusal for refusal in refusals if refusal)
    assert inspected(place, home).notes == ()


def test_a_pattern_looks_at_file_names_and_with_a_slash_at_folders(
    photo: Photo, tmp_path: Path, home: HomePaths
) -> None:
    for number in range(24):
        file = tmp_path / "scans" / f"class_{number % 2}" / f"patient_{number // 4}" / f"shot_{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        photo(20, 20, seed=number).save(file)
    assert inspected(tmp_path / "scans", home, group_pattern=r"_(\d+)").num_groups == 24
    assert inspected(tmp_path / "scans", home, group_pattern=r"/patient_(\d+)/").num_groups == 6
    with pytest.raises(
        InputError, match=r"'patient' is found in none of 24 file names, such as 'shot_0\.png'.*with a / in"
    ):
        inspected(tmp_path / "scans", home, group_pattern="patient")


def test_pictures_with_several_labels_count_for_each(photo: Photo, tmp_path: Path) -> None:
    lines = ["file,label"]
    for number in range(30):
        photo(20, 20, seed=number).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{'scratch|dent' if number % 2 else 'scratch'}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    command = ["data", "inspect", f"csv:{tmp_path / 'list.csv'}", "--image-size", "16", "--format", "json"]
    sheet = tmp_path / "sheet.png"
    run = CliRunner().invoke(
        app, [*command, "--labels", "multi", "--set", "split.train=0.6", "--set", "split.val=0.3", "--out", str(sheet)]
    )
    assert run.exit_code == 0, run.exception
    counts = {each["name"]: each["train"] + each["val"] + each["test"] for each in json.loads(run.stdout)["classes"]}
    assert counts == {"dent": 15, "scratch": 30}
    assert sheet.is_file()


def test_a_list_without_any_label_is_refused_and_no_crash(photo: Photo, tmp_path: Path) -> None:
    photo(20, 20, seed=1).save(tmp_path / "1.png")
    (tmp_path / "list.csv").write_text("file,label\n1.png,\n")
    command = ["data", "inspect", f"csv:{tmp_path / 'list.csv'}", "--image-size", "16", "--labels", "multi"]
    run = CliRunner().invoke(app, command)
    assert "A sweep would refuse these pictures" in run.output or isinstance(run.exception, InputError)


def test_a_sheet_of_very_many_classes_shows_the_first(
    folder: Folder, home: HomePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.pictures.sheets._MOST_CLASSES", 2)
    spec = DataSpec.model_validate({"source": f"folder:{folder(a=6, b=6, c=6, d=6)}", "image_size_px": 16})
    sheet = sheet_of_classes(deal_data(spec, home, lambda *_: None))
    assert sheet.height == contact_sheet([SheetRow("", [np.zeros((4, 4, 3), np.uint8)])] * 3).height


def test_a_class_without_a_usable_picture_is_said_and_no_crash(folder: Folder, home: HomePaths) -> None:
    place = folder(good=30)
    (place / "bad").mkdir()
    (place / "bad" / "text.png").write_text("no picture")
    found = inspected(place, home)
    bad, _ = found.classes
    assert (bad.name, bad.total, bad.brightness) == ("bad", 0, 0.0)
    assert "A sweep would refuse these pictures" in found.remarks[0]


def test_many_flat_pictures_are_not_all_compared(home: HomePaths, tmp_path: Path) -> None:
    for number in range(80):
        file = tmp_path / "flat" / f"class {number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), number).save(file)
    found = inspected(tmp_path / "flat", home)
    sides = [pair.sides for pair in found.look_alikes]
    assert 0 < len(sides) <= 1000
    assert all(one != other for one, other in sides)
    assert len({frozenset((pair.first, pair.second)) for pair in found.look_alikes}) == len(sides)


def test_the_commands(folder: Folder, tmp_path: Path) -> None:
    place = folder(ants=12, bees=12)
    sheet = tmp_path / "sheet.png"
    run = CliRunner().invoke(app, ["data", "inspect", str(place), "--image-size", "16", "--out", str(sheet)])
    assert run.exit_code == 0, run.output
    assert "ants" in run.stdout
    with Image.open(sheet) as opened:
        assert opened.width > 8 * 112
    run = CliRunner().invoke(app, ["data", "inspect", str(place), "--image-size", "16", "--format", "json"])
    facts = json.loads(run.stdout)
    assert [each["name"] for each in facts["classes"]] == ["ants", "bees"]
    preview = tmp_path / "preview.png"
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"version: 1\nname: x\ndata: {{source: 'folder:{place}', image_size_px: 16}}\nmodel: {{backbone: lenet}}\n"
    )
    run = CliRunner().invoke(app, ["augment", "preview", str(spec), "--out", str(preview)])
    assert run.exit_code == 0, run.output
    with Image.open(preview) as opened:
        # As they are, three fits, none, flip, flip_crop, and RandAugment at both ends of its magnitudes.
        assert opened.height == contact_sheet([SheetRow("", [np.zeros((4, 4, 3), np.uint8)])] * 9).height


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "sheet.jpg"], "end its name in .png"),
        (["--out", "nowhere/sheet.png"], "there is no folder nowhere"),
        (["--format", "xml"], "'xml' is neither table nor json"),
        (["--group-pattern", "("], "'(' is no regular expression"),
    ],
)
def test_mistakes_are_found_before_any_work(arguments: list[str], message: str, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["data", "inspect", str(tmp_path), *arguments])
    assert message in str(run.exception)
