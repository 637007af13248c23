"""Progress and results in a real notebook kernel."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tuner.notebook import as_html, is_notebook
from tuner.paths import HomePaths
from tuner.records.journal import read_trials

PROGRESS = """
from tuner.progress import Progress, shown

with shown(None) as progress:
    progress.phase("starting lanes")
    progress.state.num_trials = 2
    progress.see({"event": "trial", "number": 0})
    progress.see({"event": "epoch", "number": 0, "epoch": 1, "metrics": {"val/accuracy": 0.75}})
    progress.note("set aside: a.txt")
    progress.see({"event": "end", "number": 0, "outcome": "completed", "metrics": {"time/trial_s": 2.0}})
"""
RESULT = """
from tuner.records.journal import TrialRecord
from tuner.paths import HomePaths
from tuner.report.result import SweepResult

trial = TrialRecord(0, {"lr": 0.125}, ({"val/accuracy": 0.75, "val/loss": 0.5, "epoch": 1},), "completed")
home = HomePaths.resolve(HOME)
SweepResult("parts", home, "sqlite:///none", "val/accuracy", "max", (trial,), None, is_finished=False)
"""

MISTAKE = """
from tuner import load_spec

load_spec("quick", ["data.source=digits", "search.num_trials=many"])
"""
SWEEP = """
from tuner import load_spec, run_sweep

overrides = ["name=nb", "search.num_trials=3", "budget.epochs=20"]
overrides += ["early_stopping.scheduler=none", "early_stopping.patience=null"]
run_sweep(load_spec(SPEC, overrides), home=HOME)
"""
RESUMED = """
from tuner import resume_sweep

resume_sweep("nb", home=HOME)
"""


def executed(*cells: str, allow_errors: bool = False) -> list[list[dict[str, Any]]]:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120, kernel_name="python3", allow_errors=allow_errors).execute()
    return [cell["outputs"] for cell in notebook.cells]


def test_a_panel_follows_the_sweep_and_the_result_is_a_table(tmp_path: Path) -> None:
    progress, result = executed(PROGRESS, RESULT.replace("HOME", repr(str(tmp_path))))
    (panel,) = (output for output in progress if output["output_type"] == "display_data")
    html = panel["data"]["text/html"]
    assert "1/2 done (1 completed)" in html
    assert "0.7500 (trial 0)" in html
    assert "".join(output["text"] for output in progress if output["output_type"] == "stream") == "set aside: a.txt\n"
    html = result[0]["data"]["text/html"]
    assert "Best of 1 trials of sweep parts" in html
    assert "thaw resume parts" in html


def test_a_mistake_is_said_without_a_stack() -> None:
    ((shown,),) = executed(MISTAKE, allow_errors=True)
    assert shown["output_type"] == "error"
    (line,) = shown["traceback"]
    assert line.startswith("InputError: quick: search.num_trials: 'many' is not a whole number")


def interrupt_after_an_epoch(client: NotebookClient, journal: Path) -> None:
    """As the notebook's stop button does."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if journal.exists() and '"event":"epoch"' in journal.read_text().replace(" ", ""):
            time.sleep(0.5)  # in the very write of the first epoch there is none yet, and the sweep would end at once
            client.km.provisioner.process.send_signal(signal.SIGINT)
            return
        time.sleep(0.1)


def shown_by(cell: Any) -> dict[str, str]:
    """What stands under a cell: what was said on the way, and its result."""
    said = "".join(output["text"] for output in cell["outputs"] if output["output_type"] == "stream")
    panel, result = (output["data"]["text/html"] for output in cell["outputs"] if "data" in output)
    return {"stderr": said, "panel": panel, "result": result}


@pytest.mark.long
@pytest.mark.ray
def test_a_sweep_is_stopped_and_goes_on(tiny_spec: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    cells = [cell.replace("HOME", repr(str(home))) for cell in (SWEEP.replace("SPEC", repr(str(tiny_spec))), RESUMED)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, timeout=400, kernel_name="python3")
    journal = HomePaths.resolve(home).sweep("nb").journal
    threading.Thread(target=interrupt_after_an_epoch, args=(client, journal), daemon=True).start()
    client.execute()
    stopped, finished = (shown_by(cell) for cell in notebook.cells)
    assert "once more stops at once" in stopped["stderr"]
    assert "interrupted by the user" in stopped["stderr"]
    assert "trials: 0/3 done" in stopped["panel"]
    assert "thaw resume nb" in stopped["result"]
    assert "found: 0 of 3 trials ended" in finished["stderr"]
    assert "trials: 3/3 done (3 completed)" in finished["panel"]
    assert "thaw predict PICTURES --model nb@champion" in finished["result"]
    trials = read_trials(journal)
    assert [(trial.outcome, len(trial.epochs)) for trial in trials] == [("completed", 20)] * 3


def test_a_test_is_no_notebook_and_html_has_its_own_styles() -> None:
    assert not is_notebook()
    html = as_html("[bold]<b>[/bold]")
    assert html.startswith("<pre")
    assert "<b>" not in html
    assert "font-weight: bold" in html


def test_frequent_changes_are_left_out(monkeypatch: Any) -> None:
    """A sweep of thousands of epochs must not fill its notebook."""
    from tuner import notebook

    made: list[str] = []
    monkeypatch.setattr(notebook, "as_html", lambda shown: made.append(str(shown)) or "")
    monkeypatch.setattr(notebook.importlib, "import_module", lambda _: _Display())
    panel = notebook.CellPanel()
    deadline = time.monotonic() + 0.1
    while time.monotonic() < deadline:
        panel.show("again")
    panel.show("last", at_once=True)
    assert len(made) <= 3
    assert made[-1] == "last"


class _Display:
    def HTML(self, text: str) -> str:  # noqa: N802  (IPython's name)
        return text

    def display(self, content: str, display_id: bool) -> _Display:
        assert display_id
        return self

    def update(self, content: str) -> None:
        pass
