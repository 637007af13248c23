"""Spec files: read, overridden, checked, written.

In: a path or a preset's name, and ``a.b=VALUE`` overrides. Out: a `SweepSpec` or `PretrainSpec`, or an `InputError`
with a line for every mistake. YAML is read as YAML 1.2 has it: ``1e-3`` is a number, ``no`` and ``on`` are words,
``007`` keeps its zeros; and a field that is given twice is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from search_spaces.mistakes import fields_at, format_errors, nearest
from search_spaces.ranges import KEPT
from search_spaces.spec import PretrainSpec, SweepSpec
from trainables.errors import InputError
from trainables.files.typed_path import expand
from trainables.wording import shorten, shorten_place, visible

_PRESETS = "search_spaces.presets"
_SWEEP_ONLY = frozenset({"model", "search", "budget", "early_stopping", "metric", "baselines"})
# PyYAML lets these out of values whose tag or length it cannot make anything of, and of parts in thousands of others.
_UNREADABLE = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
_FLOAT_TAG = "tag:yaml.org,2002:float"
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CORE_SCHEMA: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), "tTfF"),
    ("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)\Z"), "~nN"),
    ("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)\Z"), "-+0123456789"),
    (_FLOAT_TAG, re.compile(rf"(?![-+]?0[0-9])({_FLOAT.pattern})\Z"), "-+0123456789."),
)

Spec = TypeVar("Spec", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, and no field twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's way to replace the 1.1 rules

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML's, but a repeated key is an error instead of a silent override."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"`{key.value}` is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what a reader of YAML 1.1 or 1.2 would take for something else than text."""


for _tag, _pattern, _first in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(_tag, _pattern, [*_first, ""] if _tag.endswith("null") else list(_first))
_Dumper.add_implicit_resolver(_FLOAT_TAG, _CORE_SCHEMA[-1][1], list(_CORE_SCHEMA[-1][2]))


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Reads a sweep's spec.

    Args:
        path: A YAML file, or the name of a preset.
        overrides: ``field.path=VALUE`` each, the value written as in YAML; later ones win.

    Raises:
        InputError: No such file or preset, no YAML, or fields that are wrong: one line per mistake.
    """
    return parse_spec(_read(path), SweepSpec, str(path), overrides)


def load_kept_spec(path: Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Reads the spec that a sweep keeps: as `load_spec`, and what an older Thaw had no field for is as it was then.

    Raises:
        InputError: As `load_spec`.
    """
    raw = _read(path)
    if isinstance(raw.get("data"), dict):
        raw["data"].setdefault("fit", "crop")  # kept specs have every field: one without it began without any other fit
    return parse_spec(raw, SweepSpec, str(path), overrides, is_kept=True)


def read_spec(text: str, overrides: Sequence[str], place: str) -> SweepSpec:
    """`load_spec` of text rather than of a file; ``place`` says where it came from.

    Raises:
        InputError: As `load_spec`.
    """
    return parse_spec(_mapping(text, place), SweepSpec, place, overrides)


def load_pretrain_spec(path: str | Path, overrides: Sequence[str] = ()) -> PretrainSpec:
    """Reads what `thaw pretrain` takes: a pretraining's spec, or a sweep's whose weights are pretrained.

    Raises:
        InputError: As `load_spec`; or the sweep takes its weights from elsewhere.
    """
    raw = _read(path)
    if not _SWEEP_ONLY & raw.keys():
        return parse_spec(raw, PretrainSpec, str(path), overrides)
    specs = load_spec(path, overrides).pretrain_specs()
    if not specs:
        raise InputError(f"{path}: model.weights: nothing is pretrained here; give it {{pretrain: ...}}")
    if len({each.name for each in specs.values()}) > 1:
        names = ", ".join(specs)
        raise InputError(f"{path}: model.backbones: {names} are pretrained here; give one of them a spec of its own")
    return next(iter(specs.values()))


def overridden(overrides: Sequence[str], field: str) -> Any:
    """What overrides make of a field of a sweep's spec, before anything is checked; None where they leave it alone.

    Raises:
        InputError: One is not of the form ``field.path=VALUE``.
    """
    raw: dict[str, Any] = {}
    for override in overrides:
        _override(raw, override, SweepSpec)
    value: Any = raw
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def parse_spec(
    raw: Any, model: type[Spec], place: str, overrides: Sequence[str] = (), *, is_kept: bool = False
) -> Spec:
    """Checks a mapping.

    Args:
        raw: What a spec file holds.
        model: `SweepSpec`, `PretrainSpec`, or a part of one.
        place: Where it came from, for messages.
        overrides: ``field.path=VALUE`` each, within ``raw``.
        is_kept: A sweep began with it: it is not refused what it was allowed then.

    Raises:
        InputError: One line per mistake.
    """
    for override in overrides:
        _override(raw, override, model)
    try:
        return model.model_validate(raw, context={KEPT: is_kept})
    except ValidationError as error:
        raise InputError("\n".join(f"{place}: {line}" for line in format_errors(error, model))) from error


def spec_schema() -> dict[str, Any]:
    """The JSON schema of a sweep's spec, by which editors complete and check one."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **SweepSpec.model_json_schema()}


def spec_schema_text() -> str:
    """The schema as the file beside the presets has it."""
    return json.dumps(spec_schema(), indent=2) + "\n"


def dump_spec(spec: BaseModel) -> str:
    """The spec as YAML with every field filled in; `load_spec` reads an equal spec from it."""
    settings = spec.model_dump(mode="json")
    # PyYAML leaves some line breaks of Unicode bare, which then read as white space: escape all where there is one.
    is_plain = json.dumps(settings, ensure_ascii=False).isprintable()
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=is_plain, width=120)


def preset_names() -> tuple[str, ...]:
    """The presets by name."""
    files = resources.files(_PRESETS).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def _read(path: str | Path) -> dict[str, Any]:
    return _mapping(_text(path), path)


def _mapping(text: str, path: str | Path) -> dict[str, Any]:
    try:
        raw = yaml.load(text, Loader=_Loader)
    except _UNREADABLE as error:
        raise InputError(f"{path}: {_yaml_problem(error)}") from error
    if not isinstance(raw, dict):
        what = "empty" if raw is None else f"{shorten(raw)}, not a mapping"
        raise InputError(f"{path}: the file is {what}; a spec has fields such as name, data and model")
    return raw


def _text(path: str | Path) -> str:
    name = str(path)
    try:
        file = expand(path, "spec")
        if file.is_dir() and name not in preset_names():
            raise InputError(f"{path}: this is a folder, not a spec; for pictures, write folder:{path}")
        if not file.is_file() and name in preset_names():
            return resources.files(_PRESETS).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        match = nearest(name, preset_names())
        hint = f"did you mean the preset `{match}`?" if match else f"presets are {', '.join(preset_names())}"
        raise InputError(f"{path}: there is no such file; {hint}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text; a spec is a YAML file") from error
    except OSError as error:
        raise InputError(f"{shorten_place(name)}: cannot be read: {error.strerror}") from error


def _yaml_problem(error: BaseException) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or next(iter(str(error).splitlines()), type(error).__name__)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}not valid YAML: {problem}"


def _override(raw: dict[str, Any], override: str, model: type[BaseModel]) -> None:
    """Writes one ``a.b=VALUE`` into the mapping."""
    path, is_given, text = override.partition("=")
    names = [name.strip() for name in path.split(".")]
    if not is_given or not all(names):
        raise InputError(f"--set {visible(override)}: not of the form field.path=VALUE, such as search.num_trials=40")
    try:
        value = yaml.load(text, Loader=_Loader)
    except _UNREADABLE as error:
        raise InputError(f"--set {override}: the value is {_yaml_problem(error)}") from error
    here = raw
    for depth, name in enumerate(names[:-1]):
        inner = here.get(name, _default(model, names[: depth + 1]))
        if not isinstance(inner, dict):
            inner = {} if inner is None else inner
        if not isinstance(inner, dict):
            place = ".".join(names[: depth + 1])
            raise InputError(f"--set {override}: {place} is {shorten(inner)} and has no fields; set {place} as a whole")
        here[name] = inner = dict(inner)
        here = inner
    here[names[-1]] = value


def _default(model: type[BaseModel], path: list[str]) -> Any:
    """What a part is when the spec leaves it out, where that is a mapping: one end of a default range can be moved."""
    for parent in fields_at(model, path[:-1]):
        field = parent.model_fields.get(path[-1])
        if field is not None and isinstance(field.default, BaseModel):
            return field.default.model_dump(mode="json", exclude_defaults=True)
    return None
