"""Spec files: YAML as people mean it, overrides, presets, the schema beside them, and the time it all takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.loading import (
    dump_spec,
    load_spec,
    parse_spec,
    preset_names,
    spec_schema,
    spec_schema_text,
)
from search_spaces.ranges import Range
from search_spaces.reference import reference_text
from search_spaces.search_spec import SearchSpec
from search_spaces.single import searched_fields
from search_spaces.spec import SweepSpec
from search_spaces.taking import takes
from trainables.errors import InputError

SPEC = """\
name: bees
data: {source: "folder:bees"}
model: {backbone: resnet18}
"""


@pytest.fixture
def write(tmp_path):
    def write_spec(text):
        path = tmp_path / "bees.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_spec


def test_names_and_numbers_are_what_they_look_like(write):
    path = write(SPEC.replace('bees"}', 'bees", exclude_classes: [0, 007, no, on, 1e5x, "3"]}') + "search: {lr: 1e-3}")
    spec = load_spec(path)
    assert spec.data.exclude_classes == ("0", "007", "no", "on", "1e5x", "3")
    assert spec.search.lr == 0.001


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6) | st.integers().map(str), unique=True))
def test_class_names_survive_the_way_through_a_file(tmp_path_factory, names):
    raw = {"name": "bees", "data": {"source": "x", "exclude_classes": names}, "model": {"backbone": "lenet"}}
    spec = parse_spec(raw, SweepSpec, "test")
    path = tmp_path_factory.getbasetemp() / "names.yaml"
    path.write_text(dump_spec(spec), encoding="utf-8")
    assert load_spec(path) == spec


@pytest.mark.parametrize("name", ["1e-3", "yes", "null", "~", "1.5", "2001-01-01", "0x10", "12:30", "007", ".inf"])
def test_class_names_that_look_like_something_else_stay_names(write, name):
    raw = {"name": "bees", "data": {"source": "x", "exclude_classes": [name]}, "model": {"backbone": "lenet"}}
    spec = parse_spec(raw, SweepSpec, "test")
    assert load_spec(write(dump_spec(spec))).data.exclude_classes == (name,)


def test_overrides_set_fields_by_path_and_the_last_one_wins(write):
    spec = load_spec(
        write(SPEC),
        [
            "search.num_trials=40",
            "search.num_trials=41",
            "search.freeze_depth=[0, 2, all]",
            "budget.time_s=1e3",
            "data.exclude_classes=[0, 1]",
            "data.source=folder:a=b",
        ],
    )
    assert (spec.search.num_trials, spec.search.freeze_depth, spec.budget.time_s) == (41, (0, 2, "all"), 1000.0)
    assert (spec.data.exclude_classes, spec.data.source) == (("0", "1"), "folder:a=b")


def test_an_override_moves_one_end_of_a_default_range(write):
    lr = load_spec(write(SPEC), ["search.lr.low=1e-5"]).search.lr
    assert (lr.low, lr.high, lr.log) == (1e-5, 3e-2, True)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("search.lr", "--set search.lr: not of the form field.path=VALUE, such as search.num_trials=40"),
        ("search..lr=1", "--set search..lr=1: not of the form field.path=VALUE, such as search.num_trials=40"),
        ("name.first=a", "--set name.first=a: name is 'bees' and has no fields; set name as a whole"),
        ("search.lr=[1", "--set search.lr=[1: the value is line 1, column 3: not valid YAML: "),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(write, override, line):
    with pytest.raises(InputError) as caught:
        load_spec(write(SPEC), [override])
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "the file is empty; a spec has fields such as name, data and model"),
        (
            "- name: bees",
            "the file is [{'name': 'bees'}], not a mapping; a spec has fields such as name, data and model",
        ),
        ("name: [bees", "line 1, column 12: not valid YAML: "),
        (SPEC + "name: wasps\n", "line 4, column 1: not valid YAML: `name` is given twice"),
        ("name: !!python/object:os.system x", "line 1, column 7: not valid YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_spec_is_refused_with_its_place(write, text, line):
    path = write(text)
    with pytest.raises(InputError) as caught:
        load_spec(path)
    assert str(caught.value).startswith(f"{path}: {line}")


def test_a_missing_file_a_folder_and_a_picture_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no such file; did you mean the preset `digits`"):
        load_spec("digit")
    with pytest.raises(InputError, match="there is no such file; presets are backbones, digits, industrial, quick"):
        load_spec(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match=r"this is a folder, not a spec; for pictures, write folder:"):
        load_spec(tmp_path)
    picture = tmp_path / "bee.png"
    picture.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputError, match="byte 0 is not UTF-8 text"):
        load_spec(picture)
    with pytest.raises(InputError, match=r"^spec: .*: no path is so long, 5000 bytes; give that of a file or folder$"):
        load_spec("x" * 5000)


def test_a_preset_is_found_beside_a_folder_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_spec("digits").name == "digits"


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_open_with_the_editors_line_and_the_command(name):
    spec = load_spec(name, ["data.source=folder:x"])
    lines = resources.files("search_spaces.presets").joinpath(f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=sweep.schema.json"
    assert any(line.startswith(f"# Command:  thaw sweep {name}") for line in lines)
    assert parse_spec(spec.model_dump(mode="json"), SweepSpec, name) == spec


def test_the_specs_beside_the_documentation_load():
    files = sorted((Path(__file__).parents[2] / "docs" / "specs").glob("*.yaml"))
    assert len(files) >= 2
    for file in files:
        spec = load_spec(file)
        assert f"thaw sweep {file.name}" in file.read_text(encoding="utf-8")
        assert searched_fields(spec)


def test_the_digits_preset_transfers_from_one_half_of_the_digits_to_the_other():
    spec = load_spec("digits")
    pretrain = spec.pretrain_specs()["lenet"]
    assert set(spec.data.exclude_classes) | set(pretrain.data.exclude_classes) == set("0123456789")
    assert not set(spec.data.exclude_classes) & set(pretrain.data.exclude_classes)
    assert spec.search.num_trials == 16
    assert spec.baselines == ("from_scratch", "head_only")


def test_the_schema_beside_the_presets_is_up_to_date():
    path = resources.files("search_spaces.presets").joinpath("sweep.schema.json")
    assert path.read_text(encoding="utf-8") == spec_schema_text(), "write it anew with `thaw spec schema`"


def test_what_a_field_takes_is_said_in_words() -> None:
    schema = spec_schema()

    def of(path: str) -> str:
        section, _, name = path.partition(".")
        return takes(schema["$defs"][section]["properties"][name])

    assert of("SearchSpec.lr") == "number above 0; list; range"
    assert of("SearchSpec.freeze_depth") == "whole number from 0; `all`; list; range"
    assert of("SearchSpec.precision") == "`fp32`, `bf16`; list; `null`"
    assert of("SearchSpec.ema_decay") == "number above 0, below 1; `null`; list; range"
    assert of("ComputeSpec.channels_last") == "`true`, `false`, `auto`"
    assert of("ModelSpec.backbones") == "`auto`; list of text or mapping; `null`"
    assert of("ModelSpec.weights") == "text; mapping"
    assert of("BudgetSpec.epochs") == "whole number from 1 to 10,000"
    assert takes(schema["properties"]["costs"]) == "mapping; list of lists of number from 0; `null`"


def test_the_page_of_all_fields_is_up_to_date():
    page = (Path(__file__).parents[2] / "docs" / "spec.md").read_text(encoding="utf-8")
    assert page == reference_text(), "write it anew with `thaw spec reference`"
    assert "| `search`" not in page
    assert all(f"`{name}` |" in page for name in ("freeze_depth", "layer_decay", "patience", "group_pattern"))


def test_the_page_of_the_space_has_every_field_of_it():
    page = (Path(__file__).parents[2] / "docs" / "space.md").read_text(encoding="utf-8")
    told = {
        name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`(?:\w+\.)*(\w+)`", line)
    }
    assert set(SearchSpec.model_fields) - told == set()


def _cells() -> dict[str, list[str]]:
    """The cells of a row of the page of the space, by each field that it is about."""
    page = (Path(__file__).parents[2] / "docs" / "space.md").read_text(encoding="utf-8").partition("## Beside")[0]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    return {name: cells for cells in rows for name in re.findall(r"`(?:\w+\.)*(\w+)`", cells[0])}


def test_the_page_of_the_space_has_the_defaults():
    told, searched = _cells(), SearchSpec()
    for name in SearchSpec.model_fields:
        default, cell = getattr(searched, name), told[name][1]
        if isinstance(default, Range):
            ends = [float(number) for number in re.findall(r"[\d.]+(?:e-?\d+)?", cell)]
            assert ends == [default.low, default.high], name
            assert ("log" in cell) == default.log, name
        elif isinstance(default, tuple):
            assert cell.lower().split(", ") == [spelt(value) for value in default], name
        elif isinstance(default, (str, float, int)) and not isinstance(default, bool):
            assert re.search(rf"\b{spelt(default)}\b", cell), name


def spelt(value):
    return {None: "none"}.get(value, f"{value:g}" if isinstance(value, float) else str(value))


@pytest.mark.parametrize(
    ("field", "taken", "refused"),
    [
        ("start_size", (0.25, 1.0), (0.2, 1.1)),
        ("backbone_lr_ratio", (1e-6, 30.0), (0.0, -1.0)),
        ("layer_decay", (0.01, 1.0), (0.0, 1.1)),
        ("magnitude", (0, 30), (-1, 31)),
        ("label_smoothing", (0.0, 0.99), (-0.1, 1.0)),
        ("mixup_alpha", (0.0, 100.0), (-0.1, 101.0)),
        ("dropout", (0.0, 0.99), (-0.1, 1.0)),
        ("ema_decay", (0.01, 0.999), (0.0, 1.0)),
        ("repeats", (1, 20), (0, 21)),
        ("image_size_px", (8, 1024), (7, 1025)),
    ],
)
def test_what_the_page_of_the_space_says_may_be_may_be(field, taken, refused):
    bounds = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", _cells()[field][2])]
    for value in taken:
        assert getattr(SearchSpec.model_validate({field: value}), field) == value
    for value in refused:
        with pytest.raises(ValueError, match=field):
            SearchSpec.model_validate({field: value})
    # Bounds that are said are those that hold.
    assert all(any(abs(bound - value) <= 1 for value in (*taken, *refused)) for bound in bounds), bounds


def test_the_schema_states_the_bounds_that_the_spec_checks():
    definitions = spec_schema()["$defs"]
    assert definitions["PositiveRange"]["properties"]["low"]["exclusiveMinimum"] == 0
    assert definitions["MagnitudeRange"]["properties"]["high"]["maximum"] == 30
    assert definitions["SearchSpec"]["additionalProperties"] is False
    assert definitions["DataSpec"]["properties"]["exclude_classes"]["items"] == {"type": ["string", "integer"]}


def test_reading_a_spec_imports_nothing_heavy():
    heavy = ["torch", "torchvision", "ray", "optuna", "mlflow", "numpy", "pandas", "pyarrow"]
    code = (
        "import json, sys; from search_spaces.loading import load_spec, spec_schema; "
        "load_spec('digits'); spec_schema(); "
        f"print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
