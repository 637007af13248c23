"""What a resume finds, what it may change, and what it refuses; without Ray."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from search_spaces.loading import dump_spec, load_spec
from search_spaces.spec import SweepSpec
from trainables.errors import InputError
from trainables.jobs import LAST_CHECKPOINT
from tuner.paths import HomePaths
from tuner.records.journal import Journal
from tuner.records.kept_places import settle_places
from tuner.records.resuming import describe_left, differences, find_left, is_finished

POINT = {"freeze_depth": 1, "lr": 0.01}


def end(number: int, outcome: str = "completed") -> tuple[str, dict[str, Any]]:
    return "end", {"number": number, "outcome": outcome}


def trial(number: int) -> tuple[str, dict[str, Any]]:
    return "trial", {"number": number, "params": POINT}


def epoch(number: int, epoch: int) -> tuple[str, dict[str, Any]]:
    return "epoch", {"number": number, "epoch": epoch, "metrics": {"val/accuracy": 0.5}}


BEGUN = ("sweep", {"name": "tiny"})
FINISHED = ("finished", {"outcome": "completed"})


@pytest.fixture
def home(tmp_path: Path) -> HomePaths:
    return HomePaths.at(tmp_path / "home")


def lay_out(home: HomePaths, spec: Path, events: Sequence[tuple[Any, dict[str, Any]]]) -> None:
    paths = home.sweep("tiny")
    with Journal.open(paths.journal) as journal:
        for event, fields in events:
            journal.append(event, **fields)
    paths.spec.write_text(dump_spec(load_spec(spec)))


def test_what_was_found_goes_on_and_starts_again(home: HomePaths, tiny_spec: Path) -> None:
    events = [BEGUN, trial(0), end(0), trial(1), end(1, "stopped_early"), trial(2), epoch(2, 1), epoch(2, 2)]
    lay_out(home, tiny_spec, [*events, trial(3), epoch(3, 1), ("interrupted", {"reason": "by hand"})])
    state = home.sweep("tiny").trial(2).root / LAST_CHECKPOINT
    state.parent.mkdir(parents=True)
    state.write_bytes(b"")
    left = find_left(home, "tiny")
    assert not left.is_finished
    assert describe_left(left, home) == [
        "found: 2 of 5 trials ended (1 completed, 1 stopped early)",
        "goes on: trial 2 after epoch 2",
        "starts again: trial 3",  # its checkpoint is lost
        "still to begin: 1 trials",
    ]


def test_a_finished_sweep_is_finished_until_more_is_asked_of_it(home: HomePaths, tiny_spec: Path) -> None:
    events = [BEGUN, *(event for number in range(5) for event in (trial(number), end(number))), FINISHED]
    lay_out(home, tiny_spec, events)
    assert find_left(home, "tiny").is_finished
    assert find_left(home, "tiny", ["search.num_trials=5"]).is_finished
    more = find_left(home, "tiny", ["search.num_trials=8", "budget.flops=1e18"])
    assert not more.is_finished
    assert more.changes == {"search.num_trials": (5, 8), "budget.flops": (None, 1e18)}
    lines = describe_left(more, home)
    assert lines[0] == "found: 5 of 8 trials ended (5 completed)"
    assert "changed: search.num_trials: 5 -> 8" in lines
    assert lines[-1] == "still to begin: 3 trials"


def test_a_change_that_only_the_journal_has_is_not_lost(home: HomePaths, tiny_spec: Path) -> None:
    lay_out(home, tiny_spec, [BEGUN, FINISHED, BEGUN, ("extended", {"changes": {"search.num_trials": 9}})])
    left = find_left(home, "tiny")
    assert not left.is_finished
    assert left.spec.search.num_trials == 9
    assert not left.changes
    assert not find_left(home, "tiny", ["search.num_trials=9"]).changes


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("budget.epochs=9", "budget.epochs: 5 -> 9"),
        ("seed=1", "seed: 0 -> 1"),
        ("search.lr=0.1", "search.lr.low: 0.001 -> None"),
        ("name=other", "name: tiny -> other"),
        ("data.image_size_px=20", "data.image_size_px: 16 -> 20"),
        ("metric=val/loss", "metric: val/accuracy -> val/loss"),
    ],
)
def test_what_would_make_trials_incomparable_is_refused_with_the_difference(
    home: HomePaths, tiny_spec: Path, override: str, shown: str
) -> None:
    lay_out(home, tiny_spec, [BEGUN])
    with pytest.raises(InputError) as raised:
        find_left(home, "tiny", ["search.num_trials=6", override])
    assert shown in str(raised.value)
    assert "search.num_trials: 5" not in str(raised.value), "what may change is no part of the complaint"
    assert "under another name" in str(raised.value)


def test_a_kept_spec_is_found_from_anywhere(tiny_spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def settled(source: str, *overrides: str) -> SweepSpec:
        spec = settle_places(load_spec(tiny_spec, [f"data.source={source}", *overrides]))
        assert settle_places(spec) == spec
        assert load_spec(write(spec)) == spec
        return spec

    def write(spec: SweepSpec) -> Path:
        (tmp_path / "kept.yaml").write_text(dump_spec(spec))
        return tmp_path / "kept.yaml"

    monkeypatch.setenv("HOME", "/home/ann")
    for directory, kept in {"features": f"{tmp_path}/features", "~/features": "/home/ann/features"}.items():
        assert settled("photos", f"cache.directory={directory}").cache.directory == kept
    for source, kept in {
        "folder:photos": f"folder:{tmp_path}/photos",
        "photos": f"folder:{tmp_path}/photos",
        "csv:lists/a.csv": f"csv:{tmp_path}/lists/a.csv",
        "torchvision:MNIST:mnist": f"torchvision:MNIST:{tmp_path}/mnist",
        "torchvision:MNIST": "torchvision:MNIST",
        "folder:s3://bucket/photos": "folder:s3://bucket/photos",
        "digits": "digits",
        "foldr:photos": "foldr:photos",
        "s3://bucket/photos": "s3://bucket/photos",
    }.items():
        assert settled(source).data.source == kept
    assert settled("digits", "model.weights=w.pth").model.weights == f"{tmp_path}/w.pth"
    assert settled("digits", "model.weights=models:/a@champion").model.weights == "models:/a@champion"
    backbones = "model.backbones=[resnet18, {backbone: vgg11, weights: {pretrain: {name: p, data: {source: photos}}}}]"
    plain, taught = settled("digits", "model.backbone=null", "model.weights=default", backbones).model.backbones  # type: ignore[misc]
    assert plain == "resnet18"
    assert taught.weights.pretrain.data.source == f"folder:{tmp_path}/photos"


def test_a_change_is_kept_whatever_letters_a_path_has(home: HomePaths, tiny_spec: Path) -> None:
    changed = ("extended", {"changes": {"data.source": "folder:/photos/𠮷野 😀"}})
    lay_out(home, tiny_spec, [BEGUN, changed])
    assert find_left(home, "tiny").spec.data.source == "folder:/photos/𠮷野 😀"


def test_pictures_may_have_moved(
    home: HomePaths, tiny_spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(home, tiny_spec, [BEGUN])
    monkeypatch.chdir(tmp_path)
    left = find_left(home, "tiny", ["data.source=folder:new"])
    assert left.changes == {"data.source": (load_spec(tiny_spec).data.source, f"folder:{tmp_path}/new")}


def test_weights_may_have_moved_where_they_can_be_compared(home: HomePaths, tiny_spec: Path) -> None:
    lay_out(home, tiny_spec, [BEGUN])
    paths = home.sweep("tiny")
    kept = load_spec(tiny_spec, ["model.weights=/there/w.pth"])
    paths.spec.write_text(dump_spec(kept))
    for known, override, is_taken in [
        ({"lenet": {"uri": "w", "sha256": "0"}}, "/here/w.pth", True),
        ({"lenet": {"uri": "w", "sha256": "0"}}, "none", False),
        ({}, "/here/w.pth", False),
    ]:
        paths.data.write_text(json.dumps({"weights": known}))
        with nullcontext() if is_taken else pytest.raises(InputError, match=r"model\.weights: /there"):
            assert list(find_left(home, "tiny", [f"model.weights={override}"]).changes) == ["model.weights"]


def test_weights_of_several_networks_may_have_moved_and_no_network_may_be_another(
    home: HomePaths, tiny_spec: Path
) -> None:
    lay_out(home, tiny_spec, [BEGUN])
    paths = home.sweep("tiny")
    networks = "[{backbone: lenet, weights: %s, image_size_px: %d}, {backbone: vgg11, weights: none}]"
    alone = ["model.backbone=null", "model.weights=default"]
    kept = load_spec(tiny_spec, [*alone, f"model.backbones={networks % ('/there/w.pth', 16)}"])
    paths.spec.write_text(dump_spec(kept))
    for known, weights, size_px, is_taken in [
        ({"lenet": {"uri": "w", "sha256": "0"}}, "/here/w.pth", 16, True),
        ({"lenet": {"uri": "w", "sha256": "0"}}, "/here/w.pth", 12, False),
        ({"lenet": {"uri": "w", "sha256": "0"}}, "none", 16, False),
        ({}, "/here/w.pth", 16, False),
    ]:
        paths.data.write_text(json.dumps({"weights": known}))
        with nullcontext() if is_taken else pytest.raises(InputError, match=r"model\.backbones: "):
            left = find_left(home, "tiny", [f"model.backbones={networks % (weights, size_px)}"])
            assert list(left.changes) == ["model.backbones"]


def test_a_sweep_cannot_have_fewer_trials_than_it_has(home: HomePaths, tiny_spec: Path) -> None:
    lay_out(home, tiny_spec, [BEGUN, trial(0), trial(1), trial(2)])
    with pytest.raises(InputError, match=r"search.num_trials: 2, but 'tiny' has 3 trials already"):
        find_left(home, "tiny", ["search.num_trials=2"])


def test_an_unknown_sweep_is_named_with_those_that_there_are(home: HomePaths, tiny_spec: Path) -> None:
    lay_out(home, tiny_spec, [BEGUN])
    with pytest.raises(InputError, match=r"no sweep 'tony' .* there are: tiny"):
        find_left(home, "tony")


def test_the_last_run_decides_whether_a_sweep_is_finished() -> None:
    def records(*events: str) -> list[dict[str, Any]]:
        return [{"event": event, "time": 0.0} for event in events]

    assert not is_finished([])
    assert is_finished(records("sweep", "trial", "finished"))
    assert not is_finished(records("sweep", "finished", "sweep", "extended", "trial"))
    assert is_finished(records("sweep", "interrupted", "sweep", "finished"))


def test_specs_differ_in_leaves_and_in_whole_lists(tiny_spec: Path) -> None:
    spec = load_spec(tiny_spec)
    assert differences(spec, spec) == {}
    other = load_spec(tiny_spec, ["search.batch_size=16", "baselines=[]"])
    assert differences(spec, other) == {"search.batch_size": ([16, 32], 16), "baselines": (["head_only"], [])}


def test_what_was_being_written_when_a_sweep_was_killed_is_removed(home: HomePaths) -> None:
    paths = home.sweep("tiny")
    paths.remove_torn()  # there is nothing yet
    trial, checkpoint = paths.trial(0).root, "last.ckpt"
    trial.mkdir(parents=True)
    torn = [trial / f".{checkpoint}.0123.tmp", paths.root / ".mlflow.json.0123.tmp"]
    for path in [*torn, trial / checkpoint, paths.journal]:
        path.write_text("x")
    paths.remove_torn()
    left = sorted(path.name for path in paths.root.rglob("*") if path.is_file())
    assert left == [paths.journal.name, checkpoint]
