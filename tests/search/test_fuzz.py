"""Every spec runs, or is refused with the field's path and the remedy: see `fuzz`, and `make fuzz` for a long run."""

from __future__ import annotations

import warnings
from contextlib import suppress

import pytest
import torch
from fuzz import PLACE, Sources, Trying, bases, check_refusal, offline, run_examples, spec_values, tiny_pictures
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from spec_values import odd_texts, scalars

from search_spaces.loading import load_spec, read_spec
from search_spaces.spec import SweepSpec
from trainables.config import TrialConfig
from trainables.errors import InputError
from trainables.ranks import Ranks
from trainables.training.loop import DivergedError, TrialRun
from trainables.training.workbench import Workbench

FEW = 250
REPEATABLE = settings(
    max_examples=FEW, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return tiny_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def trying(tmp_path_factory: pytest.TempPathFactory) -> Trying:
    return Trying(tmp_path_factory.mktemp("home"))


@pytest.mark.fuzz
def test_any_spec_runs_or_is_refused_in_clear_lines(trying: Trying, sources: Sources) -> None:
    run_examples(trying, FEW, sources, most_changes=4)
    print(trying)
    assert trying.outcomes.total() >= FEW
    # Else it is the generator that says little: of each fate there must be a good part.
    assert min(trying.outcomes[fate] for fate in ("ran", "refused as read")) > FEW / 10


def test_every_field_of_a_spec_is_drawn(sources: Sources) -> None:
    values = spec_values(sources)
    top = {path[0] for path in values.paths}
    assert top == set(SweepSpec.model_fields)
    for section in ("data", "search", "budget", "model", "tracking", "compute", "cache", "early_stopping"):
        part = SweepSpec.model_fields[section].annotation
        assert part is not None
        assert {path[1] for path in values.paths if path[0] == section and len(path) == 2} == set(part.model_fields)


@REPEATABLE
@given(path=odd_texts | st.sampled_from(["search.lr", "data.source", "budget", "search.lr.low"]), value=scalars)
def test_any_override_is_taken_or_refused_in_clear_lines(path: str, value: object) -> None:
    text = "name: a\ndata: {source: digits}\nmodel: {backbone: lenet}\n"
    for override in (f"{path}={value}", f"{path}", f"{path}: {value}"):
        with suppress(InputError):
            read_spec(text, [override], PLACE)


@REPEATABLE
@given(text=st.text(st.characters(codec="utf-8"), max_size=60) | st.binary(max_size=30))
def test_any_text_in_a_file_is_a_spec_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str | bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with suppress(InputError):
        load_spec(path)


@pytest.mark.parametrize(
    "text",
    [
        "name: !!bool maybe", "name: !!int x", "name: !!timestamp x", "name: !!timestamp 2001-99-99",
        "name: !!binary é", "name: !!python/object:os.system x", f"seed: {'1' * 5000}", "[" * 3000, "1: 2",
        "null: 1", "data: {1: 2}", "? [a]\n: b", "&a [*a]", "a: &a {b: *a}", "<<: 1", "- 1", "name: a\nname: b",
        "\x07", "--- a\n--- b", "%YAML 9.9",
    ],
)  # fmt: skip
def test_yaml_of_every_kind_is_refused_in_clear_lines(text: str) -> None:
    with pytest.raises(InputError) as refused:
        read_spec(text, [], PLACE)
    assert all(line.startswith(f"{PLACE}: ") and line.isprintable() for line in str(refused.value).splitlines())


def test_a_newer_format_is_one_line_whatever_else_is_in_it() -> None:
    text = "version: 2\nname: a\npictures: {source: digits}\nmodel: {backbone: lenet, heads: 3}\n"
    with pytest.raises(InputError) as refused:
        read_spec(text, [], PLACE)
    check_refusal(refused.value)
    assert str(refused.value).splitlines() == [
        "spec.yaml: version: 2 is newer than 1, the newest this Thaw reads; install a newer Thaw"
    ]


@pytest.mark.fuzz
def test_what_is_accepted_trains(trying: Trying, sources: Sources) -> None:
    """One epoch of the first trial of specs that were accepted; a step that diverges is an outcome, not a fault."""
    trained: list[TrialConfig] = []

    @settings(
        max_examples=40,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(spec_values(sources).specs(bases(sources), most_changes=3))
    def accepted_specs_train(raw: object) -> None:
        for config in trying.try_spec(raw)[:1]:
            if config.backbone.name != "lenet" or config.data.image_size_px > 64:
                continue
            run = TrialRun(config.model_copy(update={"epochs": 1}), Workbench(), Ranks(torch.device("cpu")))
            try:
                run.run_epoch()
            except DivergedError:
                pass
            finally:
                run.close()
            trained.append(config)

    with offline(), warnings.catch_warnings():
        warnings.simplefilter("error")
        accepted_specs_train()
    assert len(trained) >= 10
