"""What a field takes, in words: read off its JSON schema, so that the words are those of the check."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]
_KINDS = {
    "integer": "whole number", "number": "number", "string": "text", "object": "mapping", "boolean": "`true`, `false`",
    "null": "`null`",
}  # fmt: skip


def takes(schema: Schema) -> str:
    """Such as ``number above 0; list; range``; what is meant as it stands is in backticks."""
    if forms := schema.get("oneOf") or schema.get("anyOf"):
        return _of_forms(forms)
    if "$ref" in schema:
        return "range" if schema["$ref"].endswith("Range") else "mapping"
    if words := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{word}`" if isinstance(word, str) else f"`{json.dumps(word)}`" for word in words)
    return _of_kind(schema)


def _of_kind(schema: Schema) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        return _of_forms([{**schema, "type": each} for each in kind])
    if kind == "array":
        return f"list of {takes(schema['items']).replace('; ', ' or ').replace('list of', 'lists of')}"
    return f"{_KINDS[kind]}{_bounds(schema)}" if kind in _KINDS else "mapping"


def _of_forms(forms: Sequence[Schema]) -> str:
    """What any of some forms takes; a list of what is taken alone is a list, without saying again of what."""
    said: list[str] = []
    alone = {takes(form) for form in forms}
    for form in forms:
        is_list = form.get("type") == "array" and takes(form.get("items", {})) in alone
        text = "list" if is_list else takes(form)
        if text not in said:
            said.append(text)
    return "; ".join(said)


def _bounds(schema: Schema) -> str:
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if least is not None and most is not None:
        return f" from {_number(least)} to {_number(most)}"
    parts = [
        f"{word} {_number(value)}"
        for word, value in (("from", least), ("above", above), ("to", most), ("below", below))
        if value is not None
    ]
    return " " + ", ".join(parts) if parts else ""


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
