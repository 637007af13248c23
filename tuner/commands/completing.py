"""What a shell may complete: specs, sweeps and the fields of ``--set``. Asked at every press of the key: no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_SPEC_ENDINGS = (".yaml", ".yml")


def specs(incomplete: str) -> list[str]:
    """Presets and spec files that begin so; folders on the way to files."""
    from search_spaces.loading import preset_names

    folder = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    prefix = incomplete[: incomplete.rfind("/") + 1]
    files = []
    for path in sorted(folder.expanduser().iterdir()) if folder.expanduser().is_dir() else []:
        if path.is_dir() and not path.name.startswith("."):
            files.append(f"{prefix}{path.name}/")
        elif path.suffix in _SPEC_ENDINGS:
            files.append(f"{prefix}{path.name}")
    return _beginning(incomplete, [*preset_names(), *files])


def specs_or_sources(incomplete: str) -> list[str]:
    """As `specs`, and the kinds of sources of pictures."""
    from trainables.data.sources import SCHEMES

    sources = [name if name == "digits" else f"{name}:" for name in SCHEMES]
    return list(dict.fromkeys([*specs(incomplete), *_beginning(incomplete, sources)]))


def sweeps(incomplete: str) -> list[str]:
    """Sweeps of this home whose names begin so."""
    from tuner.paths import HomePaths

    return _beginning(incomplete, HomePaths.from_env().sweep_names())


def fields(incomplete: str) -> list[str]:
    """Fields of a spec, as ``--set`` takes them."""
    from search_spaces.reference import field_paths

    return _beginning(incomplete, [f"{path}=" for path in field_paths()])


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
