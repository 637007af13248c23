"""A spec that is fitted to pictures: it is always one that loads, and its choices follow the facts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from search_spaces import fitting
from search_spaces.fitting import DataFacts, choose, name_for, spec_text
from search_spaces.loading import load_spec, read_spec
from trainables.errors import InputError
from tuner.cli import app
from tuner.commands.given import load_or_fit
from tuner.pictures.facts import facts_of

FACTS: dict[str, Any] = {
    "source": "folder:/data/parts", "class_counts": {"bad": 40, "good": 400}, "has_sides": False,
    "short_side_px": 300, "has_gpu": False,
}  # fmt: skip


def chosen(**changes: Any) -> dict[str, str]:
    return {choice.field: choice.value for choice in choose(DataFacts(**{**FACTS, **changes}))}


@given(
    st.builds(
        DataFacts,
        source=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
        class_counts=st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1), st.integers(1, 10**6),
            min_size=1, max_size=30,
        ),
        has_sides=st.booleans(),
        short_side_px=st.integers(1, 5000),
        has_gpu=st.booleans(),
        is_grey=st.booleans(),
    )
)  # fmt: skip
def test_every_fitted_spec_loads(facts: DataFacts) -> None:
    spec = read_spec(spec_text(facts), [], "fitted")
    assert spec.data.source == facts.source


def test_choices_follow_the_facts() -> None:
    assert chosen()["data.image_size_px"] == "128"
    assert chosen(short_side_px=100)["data.image_size_px"] == "96"
    assert chosen(short_side_px=8)["data.image_size_px"] == "32"
    assert chosen(has_gpu=True)["data.image_size_px"] == "224"
    assert chosen()["metric"] == "val/balanced_accuracy"
    assert chosen(class_counts={"a": 5000, "b": 6000})["metric"] == "val/accuracy"
    assert "search.class_balance" not in chosen(class_counts={"a": 50, "b": 60})
    assert "data.split" not in chosen(has_sides=True)
    assert chosen()["budget.epochs"] == "12"
    assert chosen(class_counts={"a": 50_000})["budget.epochs"] == "4"
    assert chosen()["compute.precision"] == chosen()["compute.prefix_precision"] == "auto"
    assert chosen(class_counts={"a": 20, "b": 20})["search.batch_size"] == "[4, 8]", "which 28 pictures can fill"
    assert chosen(is_grey=True)["search.augmentation"] == "[none, industrial]"
    assert "search.augmentation" not in chosen()


def test_pictures_with_several_labels_are_judged_as_such() -> None:
    multi = {"label_separator": "|", "num_files": 400, "class_counts": {"dent": 40, "scratch": 390}}
    fitted = chosen(**multi)
    assert (fitted["data.labels"], fitted["metric"]) == ("multi", "val/map")
    assert "search.class_balance" not in fitted
    assert read_spec(spec_text(DataFacts(**{**FACTS, **multi})), [], "fitted").data.labels == "multi"
    assert chosen(class_counts={"a": 50})["search.num_trials"] == "24"
    assert chosen(class_counts={"a": 50_000})["search.num_trials"] == "8"


def test_the_page_of_the_space_has_the_rules() -> None:
    page = (Path(__file__).parents[2] / "docs" / "space.md").read_text(encoding="utf-8")
    rules = page.partition("## What a fitted spec chooses")[2].replace(",000", "000")
    told = {int(number) for number in re.findall(r"\d+", rules)}
    bounds = (fitting._SIZES_PX, fitting._FEW, fitting._MANY, fitting._VERY_FEW, fitting._A_HANDFUL, fitting._TINY_PX)
    assert {int(each) for bound in bounds for each in np.ravel(bound)} <= told
    for count in (30, 300, 3000, 30_000):
        fields = chosen(class_counts={"a": count, "b": count})
        batches = fields["search.batch_size"].strip("[]").split(", ")
        assert {int(each) for each in (*batches, fields["search.num_trials"], fields["budget.epochs"])} <= told


def test_tiny_pictures_get_a_small_network_on_a_cpu() -> None:
    assert (chosen()["model.backbone"], chosen(short_side_px=28)["model.backbone"]) == ("mobilenet_v2", "lenet")
    assert (chosen(short_side_px=28)["model.weights"], chosen(short_side_px=28)["baselines"]) == ("none", "[]")
    assert chosen(short_side_px=28, has_gpu=True)["model.backbone"] == "resnet50"
    assert chosen(short_side_px=28)["search.backbone_lr_ratio"] == "1", "nothing is pretrained"


def test_what_is_held_out_is_not_learnt_from() -> None:
    few = chosen(class_counts={"a": 4000, "b": 4065}, has_sides=True, num_to_learn=15)
    assert (few["search.batch_size"], few["budget.epochs"], few["search.num_trials"]) == ("[4, 8]", "12", "24")
    many = chosen(class_counts={"a": 6500, "b": 6500}, has_sides=True, num_to_learn=5000)
    assert (many["budget.epochs"], many["search.num_trials"]) == ("8", "16")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("folder:/data/my parts/", "my-parts"),
        ("digits", "digits"),
        ("torchvision:MNIST:/x/sets", "MNIST"),
        ("csv:/lists/tiles.csv", "tiles"),
        ("parquet:s3://bucket/v1.2/tiles.parquet", "tiles"),
        ("parquet:/lists.d/tiles/", "tiles"),
        ("folder:/data/v1.2", "v1.2"),
        ("folder:/", "pictures"),
        ("folder:/\u7530", "sweep"),
    ],
)
def test_names_are_those_of_the_place(source: str, name: str) -> None:
    assert name_for(source) == name


def test_a_look_at_pictures(tmp_path: Path) -> None:
    for name, number in (("ants", 3), ("bees", 1)):
        (tmp_path / "insects" / name).mkdir(parents=True)
        for position in range(number):
            Image.new("RGB", (300, 200 + position)).save(tmp_path / "insects" / name / f"{position}.png")
    (tmp_path / "insects" / "ants" / "text.png").write_text("no picture")
    facts = facts_of(f"folder:{tmp_path / 'insects'}")
    assert facts.class_counts == {"ants": 4, "bees": 1}
    assert (facts.short_side_px, facts.has_sides, facts.is_grey) == (200, False, True)
    assert (facts_of("digits").short_side_px, facts_of("digits").is_grey) == (8, True)
    Image.new("RGB", (300, 200), (200, 40, 40)).save(tmp_path / "insects" / "bees" / "red.png")
    assert not facts_of(f"folder:{tmp_path / 'insects'}").is_grey
    (tmp_path / "insects" / "bees" / "red.png").unlink()
    limited = facts_of(f"folder:{tmp_path / 'insects'}", max_per_class=2)
    assert limited.class_counts == {"ants": 2, "bees": 1}
    assert facts_of(f"folder:{tmp_path / 'insects'}", excluded=["bees"]).class_counts == {"ants": 4}
    for path in (tmp_path / "insects").rglob("*.png"):
        path.write_text("no picture")
    with pytest.raises(InputError, match="none of 5 files is a picture"):
        facts_of(f"folder:{tmp_path / 'insects'}")


def test_labels_of_one_picture_are_counted_one_by_one(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("L", (40, 40), 60 * number).save(tmp_path / f"{number}.png")
    (tmp_path / "list.csv").write_text("file,label\n0.png,dent|scratch\n1.png,\n2.png,dent\n")
    facts = facts_of(f"csv:{tmp_path / 'list.csv'}", "|")
    assert (facts.class_counts, facts.num_pictures) == ({"dent": 2, "scratch": 1}, 3)
    source = f"csv:{tmp_path / 'list.csv'}"
    fitted = load_or_fit(source, ["data.labels=multi", "search.num_trials=3"])
    assert (fitted.metric, fitted.search.num_trials) == ("val/map", 3)
    printed = CliRunner().invoke(app, ["spec", "new", source, "--labels", "multi"])
    assert "labels: multi" in printed.stdout
    wrong = CliRunner().invoke(app, ["spec", "new", source, "--labels", "many"])
    assert "'many' is neither single nor multi" in str(wrong.exception)


def test_spec_new_writes_what_sweep_would_take(tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    printed = CliRunner().invoke(app, ["spec", "new", "digits"])
    assert printed.exit_code == 0
    assert CliRunner().invoke(app, ["spec", "new", "digits", "--out", str(file)]).exit_code == 0
    assert file.read_text() == printed.stdout
    assert load_spec(file).data.source == "digits"
    again = CliRunner().invoke(app, ["spec", "new", "digits", "--out", str(file)])
    assert "is there already" in str(again.exception)


def test_sides_and_overrides_count(tmp_path: Path) -> None:
    for side, number in (("train", 3), ("val", 5)):
        for name in ("ants", "bees"):
            (tmp_path / "sided" / side / name).mkdir(parents=True)
            for position in range(number):
                Image.new("L", (40, 40), 9 * position).save(tmp_path / "sided" / side / name / f"{position}.png")
    source = f"folder:{tmp_path / 'sided'}"
    facts = facts_of(source)
    assert (facts.has_sides, facts.num_pictures, facts.num_to_learn, facts.num_an_epoch) == (True, 16, 6, 6)
    pooled = facts_of(source, pools_sides=True)
    assert (pooled.has_sides, pooled.num_to_learn, pooled.num_an_epoch) == (False, None, 16)
    assert load_or_fit(source, []).data.split.source == "auto"
    assert load_or_fit(source, ["data.split.source=ignore", "data.max_per_class=2"]).data.max_per_class == 2
