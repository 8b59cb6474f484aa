"""``tensorfusion simulated``: break, slow, pull out and add simulated cards while things run."""

from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from tensorfusion.errors import TensorFusionError
from tensorfusion.model.hardware import find_card
from tensorfusion_simulated.state import Fault, Faults, load_faults, load_state, write_atomic


@click.group("simulated")
def group() -> None:
    """Inject faults into simulated cards.

    \b
    Example:
      tensorfusion simulated fail sim-node-0 gpu-1234 --message "fell off the bus"
      tensorfusion simulated restore sim-node-0 gpu-1234
    """  # noqa: D301 - \b is click's mark for a paragraph it must not wrap


def _data_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path.home() / ".tensorfusion",
        show_default=True,
        help="Data folder of the control plane.",
    )(command)


def _folder(data: Path, node: str) -> Path:
    folder = data / "nodes" / node
    if not folder.is_dir():
        known = sorted(p.name for p in (data / "nodes").glob("*")) if data.is_dir() else []
        raise click.ClickException(
            f"node {node!r} is not simulated in {data}; known: {', '.join(known) or 'none'}"
        )
    return folder


def _change(folder: Path, change: Callable[[Faults], None]) -> None:
    """Rewrite the faults of a node; its session reads them with its next call."""
    path = folder / "faults.json"
    try:
        faults = load_faults(path)
        change(faults)
        write_atomic(path, msgspec.json.encode(faults))
    except TensorFusionError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from error


def _change_card(data: Path, node: str, uuid: str, change: Callable[[Faults], None]) -> None:
    folder = _folder(data, node)
    try:
        known = load_state(folder / "simulated.json").cards
    except TensorFusionError as error:
        raise click.ClickException(str(error)) from error
    if uuid not in known:
        raise click.ClickException(
            f"node {node!r} has no card {uuid!r}; known: {', '.join(known) or 'none'}"
        )
    _change(folder, change)


def _set(uuid: str, **values: object) -> Callable[[Faults], None]:
    def change(faults: Faults) -> None:
        fault = faults.cards.get(uuid) or Fault()
        faults.cards[uuid] = msgspec.structs.replace(fault, **values)

    return change


@group.command(
    epilog='Example:  tensorfusion simulated fail sim-node-0 gpu-1234 --message "fell off the bus"'
)
@click.argument("node")
@click.argument("uuid")
@click.option("--message", default="injected failure", help="What the driver would say.")
@_data_option
def fail(node: str, uuid: str, message: str, data: Path) -> None:
    """Make a card unhealthy."""
    _change_card(data, node, uuid, _set(uuid, failed=message))
    click.echo(f"{uuid} on {node} failed: {message}")


@group.command(epilog="Example:  tensorfusion simulated restore sim-node-0 gpu-1234")
@click.argument("node")
@click.argument("uuid")
@_data_option
def restore(node: str, uuid: str, data: Path) -> None:
    """Undo every fault of a card."""

    def forget(faults: Faults) -> None:
        faults.cards.pop(uuid, None)

    _change_card(data, node, uuid, forget)
    click.echo(f"{uuid} on {node} restored")


@group.command(epilog="Example:  tensorfusion simulated remove sim-node-0 gpu-1234")
@click.argument("node")
@click.argument("uuid")
@_data_option
def remove(node: str, uuid: str, data: Path) -> None:
    """Pull a card out of its node."""
    _change_card(data, node, uuid, _set(uuid, removed=True))
    click.echo(f"{uuid} removed from {node}")


@group.command(epilog="Example:  tensorfusion simulated throttle sim-node-0 gpu-1234 0.5")
@click.argument("node")
@click.argument("uuid")
@click.argument("ratio", type=click.FloatRange(0, 1, min_open=True))
@_data_option
def throttle(node: str, uuid: str, ratio: float, data: Path) -> None:
    """Slow a card down to RATIO of its rate."""
    _change_card(data, node, uuid, _set(uuid, speed_ratio=ratio))
    click.echo(f"{uuid} on {node} runs at {ratio:.0%}")


@group.command(epilog="Example:  tensorfusion simulated add sim-node-0 L4")
@click.argument("node")
@click.argument("model")
@_data_option
def add(node: str, model: str, data: Path) -> None:
    """Put one more card of MODEL into a node."""
    try:
        card = find_card(model)
    except TensorFusionError as error:
        raise click.ClickException(str(error)) from error
    _change(_folder(data, node), lambda faults: faults.added.append(card.model))
    click.echo(f"{card.model} added to {node}")
