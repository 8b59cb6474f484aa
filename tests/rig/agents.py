"""A control plane without nodes and an agent beside it, each in a process that a test may kill."""

import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from rig.program import Program, wait, worker_pod
from tensorfusion.api.registry import PODS

START_SECONDS = 40.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the agent's socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Site(Program):
    """One machine: data folder, control plane, agent of one node.

    Args:
        simulated: The block of the simulated backend.
    """

    def __init__(self, folder, simulated, node, *, sample_seconds=0.5, **environment):
        settings = {
            "backend": "simulated",
            "hypervisor": "agents",
            "sample_seconds": sample_seconds,
            "plugin_settings": {"simulated": simulated},
        }
        super().__init__(folder, settings, seconds=90, PYTHONPATH="", **environment)
        self.node = node
        self.state = folder / "agent"
        # Paths of Unix sockets are short.
        self.sockets = Path(tempfile.mkdtemp(prefix="tf-"))
        self.socket = self.sockets / "a"
        self.agent = None

    def start_agent(self, *arguments):
        """Start the agent and wait until it answers that it is ready."""
        with (self.folder / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tensorfusion", "hypervisor", "--node", self.node),
                    *("--data", str(self.data), "--config", str(self.settings)),
                    *("--state", str(self.state), "--socket", str(self.socket), *arguments),
                ],
                env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip
        return wait(self._ready, START_SECONDS, self._last_words)

    def _ready(self):
        if self.agent.poll() is not None:
            raise AssertionError(self._last_words())
        try:
            return self.ask("GET", "/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def _last_words(self):
        return (self.folder / "agent.log").read_text()[-3000:]

    def kill_agent(self, number=signal.SIGKILL):
        self.agent.send_signal(number)
        self.agent.wait(30)

    def ask(self, method, path, body=None):
        """Ask over the Unix socket, as the user who runs the agent; status and text."""
        connection = UnixConnection(self.socket)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def ask_over_tcp(self, path, address="127.0.0.1", **headers):
        """Ask as anybody can who reaches the port; status and text."""
        port = (self.state / "port").read_text().strip()
        context = ssl.create_default_context(cafile=str(self.state / "ca.crt"))
        request = urllib.request.Request(f"https://{address}:{port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, context=context, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    @property
    def bearer(self):
        """The header that shows the agent's token."""
        return {"Authorization": f"Bearer {(self.state / 'token').read_text().strip()}"}

    def get(self, path):
        status, text = self.ask("GET", path)
        assert status == 200, text
        return json.loads(text)

    def create_pod(self, name, percent, **asked):
        self.store.create(PODS, worker_pod(name, percent, **asked), "default")

    def pod(self, name):
        return self.store.get(PODS, name, "default")

    def phases(self):
        pods = self.store.list(PODS, "default").items
        return {p["metadata"]["name"]: p.get("status", {}).get("phase") for p in pods}

    def output(self, name):
        """What a pod's container printed, from the agent's folder."""
        uid = self.pod(name)["metadata"]["uid"]
        path = self.state / "nodes" / self.node / "pods" / uid / "containers/c/0.log"
        return path.read_text() if path.exists() else ""

    def leader(self, name):
        """The process that leads a pod's container."""
        uid = self.pod(name)["metadata"]["uid"]
        path = self.state / "nodes" / self.node / "pods" / uid / "containers/c/0.pid"
        return int(wait(lambda: path.exists() and path.read_text().strip()))

    def close(self):
        """End everything, with the pods' processes."""
        for name in self.phases() if hasattr(self, "store") else ():
            self.store.delete(PODS, name, "default", grace_period_seconds=0)
        if self.agent is not None and self.agent.poll() is None:
            # The objects go at once; the agent takes a moment to end what they stood for.
            folder = self.state / "nodes" / self.node / "pods"
            wait(lambda: not any(folder.glob("*")), 60, lambda: f"left: {[*folder.glob('*')]}")
            self.kill_agent(signal.SIGTERM)
        self.down()
        shutil.rmtree(self.sockets, ignore_errors=True)
