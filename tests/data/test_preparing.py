"""What is known of pictures before any training: refused by their list where that will do, judged fold by fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from search_spaces.data_spec import DataSpec
from search_spaces.loading import parse_spec
from search_spaces.spec import SweepSpec
from trainables.backbones.families import build_model
from trainables.backbones.weights import store_weights
from trainables.config import WeightsFile
from trainables.errors import InputError
from tuner.networks.network import Network, prepare_networks
from tuner.networks.preparing import _check_shared_store, check_metric, kept_weights
from tuner.networks.pretraining import Pretrained, check_same
from tuner.paths import HomePaths
from tuner.pictures.dealing import prepare_data
from tuner.pictures.dealt import Judged
from tuner.records.kept_places import keep_pretrained, pretrained_weights

Folder = Callable[..., Path]


@pytest.fixture
def home(tmp_path: Path) -> HomePaths:
    return HomePaths.at(tmp_path / "home")


def data_of(place: Path, **fields: Any) -> DataSpec:
    return DataSpec.model_validate({"source": f"folder:{place}", "image_size_px": 16, **fields})


@pytest.mark.parametrize(
    ("numbers", "fields", "message"),
    [
        ({"ants": 9, "Ants ": 9}, {}, "differ by case or spaces only"),
        ({"ants": 9}, {}, "1 class"),
        ({"ants": 9, "bees": 2}, {}, "class 'bees' has 2 usable pictures"),
        ({"ants": 9, "bees": 9}, {"exclude_classes": ["wasps"]}, "no class 'wasps'"),
        ({"ants": 9, "bees": 9}, {"group_pattern": r"part(\d+)"}, "is found in none of 18 file names"),
        ({"train/ants": 9, "train/bees": 9, "val/ants": 9}, {}, "'bees' has no picture on the val side"),
        ({"train/a": 9, "train/b": 9, "val/a": 9, "val/b": 9}, {"folds": 3}, "has a validation side of its own"),
    ],
)
def test_what_the_list_shows_is_refused_before_anything_is_read(
    folder: Folder, home: HomePaths, numbers: dict[str, int], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare_data(data_of(folder(**numbers), **fields), home, lambda *_: pytest.fail("a picture was read"))
    assert not list(home.local.rglob("*.arrow"))


def test_classes_left_out_may_be_as_they_like(folder: Folder, home: HomePaths) -> None:
    spec = data_of(folder(ants=12, bees=12, wasps=1), exclude_classes=["wasps"])
    assert prepare_data(spec, home, lambda *_: None).config.class_names == ("ants", "bees")


def test_a_limit_leaves_something_to_judge_by(folder: Folder, home: HomePaths) -> None:
    folder("sided/train", ants=60, bees=60)
    place = folder("sided/val", ants=4, bees=4).parent
    data = prepare_data(data_of(place, max_per_class=10, split={"test_share_of_val": 0}), home, lambda *_: None)
    assert data.counts["train"] == {"ants": 9, "bees": 9}
    assert data.counts["val"] == {"ants": 1, "bees": 1}


def test_the_area_under_the_curve_is_judged_fold_by_fold(folder: Folder, home: HomePaths) -> None:
    section = data_of(folder(ants=12, bees=12), folds=3).model_dump()
    raw = {"name": "x", "data": section, "model": {"backbone": "lenet"}, "metric": "val/auroc"}
    spec = parse_spec(raw, SweepSpec, "test")
    data = prepare_data(spec.data, home, lambda *_: None)
    assert sum(side.size for side in data.judged) == data.size("train")
    assert all(sum(side.counts.values()) == side.size for side in data.judged)
    assert len(data.judged) == 3
    check_metric(spec, data)
    lone = replace(data, judged=(*data.judged[:2], Judged(8, {"ants": 8, "bees": 0})))
    with pytest.raises(InputError, match="all of one fold show 'ants': give fewer folds, or choose another metric"):
        check_metric(spec, lone)


def test_a_shared_store_must_be_storage_and_may_be_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"cache\.shared_uri: 'bucket/x' is no address of storage; give a URI"):
        _check_shared_store("bucket/x")
    with pytest.raises(InputError, match=r"cache\.shared_uri: nonsense://x/y: .*; give a URI such as s3") as refused:
        _check_shared_store("nonsense://KEY:SECRET@x/y")
    assert "SECRET" not in str(refused.value)

    def is_away(uri: str) -> None:
        raise OSError(f"{uri} does not answer")

    monkeypatch.setattr("trainables.features.shared.open_filesystem", is_away)
    _check_shared_store("s3://bucket/x")
    _check_shared_store(None)


def test_renaming_moves_no_picture_unless_groups_go_by_names(folder: Folder, home: HomePaths) -> None:
    place, split = folder(ants=20, bees=20), {"train": 0.5, "val": 0.3, "test": 0.2}
    plain, grouped = data_of(place, split=split), data_of(place, split=split, group_pattern=r"(\d)\.")

    def digests() -> tuple[str, str]:
        plainly, by_group = (prepare_data(spec, home, lambda *_: None) for spec in (plain, grouped))
        assert plainly.config.fingerprint == by_group.config.fingerprint
        return plainly.sides_digest, by_group.sides_digest

    before = digests()
    for path in sorted(place.rglob("*.png")):
        path.rename(path.with_name(f"{path.stem}-{int(path.stem) * 7 % 10}.png"))
    after = digests()
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_a_sweep_that_goes_on_keeps_the_weights_it_began_with(home: HomePaths, tmp_path: Path) -> None:
    path = tmp_path / "lenet.pth"

    def write(factor: float) -> None:
        torch.save({name: factor * tensor for name, tensor in state.items()}, path)

    state = build_model("lenet").state_dict()
    write(1.0)
    first = kept_weights(None, str(path), "lenet", home, "sqlite:///unused.db")
    assert first is not None
    write(2.0)
    assert kept_weights(first, str(path), "lenet", home, "sqlite:///unused.db") == first
    moved = first.model_copy(update={"uri": "/another/home/w.safetensors"})
    assert kept_weights(moved, str(path), "lenet", home, "sqlite:///unused.db") == first
    Path(first.uri).unlink()
    with pytest.raises(InputError, match=r"lenet\.pth are no longer those that the sweep began with"):
        kept_weights(first, str(path), "lenet", home, "sqlite:///unused.db")
    write(1.0)
    assert kept_weights(first, str(path), "lenet", home, "sqlite:///unused.db") == first


def test_trials_go_on_with_the_weights_that_a_pretraining_gave(folder: Callable[..., Path], home: HomePaths) -> None:
    """Its pictures may be gone by then, or others: the same name must not come to mean other weights."""
    paths = home.sweep("x")
    paths.root.mkdir(parents=True)
    state = build_model("lenet").state_dict()
    given = store_weights(state, "lenet", str(home.weights))
    assert pretrained_weights(paths) == {}
    keep_pretrained(paths, "lenet", given)
    assert pretrained_weights(paths) == {"lenet": given}
    recipe = {"name": "p", "data": {"source": "folder:/not/there"}}
    raw = {
        "name": "x",
        "data": data_of(folder(ants=12, bees=12)).model_dump(),
        "model": {"backbone": "lenet", "weights": {"pretrain": recipe}},
    }
    spec = parse_spec(raw, SweepSpec, "test")
    data = prepare_data(spec.data, home, lambda *_: None)
    told: list[str] = []

    def networks(pretrained: dict[str, WeightsFile] | None) -> dict[str, Network]:
        uri = "sqlite:///unused.db"
        return prepare_networks(spec, data.config, home, uri, lambda *_: None, note=told.append, pretrained=pretrained)

    with pytest.raises(InputError, match="not/there"):
        networks(None)
    assert networks({"lenet": given})["lenet"].weights == given
    assert "go on with the weights that this pretraining gave them" in told[-1]
    other = store_weights({name: 2 * tensor for name, tensor in state.items()}, "lenet", str(home.weights))
    pretraining = SimpleNamespace(spec=SimpleNamespace(name="p"))
    check_same(pretraining, Pretrained(given), given)  # type: ignore[arg-type]
    check_same(pretraining, Pretrained(other), None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pretraining p gives other weights than those that the sweep's trials"):
        check_same(pretraining, Pretrained(other), given)  # type: ignore[arg-type]
    Path(given.uri).unlink()
    with pytest.raises(InputError, match="not/there"):
        networks({"lenet": given})
