"""What is simulated: nodes and their cards, as YAML describes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml

from tensorfusion.errors import ConfigError
from tensorfusion.model.hardware import find_card

Count = Annotated[int, msgspec.Meta(ge=1, le=64)]
NodeName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([-a-z0-9.]{0,240}[a-z0-9])?$")]
"""RFC 1123, with room for the number that ``count`` appends."""


class CardGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Some cards of one model.

    Attributes:
        numa: Domain of them all; None spreads them evenly.
        partitioned: They are set up for hardware partitions and take nothing else.
    """

    model: str
    count: Count = 1
    numa: Annotated[int, msgspec.Meta(ge=0)] | None = None
    partitioned: bool = False


class NodeDescription(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine, or ``count`` equal ones named ``name-0``, ``name-1`` and so on."""

    name: NodeName
    gpus: list[CardGroup]
    count: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1


class SimulatedSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The plugin's block of the settings.

    Attributes:
        fidelity: ``model`` computes what cards would do; ``driver`` simulates NVIDIA's driver, on
            which pods are real processes under the limiter (needs tensorfusion-native).
        description: A YAML file with ``nodes``; instead of ``nodes`` here.
        nodes: The machines. Without either, two nodes of four A100.
    """

    fidelity: Literal["model", "driver"] = "model"
    description: str = ""
    nodes: list[NodeDescription] = []


DEFAULT_NODES = [
    NodeDescription(name="sim-node", count=2, gpus=[CardGroup(model="A100_SXM_80G", count=4)])
]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    nodes: list[NodeDescription]


def read_settings(block: Mapping[str, object]) -> SimulatedSettings:
    """Read a block of settings.

    Raises:
        ConfigError: A field is unknown or has a wrong value; names it.
    """
    try:
        return msgspec.convert(dict(block), SimulatedSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"simulated: {error}") from error


def expand(settings: SimulatedSettings) -> dict[str, list[CardGroup]]:
    """Return node name to its cards.

    Raises:
        ConfigError: The file cannot be read, a model is unknown, or a name comes twice.
    """
    nodes = settings.nodes
    if settings.description:
        if nodes:
            raise ConfigError("simulated: give description or nodes, not both")
        nodes = _read(Path(settings.description))
    result: dict[str, list[CardGroup]] = {}
    for node in nodes or DEFAULT_NODES:
        for group in node.gpus:
            _check(node.name, group)
        names = [node.name] if node.count == 1 else [f"{node.name}-{i}" for i in range(node.count)]
        for name in names:
            if name in result:
                raise ConfigError(f"simulated node {name!r} is described twice")
            result[name] = node.gpus
    return result


def _check(node: str, group: CardGroup) -> None:
    try:
        card = find_card(group.model)
    except ConfigError as error:
        raise ConfigError(f"simulated node {node!r}: {error}") from error
    if group.partitioned and card.geometry is None:
        raise ConfigError(
            f"simulated node {node!r}: gpus.partitioned: {card.model} has no partitions"
        )


def _read(path: Path) -> list[NodeDescription]:
    try:
        return msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")), _File).nodes
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
