"""Where an agent is reached over TCP: the address it listens on, and the names it is served under."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from tensorfusion.api.registry import NODES
from tensorfusion.apiserver.listening import address_of, is_wildcard
from tensorfusion.errors import ApiError, ConfigError, NotFound
from tensorfusion.store.interface import Store

_DNS_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@dataclass(frozen=True, slots=True)
class Door:
    """The TCP side of one agent.

    Attributes:
        address: What is bound; the wildcard only where it was written out.
        host: What the control plane asks it by.
        names: All names and addresses that it answers to, beside loopback.
    """

    address: str
    host: str
    names: tuple[str, ...]


def choose_door(store: Store, node: str, listen: str, advertise: str) -> Door:
    """Decide how an agent is reached.

    Args:
        listen: An address of this machine or an interface; the wildcard stands for all of them.
        advertise: What the control plane asks it by; empty takes the address, for the wildcard the
            node's ``InternalIP``.

    Raises:
        ConfigError: One of them is wrong, or nothing says by what the agent can be asked.
    """
    address = address_of(listen)
    if advertise:
        host = _checked(advertise)
    elif is_wildcard(address):
        host = _internal_ip(store, node, listen)
    else:
        host = address
    names = dict.fromkeys((host, node, *(() if is_wildcard(address) else (address,))))
    return Door(address, host, tuple(names))


def _checked(advertise: str) -> str:
    try:
        address = ipaddress.ip_address(advertise)
    except ValueError:
        if _DNS_NAME.fullmatch(advertise.lower()):
            return advertise.lower()
    else:
        if not address.is_unspecified:
            return str(address)
    raise ConfigError(
        f"advertise: {advertise!r} must be one IP address or DNS name, without scheme and port"
    )


def _internal_ip(store: Store, node: str, listen: str) -> str:
    why = f"node {node} has none"
    try:
        status = store.get(NODES, node).get("status") or {}
        for row in status.get("addresses") or ():
            if row.get("type") == "InternalIP":
                return _checked(row.get("address", ""))
    except NotFound:
        why = f"there is no node {node} yet"
    except ApiError as error:
        why = f"the API server cannot be asked: {error}"
    raise ConfigError(
        f"listen: {listen} needs the node's InternalIP, for the control plane to ask it by, and"
        f" {why}; name an address with --advertise"
    )
