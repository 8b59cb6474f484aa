"""Published results of known traces, by the hash of their files."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from tensorfusion.simulate.trace import Trace


@dataclass(frozen=True, slots=True)
class Published:
    """What is published about one list of tasks.

    Attributes:
        name: Name of the list.
        figure: Figure of the paper that shows it.
        values: Policy, then field of `Point`, then demand in percent.
    """

    name: str
    figure: str
    values: Mapping[str, Mapping[str, Mapping[int, float]]]

    def value(self, policy: str, field: str, demand_pct: int) -> float | None:
        """Return one figure, None when it is not published."""
        return self.values.get(policy, {}).get(field, {}).get(demand_pct)


def published_for(trace: Trace) -> Published | None:
    """Recognise a trace; None when nothing is known of it."""
    data = _data()
    if trace.nodes_sha256 != data["nodes_sha256"]:
        return None
    for name, entry in data["lists"].items():
        if entry["tasks_sha256"] == trace.tasks_sha256:
            values = {
                policy: {
                    field: {int(demand): float(value) for demand, value in column.items()}
                    for field, column in fields.items()
                }
                for policy, fields in entry.items()
                if isinstance(fields, dict)
            }
            return Published(name, entry["figure"], values)
    return None


@cache
def _data() -> dict[str, Any]:
    text = files("tensorfusion.simulate").joinpath("published.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
