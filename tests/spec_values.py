"""Specs of every kind, right and wrong, drawn from the JSON schema: a field that is new there is in here by itself.

In: the schema of `SweepSpec`. Out: hypothesis strategies. A spec is one that runs, with a few of its fields set to
what the schema allows, to what it just does not, or to anything at all, fields of no meaning added and others removed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Final

from hypothesis import strategies as st

Schema = Mapping[str, Any]
Path = tuple[str, ...]
Json = Any

_FAR: Final = 10**6
ODD_TEXTS: Final = (
    "", " ", "\n", "a\nb", "\x00", "\x1b[31m", "null", "~", "auto", "all", "none", "default", "unlimited", "nan",
    "1e-3", "Größe", "部品", "\u202e", "😀" * 40, "x" * 5000, "../..", "/", "a/b", "folder:", "folder:/no/such",
    "x" * 300, "folder:" + "x" * 300, "csv:a\x00b.csv", "~nobody-here/a.pth",
    "csv:none.csv", "digits", "digits:x", "lenet", "resnet81", "sqlite:///x", "http://", "models:/", "a.pth", "(", "[",
    "(?P<a>b)",
)  # fmt: skip
"""What people leave in a field, and what breaks programs; nothing here that a network would be asked for."""
ODD_NUMBERS: Final = (
    0, 1, -1, 2, 1e-300, 1e300, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip

odd_texts = st.sampled_from(ODD_TEXTS) | st.text(st.characters(codec="utf-8"), max_size=30)
scalars = st.none() | st.booleans() | st.sampled_from(ODD_NUMBERS) | odd_texts
anything: st.SearchStrategy[Json] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts | st.just("low"), inner, max_size=3),
    max_leaves=6,
)


class SpecValues:
    """Strategies for the specs of a schema.

    Args:
        schema: A JSON schema whose top is an object.
        usual: Values by path that make a field worth something: those that the schema cannot tell from nonsense.
    """

    def __init__(self, schema: Schema, usual: Mapping[Path, st.SearchStrategy[Json]]) -> None:
        self._schema, self._usual = schema, usual
        self.paths = tuple(self._paths(schema, ()))

    def specs(self, bases: st.SearchStrategy[dict[str, Json]], *, most_changes: int) -> st.SearchStrategy[Json]:
        """Specs a few changes away from one of some that run."""

        @st.composite
        def spec(draw: st.DrawFn) -> Json:
            raw = copy.deepcopy(draw(bases))
            for _ in range(draw(st.integers(0, most_changes))):
                draw(self._change(raw))
            return raw

        return spec()

    def allowed(self, path: Path) -> st.SearchStrategy[Json]:
        """Values of a field that its schema allows."""
        usual = self._usual.get(path)
        return self._values(self._at(path)) if usual is None else usual

    def _change(self, raw: dict[str, Json]) -> st.SearchStrategy[None]:
        @st.composite
        def change(draw: st.DrawFn) -> None:
            path = draw(st.sampled_from(self.paths))
            *parents, name = path
            place: Any = raw
            for parent in parents:
                place = place.setdefault(parent, {})
                if not isinstance(place, dict):
                    return
            kind = draw(st.sampled_from(("allowed",) * 7 + ("anything", "scalar", "beyond", "removed", "unknown")))
            if kind == "removed":
                place.pop(name, None)
            elif kind == "unknown":
                place[draw(st.sampled_from((name + "s", name[:-1], name.upper())) | odd_texts)] = draw(anything)
            elif kind == "beyond":
                place[name] = draw(self._beyond(self._at(path)))
            else:
                values = {"allowed": self.allowed(path), "anything": anything, "scalar": scalars}[kind]
                place[name] = draw(values)

        return change()

    def _paths(self, schema: Schema, path: Path) -> Iterator[Path]:
        for name, field in self._open(schema).get("properties", {}).items():
            yield (*path, name)
            if "$ref" in field:  # a section; what a field may be besides is drawn with the field
                yield from self._paths(field, (*path, name))

    def _at(self, path: Path) -> Schema:
        schema = self._schema
        for name in path:
            schema = self._open(schema)["properties"][name]
        return schema

    def _open(self, schema: Schema) -> Schema:
        reference = schema.get("$ref")
        return self._schema["$defs"][reference.rpartition("/")[2]] if reference else schema

    def _values(self, schema: Schema, depth: int = 0) -> st.SearchStrategy[Json]:
        schema = self._open(schema)
        if "const" in schema:
            return st.just(schema["const"])
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        if forms := schema.get("oneOf") or schema.get("anyOf"):
            return st.one_of([self._values(form, depth) for form in forms])
        types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        return st.one_of([self._of_type(kind, schema, depth) for kind in types])

    def _of_type(self, kind: str, schema: Schema, depth: int) -> st.SearchStrategy[Json]:
        if kind == "array":
            return st.lists(self._values(schema["items"], depth + 1), max_size=3)
        if kind == "object":
            return self._objects(schema, depth)
        if kind == "integer":
            low, high = schema.get("minimum", -3), schema.get("maximum", _FAR)
            low = max(low, schema.get("exclusiveMinimum", low - 1) + 1)
            return st.integers(low, min(high, low + 4)) | st.integers(low, high)
        if kind == "number":
            return _numbers(schema)
        simple = {"null": st.none(), "boolean": st.booleans(), "string": odd_texts}
        return simple[kind]

    def _objects(self, schema: Schema, depth: int) -> st.SearchStrategy[Json]:
        if depth > 2:
            return st.just({})
        fields = {name: self._values(field, depth + 1) for name, field in schema.get("properties", {}).items()}
        needed = {name: fields[name] for name in schema.get("required", ())}
        return st.fixed_dictionaries(
            needed, optional={name: fields[name] for name in list(fields)[:6] if name not in needed}
        )

    def _beyond(self, schema: Schema) -> st.SearchStrategy[Json]:
        """Numbers that lie just outside of what a field allows."""
        schema = self._open(schema)
        found = [
            value
            for form in [schema, *schema.get("oneOf", ()), *schema.get("anyOf", ())]
            for name, value in form.items()
            if name.lower().endswith(("minimum", "maximum"))
        ]
        return st.sampled_from([near for value in found or [0] for near in (value - 1, value, value + 1, -value)])


def _numbers(schema: Schema) -> st.SearchStrategy[float]:
    low = schema.get("minimum", schema.get("exclusiveMinimum", -1e3))
    high = schema.get("maximum", schema.get("exclusiveMaximum", 1e6))
    ends = {"exclude_min": "exclusiveMinimum" in schema, "exclude_max": "exclusiveMaximum" in schema}
    few = st.floats(low, min(high, low + 1), **ends if high <= low + 1 else {"exclude_min": ends["exclude_min"]})
    return few | st.floats(low, high, **ends)
