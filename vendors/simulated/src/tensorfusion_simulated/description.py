"""What is simulated: nodes and their cards, as YAML describes them."""

from pathlib import Path
from typing import Annotated

import msgspec
import yaml

from tensorfusion.errors import ConfigError
from tensorfusion.model.hardware import find_card

Count = Annotated[int, msgspec.Meta(ge=1, le=64)]


class CardGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Some cards of one model. ``numa`` puts them all in one domain; None spreads them evenly."""

    model: str
    count: Count = 1
    numa: int | None = None


class NodeDescription(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine, or ``count`` equal ones named ``name-0``, ``name-1`` and so on."""

    name: str
    gpus: list[CardGroup]
    count: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1


class SimulatedSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The plugin's block of the settings.

    Attributes:
        description: A YAML file with ``nodes``; instead of ``nodes`` here.
        nodes: The machines. Without either, two nodes of four A100.
        seed: Makes load profiles repeatable.
    """

    description: str = ""
    nodes: list[NodeDescription] = []
    seed: int = 0


DEFAULT_NODES = [
    NodeDescription(name="sim-node", count=2, gpus=[CardGroup(model="A100_SXM_80G", count=4)])
]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    nodes: list[NodeDescription]


def expand(settings: SimulatedSettings) -> dict[str, list[CardGroup]]:
    """Return node name to its cards.

    Raises:
        ConfigError: The file cannot be read, a model is unknown, or a name comes twice.
    """
    nodes = settings.nodes
    if settings.description:
        nodes = _read(Path(settings.description))
    result: dict[str, list[CardGroup]] = {}
    for node in nodes or DEFAULT_NODES:
        for group in node.gpus:
            find_card(group.model)
        names = [node.name] if node.count == 1 else [f"{node.name}-{i}" for i in range(node.count)]
        for name in names:
            if name in result:
                raise ConfigError(f"simulated node {name!r} is described twice")
            result[name] = node.gpus
    return result


def _read(path: Path) -> list[NodeDescription]:
    try:
        return msgspec.convert(yaml.safe_load(path.read_text()), _File).nodes
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error
