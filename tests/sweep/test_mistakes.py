"""Every mistake a user can make in a first sweep: one clear line with the remedy, exit code 2, before any training."""

from __future__ import annotations

import errno
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from running_thaw import start_thaw

from trainables.errors import InputError
from tuner import cli
from tuner.paths import HomePaths

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``thaw`` in this process with a home of its own; gives the exit code and standard error."""
    monkeypatch.setenv("THAW_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["thaw", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not list(work.iterdir()), "something was written into the working directory"
        return int(ended.value.code or 0), capsys.readouterr().err

    return call


def folder_of(root: Path, counts: dict[str, int]) -> str:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            shade = (hash((name, index)) % 200, index % 256, 7 * index % 256)
            Image.new("RGB", (20, 20), shade).save(root / name / f"{index}.png")
    return f"folder:{root}"


def one_line(err: str) -> str:
    """The message, which is one line unless there are several mistakes."""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("thaw: ")]
    assert len(lines) == 1, err
    return lines[0]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["search.num_trails=3"], ["search.num_trails", "did you mean `search.num_trials`"]),
        (["search.lr={low: 0.1, high: 0.01}"], ["search.lr", "low"]),
        (["search.freeze_depth={low: 0, high: 9}"], ["freeze_depth", "9", "4"]),
        (["model.backbone=resnet81", "model.weights=none"], ["resnet81", "resnet18"]),
        (["model.weights=nowhere.pth"], ["nowhere.pth", "no file"]),
        (["data.source=folder:/no/such/place"], ["/no/such/place", "no such folder"]),
        (["data.source=imagenet"], ["imagenet", "folder:"]),
        (["data.exclude_classes=[ten]"], ["data.exclude_classes", "ten"]),
        (["data.folds=1"], ["data.folds", "at least 2"]),
        (["data.folds=20", "data.max_per_class=15"], ["data.folds", "20", "give at most"]),
        (["budget.epochs=0"], ["budget.epochs", "0"]),
        (["name=a/b"], ["name", "a/b"]),
        (["tracking.uri=./mlruns"], ["tracking.uri", "mlruns", "http"]),
        (
            ["early_stopping.scheduler=hyperband", "early_stopping.reduction_factor=1.5"],
            ["reduction_factor", "1.5", "2"],
        ),
        (["tracking.uri=http://kim:secret@host:5000"], ["tracking.uri", "http://host:5000", "MLFLOW_TRACKING_URI"]),
    ],
)
def test_mistakes_in_the_spec(run: Run, overrides: list[str], words: list[str]) -> None:
    code, err = run("sweep", "digits", "--dry-run", *(part for text in overrides for part in ("--set", text)))
    assert code == 2
    assert all(word in one_line(err) for word in words), err


def test_mistakes_in_the_pictures(run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    one = folder_of(tmp_path / "one", {"only": 12})
    few = folder_of(tmp_path / "few", {"many": 12, "rare": 2})
    for source, words in [
        (f"folder:{empty}", ["empty", "class"]),
        (one, ["only", "two class folders"]),
        (few, ["rare", "2", "fewer than 3"]),
    ]:
        code, err = run(
            "sweep", "digits", "--dry-run", "--set", f"data.source={source}", "--set", "data.exclude_classes=[]"
        )
        assert code == 2
        assert all(word in one_line(err) for word in words), err


def test_folds_where_the_source_has_a_validation_side(run: Run, tmp_path: Path) -> None:
    for side in ("train", "val"):
        source = folder_of(tmp_path / "sides" / side, {"ants": 9, "bees": 9}).removesuffix(f"/{side}")
    code, err = run(
        "sweep", "digits", "--dry-run", "--set", f"data.source={source}", "--set", "data.exclude_classes=[]",
        "--set", "data.folds=3",
    )  # fmt: skip
    assert code == 2
    assert all(word in one_line(err) for word in ("data.folds: 3", "data.split.source to ignore")), err


def test_weights_that_do_not_fit_or_hold_code(run: Run, tmp_path: Path) -> None:
    wrong, evil, garbage = tmp_path / "wrong.pth", tmp_path / "evil.pth", tmp_path / "garbage.pth"
    torch.save({"conv1.weight": torch.zeros(3)}, wrong)

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("code ran",))

    with evil.open("wb") as file:
        pickle.dump({"x": Evil()}, file)
    garbage.write_bytes(b"nothing of the kind")
    for path, words in [(wrong, ["wrong.pth", "block1"]), (evil, ["evil.pth"]), (garbage, ["garbage.pth"])]:
        code, err = run("sweep", "digits", "--dry-run", "--set", f"model.weights={path}")
        assert code == 2
        assert all(word in one_line(err) for word in words), err


def test_a_name_in_use_is_refused_and_new_takes_the_next(run: Run, tmp_path: Path) -> None:
    from tuner.records.journal import Journal
    from tuner.records.sweep_names import free_name

    home = HomePaths.at(tmp_path / "home")
    with Journal.open(home.sweep("digits").journal) as journal:
        journal.append("sweep", name="digits", params={})
    code, err = run("sweep", "digits")
    assert code == 2
    assert "thaw resume digits" in one_line(err)
    with Journal.open(home.sweep("digits").journal) as journal:
        journal.append("finished", outcome="completed", reason=None)
    code, err = run("sweep", "digits")
    assert code == 2
    assert "finished" in one_line(err)
    assert "--new" in one_line(err)
    assert free_name("digits", home) == "digits-2"
    assert free_name("other", home) == "other"
    for number in ("", "-2"):
        with Journal.open(home.sweep("a" * (64 - len(number)) + number).journal) as journal:
            journal.append("sweep", name="long", params={})
    assert free_name("a" * 64, home) == "a" * 62 + "-3"


def test_mistakes_in_other_commands(run: Run, tmp_path: Path) -> None:
    for arguments, words in [
        (("resume", "nothing"), ["nothing", "there are: none"]),
        (("trials", "nothing"), ["nothing", "there are: none"]),
        (("predict", str(tmp_path / "no.jpg")), ["no.jpg", "no file or folder"]),
        (("ui",), ["thaw sweep digits"]),
        (("sweep", "digitz"), ["digitz", "digits"]),
    ]:
        code, err = run(*arguments)
        assert code == 2, err
        assert all(word in one_line(err) for word in words), err
    (tmp_path / "a.png").write_bytes(b"x")
    code, err = run("predict", str(tmp_path / "a.png"))
    assert code == 2
    assert "champion" in one_line(err)


def test_the_dry_run_shows_the_plan_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THAW_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.argv", ["thaw", "sweep", "digits", "--dry-run", "--set", "search.num_trials=40"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    out = capsys.readouterr().out
    assert "num_trials: 40" in out
    assert "block1" in out
    assert "32 x 4 x 4" in out
    assert out.count("182") >= 1  # pictures of the digit 5
    assert "Cost of a whole trial by freeze_depth, with views of none" in out
    (whole, *_) = re.findall(r"^ +0 +([\d.e+]+) +([\d.e+]+) +([\d.e+]+) ", out, re.M)
    assert len(set(whole)) == 1, "with nothing frozen the store is of no use"
    assert HomePaths.at(tmp_path / "home").sweep_names() == []


@pytest.mark.ray
@pytest.mark.slow
def test_too_few_processors_are_said_before_training(tiny_spec: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    process = start_thaw(home, "sweep", str(tiny_spec), "--set", "budget.workers_per_trial=512")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "512 workers" in one_line(err)
    assert HomePaths.at(home).sweep_names() == []


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (InputError("mend it"), 2)])
def test_the_command_says_how_it_ended(
    raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("search_spaces.loading.preset_names", fail)
    monkeypatch.setattr("sys.argv", ["thaw", "spec", "presets"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code
    assert {130: "interrupted at once; `thaw resume NAME` goes on", 2: "mend it"}[code] in capsys.readouterr().err


def test_what_ends_too_early_is_seen_where_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer takes the error for somebody who closed the keyboard, and would say no more than 'Aborted'."""

    def fail() -> None:
        raise EOFError

    monkeypatch.setattr("search_spaces.loading.preset_names", fail)
    monkeypatch.setattr("sys.argv", ["thaw", "spec", "presets"])
    with pytest.raises(RuntimeError, match="ended too early") as caught:
        cli.main()
    assert isinstance(caught.value.__cause__, EOFError)


def test_a_full_disk_is_said_in_one_line_wherever_it_is_met(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # of a write, which knows no name

    monkeypatch.setattr("search_spaces.loading.preset_names", fail)
    monkeypatch.setattr("sys.argv", ["thaw", "spec", "presets"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "no room (No space left on device): free some" in one_line(capsys.readouterr().err)
