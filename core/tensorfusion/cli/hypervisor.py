"""``hypervisor``: the agent of one node, in a process of its own."""

import os
import signal
import threading
from pathlib import Path

import click

from tensorfusion.cli.options import connect, data_option
from tensorfusion.clock import SystemClock

CLOCK = SystemClock()
NODE_VARIABLE = "NODE_NAME"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


@click.command()
@data_option
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="The API server. Default: the pod's service account, else the data folder's kubeconfig.",
)
@click.option(
    "--context", default="", help="Context of the kubeconfig; its current one by default."
)
@click.option(
    "--node",
    envvar=NODE_VARIABLE,
    default="",
    show_default=f"{NODE_VARIABLE}, or the backend's only node",
    help="The node to serve.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    show_default="DATA/agents/NODE",
    help="Folder of the agent; survives restarts. One agent per folder.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Settings file (YAML), the same as of `up`: backend, plugins, sample_seconds.",
)
@click.option(
    "--listen",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address of this machine, or interface, to serve TCP on; 0.0.0.0 or :: for all of them.",
)
@click.option(
    "--advertise",
    default="",
    metavar="ADDRESS",
    show_default="the listening address, for all of them the node's InternalIP",
    help="Address or DNS name that the control plane asks the agent by.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="TCP port; 0 keeps the folder's last one, or takes a free one.",
)
@click.option(
    "--socket",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    show_default="STATE/agent.sock",
    help="Path of the Unix socket.",
)
@click.option("--socket-group", is_flag=True, help="Let the agent's group use the socket too.")
@click.option(
    "--kubelet/--no-kubelet",
    default=None,
    show_default="looks at the Node object",
    help="Whether a kubelet runs the node's containers. Without one the agent does, as processes.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default=None)
@click.option(
    "--log-format", type=click.Choice(["auto", "json", "text"]), default="auto", show_default=True
)
def hypervisor(
    data: Path,
    kubeconfig: Path | None,
    context: str,
    node: str,
    state: Path | None,
    config: Path | None,
    listen: str,
    advertise: str,
    port: int,
    socket: Path | None,
    socket_group: bool,
    kubelet: bool | None,
    log_level: str | None,
    log_format: str,
) -> None:
    """Run the agent of one node: devices, workers, sampling, limits, health.

    A control plane that is served by agents is started with the setting `hypervisor: agents`.
    Ending the agent leaves workers and their processes as they are; the next one takes them over.

    \b
    Example:
      TENSORFUSION_HYPERVISOR=agents tensorfusion up --detach
      tensorfusion hypervisor --node sim-node-0
    """  # noqa: D301 - \b is click's mark for a paragraph it must not wrap
    from tensorfusion.app.agent import Agent, AgentOptions
    from tensorfusion.kube import HttpStore
    from tensorfusion.kube.transport import Transport
    from tensorfusion.runtime import garbage, logs, settings

    loaded = settings.load(config)
    os.umask(0o077)
    logs.configure(log_level or loaded.log_level, log_format)
    in_cluster = kubeconfig is None and SERVICE_ACCOUNT.exists()
    store = HttpStore(Transport()) if in_cluster else connect(data, kubeconfig, context)
    options = AgentOptions(
        state=state or data / "agents" / (node or "node"),
        node=node,
        listen=listen,
        advertise=advertise,
        port=port,
        socket=socket,
        group=socket_group,
        kubelet=kubelet,
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    agent = Agent(store, loaded, options)
    garbage.keep_what_is_there()
    agent.start()
    click.echo(f"serving node {agent.node}: {agent.server.url}, {agent.server.path}", err=True)
    while not stop.is_set():
        CLOCK.wait(stop, 3600)
    agent.stop()
    garbage.skip_last_walk()
