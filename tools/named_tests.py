"""Lists in TOML whose entries name tests: one file per part of a list, one table per entry."""

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

E = TypeVar("E")


def read_parts(
    folder: Path, table: str, entry: Callable[..., E], lists: Sequence[str]
) -> list[tuple[Path, str, tuple[E, ...]]]:
    """Read path, title and entries of each file, in order of file.

    Args:
        folder: Of the TOML files.
        table: Name of the tables that are entries.
        entry: Makes an entry of a table's fields.
        lists: Fields that are lists; they become tuples.

    Raises:
        ValueError: An entry has a field that there is not, or lacks one; names file and entry.
    """
    found = []
    for path in sorted(folder.glob("*.toml")):
        content = tomllib.loads(path.read_text())
        rows = tuple(_entry(path, table, row, entry, lists) for row in content[table])
        found.append((path, content["title"], rows))
    return found


def _entry(
    path: Path, table: str, row: dict[str, Any], entry: Callable[..., E], lists: Sequence[str]
) -> E:
    tuples = {key: tuple(row[key]) for key in lists if key in row}
    try:
        return entry(**{**row, **tuples})
    except TypeError as error:
        raise ValueError(f"{path.name}, {table} {row.get('id')!r}: {error}") from error


def short(test: str) -> str:
    """Print ``path::name`` of a test without folder and suffix."""
    path, _, name = test.partition("::")
    return f"{Path(path).stem}::{name}"
