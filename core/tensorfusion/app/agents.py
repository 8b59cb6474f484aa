"""How a control plane finds node agents: an agent leaves its address in a Secret, and is asked by it.

What is asked once a second is in `agent_readings`. Address, certificate and token are in one object, so that whoever can change the address could read
the token anyway. Where a kubelet runs a node's pods, the API server asks that one instead.
"""

import base64
import http.client
import json
import logging
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlsplit

from tensorfusion import names
from tensorfusion.api.registry import NODES, SECRETS
from tensorfusion.clock import Clock
from tensorfusion.errors import ApiError, BadRequest, NotFound, Unavailable
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
NAMESPACE: Final = "tensor-fusion-sys"
LABEL: Final = names.PREFIX + "node-agent"
"""Label of the Secrets; its value is ``true``."""
MANAGER: Final = "tensorfusion-hypervisor"
ANSWER_SECONDS: Final = 10.0
_FIELDS: Final = ("node", "url", "ca.crt", "token")
AGAIN_SECONDS: Final = 2.0
FOLLOW_SECONDS: Final = 0.5


class AgentAddress:
    """Where an agent is, told to the control plane.

    Args:
        authority_pem: Certificate of the authority that signed the agent's.
        token: Makes its holder an operator of the agent.
    """

    def __init__(
        self, store: Store, node: str, url: str, authority_pem: bytes, token: str, clock: Clock
    ) -> None:
        self._store = store
        self._node = node
        self._values = {
            "node": node.encode(),
            "url": url.encode(),
            "ca.crt": authority_pem,
            "token": token.encode(),
        }
        self._clock = clock

    def run(self, stop: threading.Event) -> None:
        """Tell it once; try until it is told or ``stop`` is set."""
        while not stop.is_set():
            try:
                self.publish()
                return
            except ApiError as error:
                extra = {"node": self._node, "error": str(error)}
                log.warning("address not published", extra=extra)
                self._clock.wait(stop, AGAIN_SECONDS)

    def publish(self) -> None:
        """Write the Secret.

        Raises:
            NotFound: There is no Node object yet.
            ApiError: The server cannot be asked, or refuses.
        """
        data = {key: base64.b64encode(value).decode() for key, value in self._values.items()}
        name = secret_name(self._node)
        try:
            self._store.patch(SECRETS, name, {"data": data}, NAMESPACE, field_manager=MANAGER)
            return
        except NotFound:
            node = self._store.get(NODES, self._node)
        uid = node["metadata"]["uid"]
        owner = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": uid}
        metadata = {
            "name": name,
            "namespace": NAMESPACE,
            "labels": {LABEL: "true"},
            "ownerReferences": [owner],  # it goes with its node
        }
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}
        self._store.create(SECRETS, body, field_manager=MANAGER)


def secret_name(node: str) -> str:
    """The Secret with the address of a node's agent."""
    return f"tensorfusion-agent-{node}"


@dataclass(frozen=True, slots=True)
class Reached:
    """What the Secret of an agent says.

    Attributes:
        authority_pem: Of who signed its certificate.
        token: Never to be shown.
    """

    node: str
    host: str
    port: int
    authority_pem: str
    token: str

    def __repr__(self) -> str:
        return f"Reached({self.node}, {self.host}:{self.port})"

    def tls(self) -> ssl.SSLContext:
        """How to talk to it and nobody else.

        Raises:
            OSError: The authority's certificate cannot be read.
        """
        return ssl.create_default_context(cadata=self.authority_pem)


def decode_address(data: Mapping[str, str]) -> Reached:
    """Read the data of an agent's Secret.

    Raises:
        ValueError: A field is missing or wrong; names it, and not what it holds.
    """
    try:
        values = {key: base64.b64decode(data[key]).decode() for key in _FIELDS}
    except KeyError as error:
        raise ValueError(f"data has no field {error}") from None
    except ValueError:
        raise ValueError(f"data: {', '.join(_FIELDS)} must be base64 of text") from None
    try:
        url = urlsplit(values["url"])
        host, port = url.hostname, url.port
    except ValueError:
        host, port = None, None
    if not host or not port or url.scheme != "https":
        raise ValueError("data: url must be https://HOST:PORT")
    if not values["token"].isascii() or not values["token"].isprintable():
        raise ValueError("data: token must be printable ASCII")
    return Reached(values["node"], host, port, values["ca.crt"], values["token"])


class Agents:
    """Asks the agents that have told where they are.

    Concurrency: any thread. Each question is a connection of its own.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def get(self, node: str, path: str) -> Any:
        """Ask the agent of a node.

        Raises:
            NotFound: It has not told where it is, or has no such thing.
            BadRequest: It refuses the question.
            Unavailable: It does not answer.
        """
        try:
            secret = self._store.get(SECRETS, secret_name(node), NAMESPACE)
        except NotFound:
            raise NotFound(f"node {node!r} has no agent that can be asked") from None
        return self._ask(node, secret.get("data") or {}, path)

    def logs(
        self, node: str, uid: str, container: str, *, previous: bool, follow: bool
    ) -> Iterator[bytes]:
        """Read the output of a container from its node's agent, as `PodRunner.logs` does here.

        Raises:
            ApiError: As `get`; raised before the first chunk.
        """
        base = f"/api/v1/pods/{quote(uid, safe='')}/logs/{quote(container, safe='')}"
        first = self.get(node, f"{base}/{'previous' if previous else 'newest'}/0")
        return self._read(node, base, first, follow=follow and not previous)

    def _read(self, node: str, base: str, chunk: Any, *, follow: bool) -> Iterator[bytes]:
        never = threading.Event()
        while True:
            if chunk["data"]:
                yield base64.b64decode(chunk["data"])
            elif chunk["ended"] or not follow:
                return
            else:
                yield b""
                self._clock.wait(never, FOLLOW_SECONDS)
            chunk = self.get(node, f"{base}/{chunk['attempt']}/{chunk['offset']}")

    def _ask(self, node: str, data: Mapping[str, str], path: str) -> Any:
        try:
            agent = decode_address(data)
            connection = http.client.HTTPSConnection(
                agent.host, agent.port, context=agent.tls(), timeout=ANSWER_SECONDS
            )
            try:
                connection.request("GET", path, headers={"Authorization": f"Bearer {agent.token}"})
                answer = connection.getresponse()
                body = json.loads(answer.read())
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unavailable(
                f"the agent of node {node} does not answer: {type(error).__name__}: {error}"
            ) from None
        if answer.status == 200:
            return body
        message = str(body.get("message", "")) if isinstance(body, dict) else ""
        kinds: dict[int, type[ApiError]] = {400: BadRequest, 404: NotFound}
        raise kinds.get(answer.status, Unavailable)(message or f"agent of node {node} refused")
