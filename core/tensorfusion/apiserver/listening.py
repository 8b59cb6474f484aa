"""A TCP socket on loopback: on the port that is asked for, else the last one, else a free one."""

import contextlib
import errno
import socket
from pathlib import Path
from typing import Final

from tensorfusion.errors import ConfigError

HOST: Final = "127.0.0.1"
BACKLOG: Final = 512


def bind_loopback(port: int, port_file: Path) -> socket.socket:
    """Bind and listen.

    Args:
        port: The port; 0 takes the one of the last run, or a free one.
        port_file: Where the last run left its port; need not exist.

    Raises:
        ConfigError: The port is in use, or nothing can be bound.
    """
    remembered = _remembered(port_file)
    candidates = [port] if port else [remembered, 0] if remembered else [0]
    for candidate in candidates:
        # With the protocol named, asyncio switches Nagle's algorithm off for connections.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, candidate))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE and not port and candidate:
                continue
            raise ConfigError(
                f"cannot listen on {HOST}:{candidate}: {error.strerror}; choose another port, or "
                "end the program that uses it"
            ) from error
        return listener
    raise ConfigError(f"cannot listen on {HOST}")


def _remembered(port_file: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        port = int(port_file.read_text())
        return port if 0 < port < 65_536 else 0
    return 0
