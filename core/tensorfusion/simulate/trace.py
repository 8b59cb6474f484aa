"""Clusters and tasks as CSV files, in the columns of the openb trace.

Nodes: ``sn`` (name), ``cpu_milli``, ``memory_mib``, ``gpu`` (cards), ``model``. Tasks: ``name``,
``cpu_milli``, ``memory_mib``, ``num_gpu``, ``gpu_milli`` (thousandths of one card when
``num_gpu`` is 1) and, if there, ``gpu_spec`` (allowed models separated by bars, empty for any).
Where the times matter, tasks also have ``creation_time``, ``scheduled_time`` and
``deletion_time`` in seconds; an empty ``deletion_time`` never comes. Other columns are ignored.
"""

import csv
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from tensorfusion.errors import ConfigError
from tensorfusion.model.demand import MAX_GPU_COUNT, Amount, Shape, parse_models
from tensorfusion.model.typical import MILLI_CARD

MIB: Final = 1 << 20
_MILLI_PERCENT: Final = 100
"""Thousandths of a percent of a card in a thousandth of a card."""

T = TypeVar("T")

NODE_COLUMNS: Final = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
TASK_COLUMNS: Final = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
TIME_COLUMNS: Final = ("creation_time", "scheduled_time", "deletion_time")


class TraceNode(msgspec.Struct, frozen=True):
    """One machine: CPU in thousandths of a core, memory in MiB, ``gpus`` cards of one model."""

    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    model: str


class Task(msgspec.Struct, frozen=True):
    """One task and what it asks for.

    Attributes:
        name: Unique in its file.
        shape: The request.
        gpu_milli: Thousandths of cards it takes, all together.
    """

    name: str
    shape: Shape
    gpu_milli: int


class Visit(msgspec.Struct, frozen=True):
    """A task with its times.

    Attributes:
        task: What it asks for.
        arrives: Second of its arrival, on the trace's own clock.
        runs_seconds: How long it holds its cards once it has them; None for ever.
    """

    task: Task
    arrives: int
    runs_seconds: int | None


@dataclass(frozen=True, slots=True)
class Trace:
    """A cluster, the tasks that arrive there, and the SHA-256 of both files."""

    nodes: tuple[TraceNode, ...]
    tasks: tuple[Task, ...]
    nodes_sha256: str
    tasks_sha256: str

    @property
    def gpus(self) -> int:
        """Cards of the cluster."""
        return sum(node.gpus for node in self.nodes)


def read_trace(nodes: Path, tasks: Path) -> Trace:
    """Read both files.

    Raises:
        ConfigError: Names file, line, column, value and what is allowed.
    """
    return Trace(
        nodes=tuple(_rows(nodes, NODE_COLUMNS, "sn", _node)),
        tasks=tuple(_rows(tasks, TASK_COLUMNS, "name", _task)),
        nodes_sha256=hashlib.sha256(nodes.read_bytes()).hexdigest(),
        tasks_sha256=hashlib.sha256(tasks.read_bytes()).hexdigest(),
    )


def read_visits(tasks: Path) -> tuple[Visit, ...]:
    """Read tasks with their times, in order of arrival.

    Raises:
        ConfigError: Names file, line, column, value and what is allowed.
    """
    found = _rows(tasks, (*TASK_COLUMNS, *TIME_COLUMNS), "name", _visit)
    return tuple(sorted(found, key=lambda visit: visit.arrives))


class _Row:
    """One line of a file, with errors that say where they are."""

    def __init__(self, place: str, cells: Mapping[str, str | None]) -> None:
        self.place = place
        self._cells = cells

    def text(self, column: str) -> str:
        return (self._cells.get(column) or "").strip()

    def name(self, column: str) -> str:
        text = self.text(column)
        if not text:
            raise self.error(column, "", "a name")
        return text

    def integer(self, column: str, most: int | None = None) -> int:
        text = self.text(column)
        allowed = f"whole numbers from 0{f' to {most}' if most is not None else ''}"
        try:
            value = int(text)
        except ValueError:
            raise self.error(column, text, allowed) from None
        if value < 0 or (most is not None and value > most):
            raise self.error(column, text, allowed)
        return value

    def error(self, column: str, value: str, allowed: str) -> ConfigError:
        return ConfigError(f"{self.place}: column {column} is {value!r}, allowed are {allowed}")


def _node(row: _Row) -> TraceNode:
    gpus = row.integer("gpu", MAX_GPU_COUNT)
    return TraceNode(
        name=row.name("sn"),
        cpu_milli=row.integer("cpu_milli"),
        memory_mib=row.integer("memory_mib"),
        gpus=gpus,
        model=row.name("model") if gpus else "",
    )


def _task(row: _Row) -> Task:
    count = row.integer("num_gpu", MAX_GPU_COUNT)
    milli = row.integer("gpu_milli", MILLI_CARD)
    if count == 1 and not milli:
        raise row.error("gpu_milli", "0", f"1 to {MILLI_CARD} when num_gpu is 1")
    if count > 1:
        milli = MILLI_CARD
    shape = Shape(
        request=Amount(milli_percent=milli * _MILLI_PERCENT) if count else Amount(),
        gpu_count=count,
        models=parse_models(row.text("gpu_spec")) if count else (),
        cpu_milli=row.integer("cpu_milli"),
        memory_bytes=row.integer("memory_mib") * MIB,
    )
    return Task(row.name("name"), shape, count * milli)


def _visit(row: _Row) -> Visit:
    arrives = row.integer("creation_time")
    started = row.integer("scheduled_time") if row.text("scheduled_time") else arrives
    if not row.text("deletion_time"):
        return Visit(_task(row), arrives, None)
    ended = row.integer("deletion_time")
    if ended < started:
        raise row.error("deletion_time", str(ended), f"times from {started}, when it started")
    return Visit(_task(row), arrives, ended - started)


def _rows(
    path: Path, columns: tuple[str, ...], key: str, convert: Callable[[_Row], T]
) -> Iterator[T]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text at byte {error.start}") from None
    reader = csv.DictReader(text.splitlines())
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise ConfigError(
            f"{path}: line 1: no column {', '.join(missing)}; needed are {', '.join(columns)}"
        )
    seen: dict[str, int] = {}
    for cells in reader:
        row = _Row(f"{path}: line {reader.line_num}", cells)
        name = row.name(key)
        if name in seen:
            raise row.error(key, name, f"names that are not in line {seen[name]} already")
        seen[name] = reader.line_num
        yield convert(row)
    if not seen:
        raise ConfigError(f"{path}: no lines after the heading")
