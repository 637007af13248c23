"""Specs of every kind against the program: each runs, or is refused in lines that name the field and the remedy.

``python tests/fuzz.py --specs 20000`` tries what people leave in a field, in each of them, then so many specs at
random, says now and then how far it is, and at the end what became of them. `make fuzz` does so after a few hundred
that are the same each time (`search/test_fuzz.py`); it builds every kind of network, which takes more time and memory
than `make test` has. "Runs" is all that comes before training: pictures packed, networks cut, the space, the searcher
with its first proposals, their prices, and the trials as lanes get them.
"""

from __future__ import annotations

import argparse
import copy
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from spec_values import ODD_NUMBERS, ODD_TEXTS, SpecValues

from search_spaces.loading import dump_spec, read_spec, spec_schema
from search_spaces.model_spec import BackboneChoice, PretrainRecipe
from search_spaces.search_spec import SearchSpec
from search_spaces.spec import SweepSpec
from trainables.config import TrialConfig
from trainables.errors import InputError
from tuner.cluster.ray_cluster import choose_shape
from tuner.networks.material import materials_of
from tuner.networks.network import base_trials
from tuner.networks.planning import plan_sweep
from tuner.networks.preparing import check_quickly, feature_settings
from tuner.networks.pricing import Pricing
from tuner.paths import HomePaths
from tuner.progress import Progress
from tuner.search.scheduling import Surroundings, build_scheduler
from tuner.search.search_phase import SearchPhase
from tuner.search.searching import StudySearcher

PLACE = "spec.yaml"
MACHINE = {"CPU": 16.0, "GPU": 0.0}
_MOST_PROPOSALS = 6
_MOST_LETTERS = 2000
_REPORT_EVERY = 500
_REMEDY = re.compile(
    r"\b(give|set|use|lower|raise|leave|make|write|take|add|swap|list|install|did you mean|should|one of|round|try"
    r"|fetch|choose|the fields here are|there are|call|put|found|remove|save|a whole number)\b",
    re.IGNORECASE,
)


class Sources(NamedTuple):
    """The same pictures three ways.

    Attributes:
        folder: Of class folders.
        listed: Named in a list, with their groups.
        several: Named in a list, each with several labels, with one, or with none.
    """

    folder: str
    listed: str
    several: str


def tiny_pictures(root: Path) -> Sources:
    """Sixty pictures of three classes."""
    listed, several = ["file,label,group"], ["file,label"]
    for number in range(60):
        kind = "abc"[number % 3]
        path = root / "pictures" / kind / f"part{number // 4}_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (4 * number, 255 - 4 * number, number % 3 * 100)).save(path)
        listed.append(f"{path},{kind},{number // 2}")
        several.append(
            f"{path},{'|'.join(name for name, of in zip('abc', (2, 3, 7), strict=True) if number % of == 0)}"
        )
    for name, lines in (("listed", listed), ("several", several)):
        (root / f"{name}.csv").write_text("\n".join(lines))
    return Sources(f"folder:{root / 'pictures'}", f"csv:{root / 'listed.csv'}", f"csv:{root / 'several.csv'}")


def spec_values(sources: Sources) -> SpecValues:
    """Strategies for specs on some sources."""
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    splits = st.sampled_from(
        [shares, {**shares, "seed": 7}, {**shares, "source": "ignore"}, {"train": 0.7, "val": 0.3}]
    )
    names = st.sampled_from(["lenet", "lenet", "lenet", "squeezenet1_1"])
    weights = st.sampled_from(["none", "none", "none", "default", "none.pth", "models:/none"])
    choices = st.fixed_dictionaries({"backbone": names, "weights": weights}, optional={"image_size_px": st.just(32)})
    return SpecValues(
        spec_schema(),
        usual={
            ("version",): st.just(1) | st.integers(-1, 3),
            ("name",): st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"),
            ("data",): st.sampled_from(sources[:2]).map(lambda source: {"source": source, "image_size_px": 32}),
            ("data", "source"): st.sampled_from(["digits", *sources]),
            ("data", "image_size_px"): st.sampled_from([8, 16, 28, 32, 64, 1024]),
            ("data", "exclude_classes"): st.lists(st.sampled_from("abcd"), max_size=3),
            ("data", "group_pattern"): st.sampled_from([r"part(\d+)", r"_\d+", "nowhere", "", r"^(.)"]),
            ("data", "split"): splits,
            ("model",): st.just({"backbone": "lenet", "weights": "none"}),
            ("model", "backbone"): names,
            ("model", "weights"): weights,
            ("model", "backbones"): st.just("auto") | st.lists(names | choices, min_size=1, max_size=2),
        },
    )


def bases(sources: Sources) -> st.SearchStrategy[dict[str, Any]]:
    """Specs that run, on which changes are made."""
    data = {"source": sources.folder, "image_size_px": 32, "split": {"train": 0.6, "val": 0.2, "test": 0.2}}
    lenet = {"backbone": "lenet", "weights": "none"}
    two = {"backbones": [lenet, {"backbone": "squeezenet1_1", "weights": "none", "image_size_px": 32}]}
    recipe = {"name": "first", "data": data, "epochs": 1}
    return st.sampled_from(
        [
            {"version": 1, "name": "fuzz", "data": data, "model": lenet},
            {"name": "fuzz", "data": data, "model": lenet, "search": {"sampler": "random", "num_trials": 5}},
            {"name": "fuzz", "data": data, "model": two},
            {"name": "fuzz", "data": data, "model": {"backbone": "lenet", "weights": {"pretrain": recipe}}},
            {"name": "fuzz", "data": {**data, "source": sources.listed}, "model": lenet},
            {"name": "fuzz", "data": {**data, "source": sources.several, "labels": "multi"}, "model": lenet},
        ]
    )


def odd_specs(sources: Sources) -> Iterator[dict[str, Any]]:
    """Each field in turn with each of what people leave in one, also of networks and recipes; and ranges of every two
    numbers in each field that is searched.
    """
    data, lenet = {"source": sources.folder, "image_size_px": 32}, {"backbone": "lenet", "weights": "none"}
    spec = {"name": "odd", "data": data, "model": lenet}
    two = {"backbones": [lenet, {"backbone": "squeezenet1_1", "weights": "none"}]}
    recipe = {"weights": {"pretrain": {"name": "first", "data": data, "epochs": 1}}}
    bases: list[tuple[dict[str, Any], tuple[Any, ...]]] = [(spec, path) for path in spec_values(sources).paths]
    bases += [({**spec, "model": two}, ("model", "backbones", 0, name)) for name in BackboneChoice.model_fields]
    bases += [
        ({**spec, "model": {**lenet, **recipe}}, ("model", "weights", "pretrain", name))
        for name in PretrainRecipe.model_fields
    ]
    for base, (*parents, last) in bases:
        for value in (*ODD_TEXTS, *ODD_NUMBERS, None, True, [], {}, ["x"], {"low": 1}):
            raw = copy.deepcopy(base)
            place: Any = raw
            for parent in parents:
                place = place.setdefault(parent, {}) if isinstance(place, dict) else place[parent]
            place[last] = value
            yield raw
    numbers = (0, 1, 2, 30, 1e-300, 1e-5, 0.5, 1e300, 2**31, 10**30, -1, float("inf"))
    for name, low, high, log in product(SearchSpec.model_fields, numbers, numbers, (False, True)):
        yield {**spec, "search": {name: {"low": low, "high": high, "log": log}}}


class Trying:
    """Tries specs one by one and counts what became of them.

    Args:
        home: Where the program may write.
    """

    def __init__(self, home: Path) -> None:
        self.home = HomePaths.at(home)
        self.outcomes: Counter[str] = Counter()

    def tell(self, raw: Any) -> None:
        """Tries a spec; says now and then what became of those so far."""
        self.try_spec(raw)
        if self.outcomes.total() % _REPORT_EVERY == 0:
            print(f"{time.strftime('%H:%M:%S')} {self}", flush=True)

    def try_spec(self, raw: Any, overrides: tuple[str, ...] = ()) -> list[TrialConfig]:
        """A spec's first trials; none where it is refused, which must be said well.

        Raises:
            AssertionError: A refusal does not name a field or a remedy, or a spec changes on its way through a file.
        """
        try:
            spec = read_spec(yaml.safe_dump(raw, allow_unicode=True), overrides, PLACE)
        except InputError as error:
            check_refusal(error)
            self.outcomes["refused as read"] += 1
            return []
        assert read_spec(dump_spec(spec), (), PLACE) == spec
        try:
            trials = first_trials(spec, self.home)
        except InputError as error:
            check_refusal(error)
            self.outcomes["refused before training"] += 1
            return []
        assert trials or not is_ours(spec)
        self.outcomes["ran" if trials else "read, of pictures elsewhere"] += 1
        return trials

    def __str__(self) -> str:
        counts = ", ".join(f"{self.outcomes[name]} {name}" for name in sorted(self.outcomes))
        return f"{self.outcomes.total()} specs: {counts}"


def check_refusal(error: InputError) -> None:
    """Fails unless every line names a place in the spec and what to do, in letters that a terminal shows."""
    lines = str(error).splitlines()
    assert lines, "a refusal without a word"
    for line in lines:
        assert line.isprintable(), line
        assert len(line) < _MOST_LETTERS, line
        words = line.removeprefix(f"{PLACE}: ")
        field = re.match(r"data source |[^:\s]+(?=[:.\[, ])", words)
        assert field, line
        is_known = re.split(r"[.\[:, ]", field[0])[0] in {*SweepSpec.model_fields, "data", "spec"}
        is_known = is_known or re.match(r"csv:[^:]*, line \d+: ", words) is not None  # of a list the line says where
        assert is_known or "no such field" in line or "YAML" in line or line.startswith(PLACE), line
        assert _REMEDY.search(words), line


def first_trials(spec: SweepSpec, home: HomePaths) -> list[TrialConfig]:
    """All of a start but Ray and training; the first trials that would run.

    Raises:
        InputError: The sweep would be refused.
    """
    check_quickly(spec, home)
    if not is_ours(spec):
        return []
    spec, data, networks, space = plan_sweep(spec, home, Progress(quiet=True))
    materials = materials_of(spec, networks, data)
    _, num_lanes = choose_shape(spec.budget, spec.budget.concurrency, [MACHINE])
    feature_settings(spec, home)
    pricing = Pricing(spec, space, materials, "cpu")
    bases = base_trials(spec, data.config, networks, {})
    phase = SearchPhase(
        spec, space, pricing, bases, home, record=_ignore, progress=Progress(quiet=True), has_epochs=lambda: False
    )  # fmt: skip
    build_scheduler(spec, space, [], Surroundings(num_lanes=num_lanes))
    phase._patience([])
    pool: Any = SimpleNamespace(name="lanes", namespace="thaw", num_lanes=num_lanes)
    searcher = StudySearcher(
        space,
        metric=spec.metric,
        mode=spec.mode,
        num_trials=spec.most_trials,
        max_concurrent=_MOST_PROPOSALS,
        seed=spec.seed,
        make_config=phase._config_maker(pool, []),
        first_points=None,
        pricing=pricing,
        cooling=phase._cooling(pool) if spec.search.cost_aware else None,
        sampler=spec.search.sampler,
    )
    proposals = [searcher.suggest(str(number)) for number in range(_MOST_PROPOSALS)]
    return [TrialConfig.model_validate(each["job"]["config"]) for each in proposals if isinstance(each, dict)]


def is_ours(spec: SweepSpec) -> bool:
    """Whether all pictures are those of the fuzz: a spec may well name the whole disk."""
    sources = [spec.data.source, *(recipe.data.source for recipe in spec.pretrain_specs().values())]
    temporary = tuple(f"{kind}:{tempfile.gettempdir()}/" for kind in ("folder", "csv"))
    return all(source == "digits" or source.startswith(temporary) for source in sources)


def _ignore(*_: object, **__: object) -> None:
    """Takes what a start tells of itself."""


@contextmanager
def offline() -> Iterator[None]:
    """No weights are downloaded, which is then said as it would be; no network's latency is measured."""
    with (
        mock.patch("torch.hub.load_state_dict_from_url", side_effect=OSError("no network here")),
        mock.patch("trainables.training.latency._measure", return_value=20.0),
    ):
        yield


def run_examples(
    trying: Trying, num_specs: int, sources: Sources, *, most_changes: int, seed: int | None = None
) -> None:
    """Tries so many specs, by default the same ones each time."""

    @settings(
        max_examples=num_specs,
        derandomize=seed is None,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],  # to explain takes longer than to find
    )
    @given(spec_values(sources).specs(bases(sources), most_changes=most_changes))
    def any_spec_runs_or_is_refused(raw: Any) -> None:
        trying.tell(raw)

    run: Callable[[], None] = any_spec_runs_or_is_refused
    if seed is not None:
        from hypothesis import seed as seeded

        run = seeded(seed)(any_spec_runs_or_is_refused)
    with offline():
        run()


def _main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--specs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trying = Trying(Path(folder) / "home")
        print(f"seed {chosen.seed}")
        sources = tiny_pictures(Path(folder))
        with offline():
            for raw in odd_specs(sources):
                trying.tell(raw)
        print(f"what people leave in a field: {trying}")
        trying.outcomes.clear()
        run_examples(trying, chosen.specs, sources, most_changes=6, seed=chosen.seed)
        print(trying)


if __name__ == "__main__":
    _main()
