"""What every process of ours starts with: its folder, its plugins, its backend."""

import asyncio
import fcntl
import os
import threading
from pathlib import Path
from typing import IO, Final

from tensorfusion.errors import ConfigError
from tensorfusion.host import PluginHost
from tensorfusion.runtime.settings import Settings
from tensorfusion.spi.backend import Backend

STOP_LOOK_SECONDS: Final = 0.2
"""How often an event loop looks whether it shall end."""


async def until_set(stop: threading.Event) -> None:
    """Wait on an event loop until an event of other threads is set.

    A thread of the loop's pool that waited would keep a process alive that gives up.
    """
    while not stop.is_set():
        await asyncio.sleep(STOP_LOOK_SECONDS)


def acquire_lock(data: Path, hint: str) -> IO[str]:
    """Take a data folder for this process; the lock goes with the process, however it ends.

    Args:
        data: Created with mode 0700 where it is missing.
        hint: What to do when another process has it, for the message.

    Raises:
        ConfigError: Another process has it; names its id.
    """
    try:
        data.mkdir(parents=True, exist_ok=True)
        data.chmod(0o700)
        handle = (data / "lock").open("a+")
    except OSError as error:
        raise ConfigError(f"data folder {data}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        holder = handle.read().strip() or "unknown"
        handle.close()
        raise ConfigError(f"data folder {data} is in use by process {holder}; {hint}") from None
    handle.truncate(0)
    handle.write(f"{os.getpid()}\n")
    handle.flush()
    return handle


def load_plugins(settings: Settings) -> PluginHost:
    """Load every plugin that the settings allow."""
    host = PluginHost(
        allow=settings.plugins.allow,
        deny=settings.plugins.deny,
        settings=settings.plugin_settings,
    )
    host.load()
    return host


def choose_backend(host: PluginHost, settings: Settings) -> Backend:
    """Choose a backend: the one that is named, else a real one that is there, else the simulator.

    Raises:
        ConfigError: The named one is missing or cannot work here; says why.
    """
    backends = host.backends()
    if settings.backend:
        backend = backends.get(settings.backend)
        if backend is None:
            raise ConfigError(
                f"backend: {settings.backend!r} is not installed;"
                f" installed: {', '.join(sorted(backends)) or 'none'}"
            )
        works, why = backend.available()
        if not works:
            raise ConfigError(f"backend: {settings.backend!r} cannot work here: {why}")
        return backend
    for name, backend in sorted(backends.items()):
        if name != "simulated" and backend.available()[0]:
            return backend
    if "simulated" not in backends:
        raise ConfigError(
            "no backend: no GPU was found and tensorfusion-simulated is not installed;"
            " try `pip install tensorfusion-simulated`"
        )
    return backends["simulated"]


def backend_settings(backend: Backend, settings: Settings) -> dict[str, object]:
    """Settings of the sessions; the simulator without a description gets the default pool."""
    if backend.name != "simulated" or settings.plugin_settings.get("simulated"):
        return {}
    pool = settings.simulated
    group = {"model": pool.model, "count": pool.gpus_per_node}
    return {"nodes": [{"name": "sim-node", "count": pool.nodes, "gpus": [group]}]}
