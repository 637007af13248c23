"""What people see: counts, estimates, tables, the picture's record."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tuner.progress import Progress, SearchState
from tuner.records.champion import choose_champion
from tuner.records.journal import Journal, Record, TrialRecord
from tuner.records.spending import Spending
from tuner.records.trial_rows import trials_frame
from tuner.report.figures import sentence, standing_columns, standing_row
from tuner.report.output import Format, build_trials_table, clean_rows, write_rows
from tuner.report.result import Champion, Standing
from tuner.report.sweep_picture import compose, draw


def trial(number: int, accuracies: list[float], outcome: str = "completed") -> TrialRecord:
    epochs = tuple({"epoch": n, "val/accuracy": a, "val/loss": 1 - a} for n, a in enumerate(accuracies, 1))
    return TrialRecord(number, {"lr": 0.1 / (number + 1), "optimizer": "sgd"}, epochs, outcome)


TRIALS = [trial(0, [0.2, 0.5]), trial(1, [0.3, 0.9, 0.8]), trial(2, [0.1], "stopped_early"), trial(3, [], "failed")]


def console() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=200), out


def begin_two(state: SearchState, journal: Journal) -> None:
    """Two trials that have reached 0.5 and 0.7 in their first epoch."""
    for number, accuracy in enumerate([0.5, 0.7]):
        state.see(journal.append("trial", number=number, params={}))
        state.see(journal.append("epoch", number=number, epoch=1, metrics={"val/accuracy": accuracy}))


def test_search_state_counts_and_estimates(tmp_path: Path) -> None:
    state = SearchState(num_trials=4, max_epochs=2)
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        begin_two(state, journal)
        assert state.running == {0: 1, 1: 1}
        assert state.seconds_left(1) is None
        state.see(journal.append("end", number=0, outcome="stopped_early", metrics={"time/trial_s": 10.0}))
    assert state.best == (0.7, 1)
    assert state.reached == {0: 0.5, 1: 0.7}
    assert (state.num_ended, state.outcomes) == (1, {"stopped_early": 1})
    # Two and a half trials of ten seconds are left on two lanes.
    assert state.seconds_left(2) == pytest.approx(2.5 * 10 / 2)


def test_who_cannot_win_is_not_the_best(tmp_path: Path) -> None:
    state = SearchState(num_trials=4, max_epochs=2)
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        begin_two(state, journal)
        state.see(journal.append("end", number=1, outcome="diverged", reason="loss is nan"))
    assert state.best == (0.5, 0)


def test_a_resumed_search_goes_on_counting(tmp_path: Path) -> None:
    earlier: list[Record] = []
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        for number, accuracy in enumerate([0.7, 0.6, 0.5]):
            earlier.append(journal.append("trial", number=number, params={}))
            earlier.append(journal.append("epoch", number=number, epoch=1, metrics={"val/accuracy": accuracy}))
        earlier.append(journal.append("end", number=0, outcome="completed", metrics={"time/trial_s": 10.0}))
        earlier.append(journal.append("end", number=1, outcome="interrupted", metrics={"time/trial_s": 5.0}))
        state = SearchState(num_trials=3, max_epochs=2)
        state.go_on_from(earlier)  # trial 2 was killed
        assert (state.described(), state.best, state.running) == ("1/3 done", (0.7, 0), {})
        for number in (1, 2):
            state.see(journal.append("trial", number=number, params={}))
            state.see(journal.append("epoch", number=number, epoch=2, metrics={"val/accuracy": 0.55}))
            state.see(journal.append("end", number=number, outcome="completed", metrics={"time/trial_s": 5.0}))
    assert (state.described(), state.best) == ("3/3 done", (0.7, 0))
    assert state.outcomes == {"completed": 3}, "trial 1 was interrupted, and has gone on"
    assert state.reached == {0: 0.7, 1: 0.6, 2: 0.55}


def test_a_budget_shows_its_share_and_the_nearest_end_is_the_estimate(tmp_path: Path) -> None:
    now = [0.0]
    spending = Spending(flops=8e9, clock=lambda: now[0])
    state = SearchState(num_trials=None, spending=spending)
    assert (state.described(), state.seconds_left(1), state.share_done()) == ("0 done, 0% of the budget spent", None, 0)
    now[0] = 6.0
    spending.see("a", 1, {"compute/gflops": 2.0})
    assert (state.described(), state.seconds_left(1)) == ("0 done, 25% of the budget spent", 18.0)
    both = SearchState(num_trials=4, spending=spending)
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        for number in range(2):
            both.see(journal.append("trial", number=number, params={}))
            both.see(journal.append("end", number=number, outcome="completed", metrics={"time/trial_s": 3.0}))
    assert both.described() == "2/4 done, 25% of the budget spent"
    assert both.seconds_left(1) == pytest.approx(6.0)
    assert both.share_done() == 0.5


def test_smaller_is_better_for_a_loss(tmp_path: Path) -> None:
    state = SearchState(metric="val/loss", mode="min", num_trials=2)
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        state.see(journal.append("trial", number=0, params={}))
        for epoch, loss in enumerate([0.5, 0.3, 0.4], 1):
            state.see(journal.append("epoch", number=0, epoch=epoch, metrics={"val/loss": loss}))
    assert state.best == (0.3, 0)


def test_plain_progress_has_a_line_per_trial_and_none_per_epoch(tmp_path: Path) -> None:
    screen, out = console()
    with Progress(screen) as progress, Journal.open(tmp_path / "journal.jsonl") as journal:
        progress.state.num_trials = 2
        progress.phase("starting Ray")
        for done in range(1, 101):
            progress.counted("packing pictures", done, 100)
        progress.see(journal.append("trial", number=0, params={}))
        for epoch in range(1, 6):
            progress.see(journal.append("epoch", number=0, epoch=epoch, metrics={"val/accuracy": epoch / 10}))
        end = {"number": 0, "outcome": "failed", "reason": "out of memory", "metrics": {"time/trial_s": 61.0}}
        progress.see(journal.append("end", **end))
    lines = out.getvalue().splitlines()
    assert "starting Ray" in lines[0]
    assert sum("packing" in line for line in lines) <= 11
    assert "trial 0 failed at 0.5000 (out of memory): 1/2 done" in lines[-1]
    assert "about 1:01 left" in lines[-1]


def test_trials_frame_is_sorted_and_whole() -> None:
    frame = trials_frame(TRIALS, "val/accuracy", "max")
    assert list(frame["number"]) == [1, 0, 2, 3]
    assert frame.loc[0, "best_epoch"] == 2
    assert frame.loc[0, "val/accuracy"] == 0.9
    assert math.isnan(frame.loc[3, "val/accuracy"])


def test_the_first_of_the_frame_is_the_champion() -> None:
    def equal(number: int, loss: float, outcome: str = "completed") -> TrialRecord:
        return TrialRecord(number, {}, ({"epoch": 1, "val/accuracy": 0.9, "val/loss": loss},), outcome)

    records = [equal(0, 0.4), equal(1, 0.2, "stopped_early"), equal(2, 0.1, "diverged"), trial(3, [0.3])]
    champion = choose_champion(records, "val/accuracy", "max")
    assert champion is not None
    assert champion.number == 1
    assert list(trials_frame(records, "val/accuracy", "max")["number"]) == [1, 0, 3, 2]


def test_formats_agree() -> None:
    rows = clean_rows(trials_frame(TRIALS, "val/accuracy", "max"))
    screen, out = console()
    write_rows(rows, Format.json, screen)
    from_json = json.loads(out.getvalue())
    screen, out = console()
    write_rows(rows, Format.csv, screen)
    from_csv = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [row["number"] for row in from_json] == [1, 0, 2, 3] == [int(row["number"]) for row in from_csv]
    assert from_json[3]["val/accuracy"] is None
    assert from_csv[3]["val/accuracy"] == ""
    screen, out = console()
    screen.print(build_trials_table(rows, "val/accuracy"))
    text = out.getvalue()
    assert "lr 0.05" in text
    assert "optimizer" not in text  # what does not vary is not repeated on every line


def test_the_metric_that_chose_stands_beside_accuracy() -> None:
    test = {"accuracy": 0.8, "accuracy_low": 0.7, "accuracy_high": 0.9, "macro_f1": 0.75, "cost": 1.5, "cost_low": 0.9}
    standing = Standing("trial 1", {"accuracy": 0.9, "cost": 1.25}, {**test, "cost_high": 2.0}, seconds=7.25)
    shown = dict(
        zip(
            standing_columns("val/cost", has_test=True),
            standing_row("champion", standing, "val/cost", has_test=True),
            strict=True,
        )
    )
    assert shown == {
        "": "champion",
        "val accuracy": "90.0%",
        "test accuracy": "80.0%",
        "95% interval": "70.0 to 90.0%",
        "test macro F1": "0.750",
        "val cost": "1.2500",
        "test cost": "1.5000",
        "its interval": "0.9000 to 2.0000",
        "s of training": "7.2",
    }
    assert standing_row("c", replace(standing, seconds=107.4), "val/accuracy", has_test=True)[1:] == [
        "90.0%",
        "80.0%",
        "70.0 to 90.0%",
        "0.750",
        "107",
    ]
    assert standing_columns("val/macro_f1", has_test=False) == ["", "val accuracy", "val macro F1", "s of training"]
    assert sentence(standing, "val/cost") == (
        "validation accuracy 0.9000, validation cost 1.2500, test accuracy 0.8000 (95% interval 0.7000 to 0.9000), "
        "test cost 1.5000 (95% interval 0.9000 to 2.0000), 7.2 s of training"
    )


def test_the_picture_records_what_was_reached() -> None:
    test = {"accuracy": 0.8, "accuracy_low": 0.7, "accuracy_high": 0.9, "majority_rate": 0.5}
    champion = Champion(1, {}, None, Standing("trial 1", {"accuracy": 0.9}, test))  # type: ignore[arg-type]
    baseline = Standing("head_only", {"accuracy": 0.6}, {**test, "accuracy": 0.75})
    picture = compose("name", TRIALS, "val/accuracy", "max", champion, [baseline])
    assert [curve.number for curve in picture.curves] == [2, 0, 1]
    assert picture.curves[-1].is_champion
    assert picture.curves[-1].values == (0.3, 0.9, 0.8)
    assert [(bar.name, bar.value) for bar in picture.bars] == [("champion", 0.8), ("head only", 0.75)]
    assert (picture.side, picture.majority_rate) == ("test", 0.5)
    untested = compose("n", TRIALS, "val/accuracy", "max", Champion(1, {}, None, Standing("t", {"accuracy": 0.9})), [])  # type: ignore[arg-type]
    assert (untested.side, untested.majority_rate, untested.bars[0].low) == ("validation", None, 0.9)
    test = {**test, "auroc": 0.95, "auroc_low": 0.9, "auroc_high": 0.98}
    of_area = Champion(1, {}, None, Standing("t", {"accuracy": 0.9, "auroc": 0.97}, test))  # type: ignore[arg-type]
    ranked = [TrialRecord(1, {}, ({"epoch": 1, "val/auroc": 0.97},), "completed")]
    area = compose("n", ranked, "val/auroc", "max", of_area, [])
    assert (area.figure, area.bars[0].value, area.bars[0].high, area.majority_rate) == ("auroc", 0.95, 0.98, None)
    alone = replace(of_area.standing, test={"accuracy": 0.8})  # all that is tested is of one class
    one = compose("n", ranked, "val/auroc", "max", replace(of_area, standing=alone), [baseline])
    assert (one.figure, [bar.value for bar in one.bars]) == ("accuracy", [0.8, 0.75])
    for record in (picture, untested, area):
        assert draw(record).startswith(b"\x89PNG")


def test_the_picture_of_folds_shows_their_spread() -> None:
    epochs = tuple({**epoch, "val/accuracy_std": 0.04} for epoch in TRIALS[1].epochs)
    trials = [TRIALS[0], replace(TRIALS[1], epochs=epochs)]
    standing = Standing("t", {"accuracy": 0.9, "accuracy_se": 0.02})
    config = SimpleNamespace(data=SimpleNamespace(folds=5), repeats=1)
    picture = compose("n", trials, "val/accuracy", "max", Champion(1, {}, config, standing), [])  # type: ignore[arg-type]
    assert [curve.stds for curve in picture.curves] == [(), (0.04, 0.04, 0.04)]
    assert (picture.bars[0].low, picture.bars[0].high) == pytest.approx(
        (0.9 - 2.776 * 0.02, 0.9 + 2.776 * 0.02), abs=1e-4
    )
    assert draw(picture).startswith(b"\x89PNG")


def test_brackets_in_names_are_shown_as_they_are() -> None:
    shown, out = console()
    write_rows([{"class": "[good] part", "file": "x[/y].png"}], Format.table, shown)
    assert "[good] part" in out.getvalue()
    assert "x[/y].png" in out.getvalue()
    shown, out = console()
    Progress(console=shown).note("set aside: bolt/notes[final].txt: [/] is no picture")
    assert out.getvalue() == "set aside: bolt/notes[final].txt: [/] is no picture\n"
