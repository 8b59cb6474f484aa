"""Tables as ``kubectl get`` prints them: JSONPath, cells and ages."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from tensorfusion.api.resource import JsonObject, PrinterColumn, Resource
from tensorfusion.clock import parse_timestamp
from tensorfusion.errors import ConfigError

_STEP: Final = re.compile(
    r"""\.(?P<field>[A-Za-z_][\w-]*)
      | \[["'](?P<quoted>[^"']*)["']\]
      | \[(?P<index>-?\d+)\]
      | (?P<all>\[\*\])
      | \[\?\(@\.(?P<key>[\w.-]+)\s*==\s*["'](?P<value>[^"']*)["']\)\]""",
    re.VERBOSE,
)
_Step = Callable[[list[Any]], list[Any]]

_NAME_COLUMN: Final = PrinterColumn(
    "Name", ".metadata.name", "string", 0, "Unique within namespace and kind."
)


def _field_step(name: str) -> _Step:
    return lambda values: [item[name] for item in values if isinstance(item, dict) and name in item]


def _index_step(index: int) -> _Step:
    return lambda values: [
        item[index] for item in values if isinstance(item, list) and -len(item) <= index < len(item)
    ]


def _all_step(values: list[Any]) -> list[Any]:
    result: list[Any] = []
    for item in values:
        if isinstance(item, list):
            result.extend(item)
        elif isinstance(item, dict):
            result.extend(item.values())
    return result


def _filter_step(key: str, value: str) -> _Step:
    return lambda values: [
        element
        for item in values
        if isinstance(item, list)
        for element in item
        if isinstance(element, dict) and str(element.get(key)) == value
    ]


def _step_of(match: re.Match[str]) -> _Step:
    if match["field"] is not None:
        return _field_step(match["field"])
    if match["quoted"] is not None:
        return _field_step(match["quoted"])
    if match["index"] is not None:
        return _index_step(int(match["index"]))
    if match["all"] is not None:
        return _all_step
    return _filter_step(match["key"], match["value"])


@lru_cache(maxsize=1024)
def compile_path(path: str) -> Callable[[Any], list[Any]]:
    """Compile the JSONPath subset of CRD printer columns.

    Fields, quoted fields (``.used["requests.tflops"]``), list indices, ``[*]`` and equality
    filters (``[?(@.type=="Ready")]``) are understood.

    Returns:
        A function from an object to all values the path selects.

    Raises:
        ConfigError: The path is outside that subset.
    """
    body = path.strip().removeprefix("{").removesuffix("}")
    steps: list[_Step] = []
    position = 0
    while position < len(body):
        match = _STEP.match(body, position)
        if match is None:
            raise ConfigError(
                f"JSONPath {path!r} cannot be read at {body[position:]!r}: expected .field, "
                '["field"], [index], [*] or [?(@.key=="value")]'
            )
        steps.append(_step_of(match))
        position = match.end()

    def select(obj: Any) -> list[Any]:
        values = [obj]
        for step in steps:
            values = step(values)
        return values

    return select


def age_text(seconds: float) -> str:
    """Print a time span as kubectl does, with one or two units: ``45s``, ``5m3s``, ``3d4h``."""
    whole = int(seconds)
    if whole < -1:
        return "<invalid>"
    whole = max(0, whole)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    for limit, text in (
        (60 * 2, f"{whole}s"),
        (60 * 10, _two(minutes, "m", whole % 60, "s")),
        (3600 * 3, f"{minutes}m"),
        (3600 * 8, _two(hours, "h", minutes % 60, "m")),
        (3600 * 48, f"{hours}h"),
        (86400 * 8, _two(days, "d", hours % 24, "h")),
        (86400 * 365 * 2, f"{days}d"),
        (86400 * 365 * 8, _two(days // 365, "y", days % 365, "d")),
    ):
        if whole < limit:
            return text
    return f"{days // 365}y"


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large}{large_unit}" + (f"{small}{small_unit}" if small else "")


def table_columns(resource: Resource) -> tuple[PrinterColumn, ...]:
    """The columns of a kind, the name first."""
    columns = resource.columns or (
        PrinterColumn("Age", ".metadata.creationTimestamp", "date", 0, "Time since creation."),
    )
    return (_NAME_COLUMN, *columns)


def table_row(resource: Resource, obj: JsonObject, now: float) -> list[Any]:
    """The cells of an object, in the order of `table_columns`.

    Args:
        resource: The kind.
        obj: The object.
        now: Seconds since the epoch, for ages.

    Returns:
        JSON values; None where there is nothing to show, as the real server sends it.
    """
    return [_cell(column, obj, now) for column in table_columns(resource)]


def _cell(column: PrinterColumn, obj: JsonObject, now: float) -> Any:
    if column.cell is not None:
        value = column.cell(obj)
    else:
        values = compile_path(column.path)(obj)
        value = values[0] if len(values) == 1 else ",".join(map(str, values)) or None
    if column.type == "date":
        return _age(value, now)
    if value is None or value == {} or value == []:
        return None
    if column.type == "string" and not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return value


def _age(value: Any, now: float) -> str:
    if not value:
        return "<unknown>"
    try:
        return age_text(now - parse_timestamp(str(value)))
    except ValueError:
        return "<invalid>"


def cell_text(value: Any) -> str:
    """A cell as text for terminals: ``<none>`` where there is nothing."""
    if value is None or value == "":
        return "<none>"
    return str(value).lower() if isinstance(value, bool) else str(value)
