"""What is wrong with a spec, in words: one line per mistake with the field's path, the value, the rule and the remedy.

In: a pydantic `ValidationError`. Out: lines for people. Pure; knows the fields from the models themselves.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from search_spaces.ranges import FORM_TAGS
from trainables.wording import shorten, visible

_NOT_A_MAPPING = frozenset({"model_type", "model_attributes_type", "dict_type"})
_WORDS_BESIDE_NUMBERS = frozenset({"all", "auto", "unlimited"})


def format_errors(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per mistake.

    Args:
        error: What pydantic found.
        model: What the spec was read as; its fields are what misspelt ones are compared with.
    """
    errors = error.errors()
    # What a newer format has and this one lacks is no mistake of the user's.
    of_version = [details for details in errors if details["loc"] == ("version",)]
    return [line for details in of_version or errors for line in _describe(details, model)]


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that was most likely meant, or None."""
    longer = [each for each in known if word and each.startswith(word)]
    if len(longer) == 1:
        return longer[0]
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return matches[0] if matches else None


def field_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted paths of all fields, those of nested parts included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for part in _models_in(field.annotation):
            yield from field_paths(part, f"{prefix}{name}.")


def fields_at(model: type[BaseModel], path: Sequence[str]) -> tuple[type[BaseModel], ...]:
    """The models that can stand at a path; empty when the path is no part of a spec."""
    models: tuple[type[BaseModel], ...] = (model,)
    for name in path:
        found = [part for m in models if name in m.model_fields for part in _models_in(m.model_fields[name].annotation)]
        models = tuple(found)
    return models


def _describe(details: ErrorDetails, model: type[BaseModel]) -> list[str]:
    parts = [part for part in details["loc"] if part not in FORM_TAGS]
    path = _spell(parts)
    if details["type"] == "value_error" and not path:
        return str(details["ctx"]["error"]).splitlines()
    return [f"{path or 'spec'}: {_problem(details, parts, path, model)}"]


def _problem(details: ErrorDetails, parts: Sequence[int | str], path: str, model: type[BaseModel]) -> str:
    kind, value, context = details["type"], shorten(details["input"]), details.get("ctx", {})
    if kind == "extra_forbidden":
        problem = f"there is no such field; {_known_instead(parts, model)}"
    elif kind == "missing":
        problem = f"missing; {_purpose(parts, model)}give it in the spec, or with --set {path}=VALUE"
    elif kind == "literal_error":
        problem = _not_among(details["input"], str(context["expected"]))
    elif kind == "value_error":
        problem = str(context["error"])
    elif kind in _NOT_A_MAPPING:
        problem = f"{value} is not a mapping; {_fields_of(fields_at(model, _names(parts)))}"
    elif kind == "int_parsing_size":
        problem = f"{value} has too many digits; give a smaller number"
    elif kind == "union_tag_invalid":
        problem = f"{value} is a range, and this field has none; give one value, or a list"
    else:
        problem = f"{value} is not allowed: {_rule(details['msg'])}"
    return problem


def _spell(parts: Sequence[int | str]) -> str:
    """``("data", "exclude_classes", 2)`` as ``data.exclude_classes[2]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{visible(part)}" for part in parts).removeprefix(".")


def _names(parts: Sequence[int | str]) -> list[str]:
    return [part for part in parts if isinstance(part, str)]


def _known_instead(parts: Sequence[int | str], model: type[BaseModel]) -> str:
    *parents, wrong = _names(parts)
    here = [name for part in fields_at(model, parents) for name in part.model_fields]
    prefix = ".".join(parents)
    if match := nearest(wrong, here):
        return f"did you mean `{prefix + '.' if prefix else ''}{match}`?"
    elsewhere = [path for path in field_paths(model) if path.rpartition(".")[2] == wrong]
    if not elsewhere:
        leaves = {path.rpartition(".")[2]: path for path in reversed(list(field_paths(model)))}
        match = nearest(wrong, list(leaves))
        elsewhere = [leaves[match]] if match else []
    if elsewhere:
        return f"did you mean `{min(elsewhere, key=lambda path: path.count('.'))}`?"
    return _fields_of(fields_at(model, parents))


def _fields_of(models: Sequence[type[BaseModel]]) -> str:
    return "the fields here are " + ", ".join(dict.fromkeys(name for part in models for name in part.model_fields))


def _purpose(parts: Sequence[int | str], model: type[BaseModel]) -> str:
    *parents, name = _names(parts)
    for part in fields_at(model, parents):
        field = part.model_fields.get(name)
        if field is not None and field.description:
            return f"{field.description[0].lower()}{field.description[1:].rstrip('.')}; "
    return ""


def _not_among(value: object, expected: str) -> str:
    words = [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]
    if len(words) == 1:
        is_beside_numbers = words[0] in _WORDS_BESIDE_NUMBERS
        wanted = f"a whole number or '{words[0]}'" if is_beside_numbers else f"allowed: write {words[0]}"
        return f"{shorten(value)} is not {wanted}"
    match = nearest(str(value), words)
    return f"{shorten(value)} is not one of {', '.join(words)}" + (f"; did you mean `{match}`?" if match else "")


def _rule(message: str) -> str:
    message = message.removeprefix("Input ").removeprefix("Value ")
    return f"it {message}" if message.startswith("should") else message[0].lower() + message[1:]


def _models_in(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The models that an annotation allows, however they are wrapped in unions, tuples and metadata."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    return tuple(model for inner in get_args(annotation) for model in _models_in(inner))
