"""What a command is given where it asks for a spec: a file, a preset, or pictures, to which a spec is fitted."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from search_spaces.loading import load_spec, overridden, preset_names, read_spec
from search_spaces.spec import SweepSpec
from trainables.data.sources import SCHEMES


def load_or_fit(spec: str, overrides: Sequence[str]) -> SweepSpec:
    """A spec file, a preset, or, for a source of pictures, a spec that is fitted to them and shown.

    Raises:
        InputError: There is no such thing, or the spec will not do.
    """
    scheme, colon, _ = spec.partition(":")
    if spec in preset_names() or not colon or scheme not in SCHEMES:
        return load_spec(spec, overrides)
    from search_spaces.fitting import spec_text
    from tuner.pictures.facts import facts_of

    has_many = overridden(overrides, "data.labels") == "multi"
    separator = str(overridden(overrides, "data.label_separator") or "|") if has_many else None
    most, excluded = overridden(overrides, "data.max_per_class"), overridden(overrides, "data.exclude_classes")
    facts = facts_of(
        spec,
        separator,
        max_per_class=most if isinstance(most, int) and most > 0 else None,
        excluded=[str(name) for name in excluded] if isinstance(excluded, list) else (),
        pools_sides=overridden(overrides, "data.split.source") == "ignore",
    )
    text = spec_text(facts)
    typer.echo(f"A spec for these pictures (`thaw spec new {spec}` writes it to change it):\n\n{text}", err=True)
    return read_spec(text, overrides, spec)
