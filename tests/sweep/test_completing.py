"""What a shell is offered, asked as a shell asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.commands import completing


def offered(words: str, folder: Path) -> list[str]:
    """As bash asks: the words so far, the last one being completed."""
    environment = {**os.environ, "_THAW_COMPLETE": "complete_bash", "COMP_WORDS": words}
    environment |= {"COMP_CWORD": str(len(words.split(" ")) - 1), "THAW_HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, "-m", "tuner"], env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_a_shell_completes_commands_specs_and_sweeps(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "mixed.txt").touch()
    journal = tmp_path / "home" / "sweeps" / "bees" / "journal.jsonl"
    journal.parent.mkdir(parents=True)
    journal.write_text("{}\n")
    assert "sweep" in offered("thaw sw", tmp_path)
    assert offered("thaw sweep mi", tmp_path) == ["mine.yaml"]
    assert offered("thaw resume b", tmp_path) == ["bees"]
    assert offered("thaw sweep quick --set search.nu", tmp_path) == ["search.num_trials=", "search.num_views="]


def test_specs_sources_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "a.yml").touch()
    (tmp_path / ".hidden").mkdir()
    monkeypatch.chdir(tmp_path)
    assert completing.specs("sp") == ["specs/"]
    assert completing.specs("specs/") == completing.specs("specs/a") == ["specs/a.yml"]
    assert completing.specs("absent/x") == []
    assert completing.specs_or_sources("d") == ["digits"]
    assert completing.specs_or_sources("f") == ["folder:"]
    assert set(completing.specs("")) >= {"digits", "quick", "specs/"}


def test_fields_are_those_that_a_spec_has() -> None:
    from search_spaces.loading import load_spec

    assert "data.split.val=" in completing.fields("data.split.")
    assert "early_stopping.population.quantile_fraction=" in completing.fields("early")
    assert load_spec("digits", [completing.fields("budget.ep")[0] + "4"]).budget.epochs == 4
