"""A TCP socket: on a named address, and on the port that is asked for, the last one or a free one."""

import contextlib
import errno
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tensorfusion.errors import ConfigError

HOST: Final = "127.0.0.1"
BACKLOG: Final = 512
_SIOCGIFADDR: Final = 0x8915
"""Asks an interface for its IPv4 address; see netdevice(7)."""
_INTERFACE_NAME_BYTES: Final = 16
_ADDRESS_AT: Final = 20
"""Where the answer has the four bytes of the address."""


def bind_loopback(port: int, port_file: Path) -> socket.socket:
    """`bind` on loopback."""
    return bind(HOST, port, port_file)


def bind(address: str, port: int, port_file: Path) -> socket.socket:
    """Bind and listen.

    Args:
        address: An IP address of this machine, or the one that stands for all.
        port: The port; 0 takes the one of the last run, or a free one.
        port_file: Where the last run left its port; need not exist.

    Raises:
        ConfigError: The address is another machine's, or the port is in use.
    """
    remembered = _remembered(port_file)
    candidates = [port] if port else [remembered, 0] if remembered else [0]
    for candidate in candidates:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        # With the protocol named, asyncio switches Nagle's algorithm off for connections.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, candidate))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE and not port and candidate:
                continue
            if error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(
                    f"cannot listen on {address}: no interface of this machine has that address;"
                    f" there are {_shown(interfaces())}"
                ) from error
            raise ConfigError(
                f"cannot listen on {address}:{candidate}: {error.strerror}; choose another port, or "
                "end the program that uses it"
            ) from error
        return listener
    raise ConfigError(f"cannot listen on {address}")


def address_of(listen: str) -> str:
    """The address that an address or an interface stands for.

    Raises:
        ConfigError: It is neither, or the interface has no IPv4 address.
    """
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(listen)
        if not getattr(address, "scope_id", None):
            return str(address)
    known = interfaces()
    if known.get(listen):
        return known[listen]
    raise ConfigError(
        f"listen: {listen!r} must be an IP address of this machine or an interface that has an IPv4"
        f" address; there are {_shown(known)}"
    )


def interfaces() -> Mapping[str, str]:
    """The machine's interfaces with their first IPv4 addresses; empty where there is none."""
    found: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[: _INTERFACE_NAME_BYTES - 1])
            try:
                answer = fcntl.ioctl(asked.fileno(), _SIOCGIFADDR, request)
                found[name] = socket.inet_ntoa(answer[_ADDRESS_AT : _ADDRESS_AT + 4])
            except OSError:
                found[name] = ""
    return found


def is_wildcard(address: str) -> bool:
    """Whether an address stands for all of the machine's."""
    return ipaddress.ip_address(address).is_unspecified


def in_url(host: str) -> str:
    """A host as it is written in a URL."""
    return f"[{host}]" if ":" in host else host


def _shown(known: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {address}".strip() for name, address in known.items())


def _remembered(port_file: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        port = int(port_file.read_text())
        return port if 0 < port < 65_536 else 0
    return 0
