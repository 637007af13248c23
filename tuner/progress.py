"""What a person sees while a sweep runs: a live panel on a terminal or in a notebook, plain lines elsewhere.

In: the journal's records as they are written, and the phases between them. Out: text on standard error, so that
standard output holds results alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuner.notebook import CellPanel, is_notebook
from tuner.records.journal import Record
from tuner.records.spending import Spending


@dataclass
class SearchState:
    """Counts of one search, kept up to date from its records.

    Attributes:
        metric: What decides.
        mode: ``max`` or ``min``.
        num_trials: Trials in all; None where only the budget ends the search.
        max_epochs: Of one trial.
        spending: Of the search's budget.
    """

    metric: str = "val/accuracy"
    mode: str = "max"
    num_trials: int | None = 0
    max_epochs: int = 1
    spending: Spending | None = None
    running: dict[int, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    reached: dict[int, float] = field(default_factory=dict)
    unfit: set[int] = field(default_factory=set)  # to be champion
    best: tuple[float, int] | None = None

    def see(self, record: Record) -> None:
        """Takes one record of the journal into account."""
        event = record["event"]
        if event == "trial":
            self.running[record["number"]] = 0
        elif event == "epoch" and record["number"] in self.running:
            self.running[record["number"]] = record["epoch"]
            value = record["metrics"].get(self.metric)
            if value is not None:
                self._take(record["number"], value)
        elif event == "end" and record["number"] in self.running:
            del self.running[record["number"]]
            self.outcomes[record["outcome"]] = self.outcomes.get(record["outcome"], 0) + 1
            self.seconds.append((record.get("metrics") or {}).get("time/trial_s", 0.0))
            if record["outcome"] in ("failed", "diverged"):
                self.unfit.add(record["number"])
                self._rank()
        elif event == "exchange":
            self._take_over(record)

    def go_on_from(self, records: Iterable[Record]) -> None:
        """Takes into account what an earlier run of the sweep wrote; what it left running is begun again."""
        for record in records:
            self.see(record)
        self.running.clear()
        self.outcomes.pop("interrupted", None)

    def _take_over(self, record: Record) -> None:
        """What a trial gave up for another's weights is lost, the best too."""
        for move in record["moves"]:
            self.reached.pop(move["number"], None)
            if move["donor"] in self.reached:
                self.reached[move["number"]] = self.reached[move["donor"]]
        self._rank()

    def _rank(self) -> None:
        ranked = sorted(item for item in self.reached.items() if item[0] not in self.unfit)
        best = (max if self.mode == "max" else min)(ranked, key=lambda item: item[1], default=None)
        self.best = None if best is None else (best[1], best[0])

    def _take(self, number: int, value: float) -> None:
        better = max if self.mode == "max" else min
        self.reached[number] = better(value, self.reached.get(number, value))
        if self.best is None or better(value, self.best[0]) != self.best[0]:
            self.best = (value, number)

    @property
    def num_ended(self) -> int:
        """Trials that have an outcome."""
        return sum(count for outcome, count in self.outcomes.items() if outcome != "interrupted")

    def seconds_left(self, num_lanes: int) -> float | None:
        """An estimate from the mean of the trials that ended, or from the budget's share; None before there is one."""
        estimates = [] if self.spending is None else [self.spending.seconds_left()]
        if self.seconds and self.num_trials is not None:
            mean_s = sum(self.seconds) / len(self.seconds)
            num_left = max(0, self.num_trials - self.num_ended - len(self.running) / 2)
            estimates.append(num_left * mean_s / max(1, num_lanes))
        return min((estimate for estimate in estimates if estimate is not None), default=None)

    def share_done(self) -> float:
        """How much of the search is done, from 0 to 1, by what ends it first."""
        shares = [] if self.num_trials is None else [self.num_ended / max(1, self.num_trials)]
        spent = None if self.spending is None else self.spending.share
        return max([*shares, spent or 0.0])

    def described(self) -> str:
        """How far the search is: trials of trials, and the share of the budget where there is one."""
        of_all = "" if self.num_trials is None else f"/{self.num_trials}"
        share = None if self.spending is None else self.spending.share
        return f"{self.num_ended}{of_all} done" + ("" if share is None else f", {100 * share:.0f}% of the budget spent")


class Progress:
    """Shows a sweep's phases and trials; a context manager.

    Args:
        console: Where to; standard error by default. A terminal gets a live panel, a notebook one under the running
            cell, anything else plain lines.
        quiet: Shows nothing at all.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._is_in_cell = console is None and not quiet and is_notebook()
        self.console = console or Console(stderr=True, quiet=quiet, force_jupyter=False)
        self.state = SearchState()
        self.num_lanes = 1
        self.num_untold: Callable[[], int] = lambda: 0  # records that wait for an MLflow that is away
        self._phase = ""
        self._fraction: float | None = None
        self._started = time.monotonic()
        self._live: Live | None = None
        self._panel: CellPanel | None = None

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        if self._is_in_cell:
            self._panel = CellPanel()
        elif self.console.is_terminal and not self.console.quiet:
            self._live = Live(console=self.console, get_renderable=self._render, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._panel is not None:
            self._panel.show(self._render(), at_once=True)
            self._panel = None

    def phase(self, text: str) -> None:
        """What is being done now, where no trial says it."""
        self._phase, self._fraction = text, None
        if self._shows_lines:
            self._line(text)
        self._refresh(at_once=True)

    def counted(self, text: str, done: int, total: int) -> None:
        """A phase of which so much is done; plain output gets its tenths."""
        before = self._fraction if self._phase == text else None
        self._phase, self._fraction = text, done / max(1, total)
        if self._shows_lines and (before is None or int(10 * before) < int(10 * self._fraction)):
            self._line(f"{text}: {done} of {total}")
        self._refresh()

    def note(self, text: str, style: str = "") -> None:
        """A line that stays."""
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def see(self, record: Record) -> None:
        """Takes one record of the journal into account."""
        is_trial = record.get("number") in self.state.running
        self.state.see(record)
        if self._shows_lines and is_trial and record["event"] == "end":
            self._line(self._describe_end(record))
        elif self._shows_lines and record["event"] == "exchange":
            self._line(_describe_exchange(record))
        self._refresh()

    @property
    def _shows_lines(self) -> bool:
        return self._live is None and self._panel is None

    def _refresh(self, *, at_once: bool = False) -> None:
        if self._panel is not None:
            self._panel.show(self._render(), at_once=at_once)

    def _describe_end(self, record: Record) -> str:
        state, number = self.state, record["number"]
        reason = f" ({record['reason']})" if record.get("reason") and record["outcome"] != "stopped_early" else ""
        reached = f" at {state.reached[number]:.4f}" if number in state.reached else ""
        best = f", best {state.metric} {state.best[0]:.4f} (trial {state.best[1]})" if state.best else ""
        left = state.seconds_left(self.num_lanes)
        estimate = f", about {_clock(left)} left" if left else ""
        outcome = record["outcome"].replace("_", " ")
        untold = f"; {_untold(num_untold)}" if (num_untold := self.num_untold()) else ""
        return f"trial {number} {outcome}{reached}{reason}: {state.described()}{best}{estimate}{untold}"

    def _line(self, text: str) -> None:
        self.note(f"[{_clock(time.monotonic() - self._started)}] {text}")

    def _render(self) -> RenderableType:
        state = self.state
        elapsed = _clock(time.monotonic() - self._started)
        if state.num_trials == 0 or not (state.running or state.outcomes):
            fraction = [] if self._fraction is None else [ProgressBar(total=1, completed=self._fraction, width=40)]
            return Group(Text(f"{elapsed}  {self._phase}"), *fraction)
        left = state.seconds_left(self.num_lanes)
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(state.outcomes.items()))
        best = "none yet" if state.best is None else f"{state.best[0]:.4f} (trial {state.best[1]})"
        grid = Table.grid(padding=(0, 2))
        grid.add_row(ProgressBar(total=1.0, completed=state.share_done(), width=40), f"{elapsed} elapsed")
        grid.add_row(
            f"trials: {state.described()}" + (f" ({counts})" if counts else ""),
            "" if left is None else f"about {_clock(left)} left",
        )
        grid.add_row(f"best {state.metric}: {best}")
        running = [
            f"trial {number}: epoch {epoch}/{state.max_epochs}" for number, epoch in sorted(state.running.items())
        ]
        done = "" if self._fraction is None else f": {self._fraction:.0%}"
        grid.add_row("   ".join(running) or Text(f"{self._phase}{done}"))
        if num_untold := self.num_untold():
            grid.add_row(_untold(num_untold))
        return grid


def _describe_exchange(record: Record) -> str:
    moves = ", ".join(f"trial {move['number']} takes over trial {move['donor']}" for move in record["moves"])
    return f"after epoch {record['epoch']}: {moves or 'nobody takes over anything'}"


def _untold(number: int) -> str:
    return f"MLflow is away, {number} records wait for it"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"  # noqa: PLR2004


@contextmanager
def shown(progress: Progress | None) -> Iterator[Progress]:
    """The given progress; without one, a panel where a notebook shows it, and nothing elsewhere."""
    if progress is not None:
        yield progress
        return
    with Progress(quiet=not is_notebook()) as own:
        yield own
