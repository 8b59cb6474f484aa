"""The servers that the contract suite runs on.

A server is added by an entry in `STORES`: a context manager that takes a folder and yields a
`Store`. Every test works in a namespace of its own, so a server may be shared between tests.
"""

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rig.binaries import folder as find_binaries
from rig.kube_apiserver import KubeApiServer, install_crds

from tensorfusion.api.registry import NAMESPACES, PROFILES
from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.apiserver import ApiServer
from tensorfusion.clock import SystemClock
from tensorfusion.errors import NotFound
from tensorfusion.kube import HttpStore
from tensorfusion.kube.transport import Transport
from tensorfusion.sqlite import SQLiteStore
from tensorfusion.store import PatchType, Store, WatchEvent

DEADLINE_SECONDS = 20.0


@dataclass(frozen=True)
class StoreKind:
    """One server.

    Attributes:
        open: Starts it (or connects to it) and yields a store.
        collects: Whether something collects dependents and namespace content there.
    """

    open: Callable[[Path], AbstractContextManager[Store]]
    collects: bool = True


@contextmanager
def _sqlite(folder: Path) -> Iterator[Store]:
    store = SQLiteStore(folder / "store.db", bookmark_seconds=0.2)
    yield store
    store.close()


@contextmanager
def _wire(folder: Path) -> Iterator[Store]:
    """Our own server, through HTTP; one for the whole session."""
    yield _session("wire", lambda: _start_wire(_session_folder("wire")))


def _start_wire(folder: Path) -> tuple[Store, Callable[[], None]]:
    store = SQLiteStore(folder / "store.db", bookmark_seconds=0.2)
    server = ApiServer(store, data_dir=folder)
    server.start()
    client = HttpStore(Transport(server.kubeconfig_path))

    def stop() -> None:
        client.transport.close()
        server.stop()
        store.close()

    return client, stop


@contextmanager
def _kube_apiserver(folder: Path) -> Iterator[Store]:
    """A real kube-apiserver with etcd and our CRDs; one for the whole session."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("kube-apiserver is not built: run `make test-cluster`, which builds it")
    yield _session("kube", lambda: _start_kube(binaries, _session_folder("kube")))


def _start_kube(binaries: Path, folder: Path) -> tuple[Store, Callable[[], None]]:
    server = KubeApiServer(binaries, folder)
    server.start()
    client = HttpStore(Transport(server.kubeconfig))
    install_crds(client)

    def stop() -> None:
        client.transport.close()
        server.stop()

    return client, stop


_RUNNING: dict[str, tuple[Store, Callable[[], None]]] = {}


def _session(name: str, start: Callable[[], tuple[Store, Callable[[], None]]]) -> Store:
    if name not in _RUNNING:
        _RUNNING[name] = start()
    return _RUNNING[name][0]


def _session_folder(name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"tensorfusion-contract-{name}-"))


def pytest_sessionfinish() -> None:
    """End the servers that the session started."""
    while _RUNNING:
        _, (_, stop) = _RUNNING.popitem()
        stop()


STORES: dict[str, StoreKind] = {
    "sqlite": StoreKind(_sqlite),
    "wire": StoreKind(_wire),
    # No controller manager runs beside it, so nothing collects.
    "kube-apiserver": StoreKind(_kube_apiserver, collects=False),
}


@pytest.fixture(
    params=[
        pytest.param(n, marks=[pytest.mark.cluster] if n == "kube-apiserver" else [])
        for n in STORES
    ]
)
def store_kind(request: pytest.FixtureRequest) -> StoreKind:
    return STORES[request.param]


@pytest.fixture
def store(store_kind: StoreKind, tmp_path: Path) -> Iterator[Store]:
    with store_kind.open(tmp_path) as opened:
        yield opened


@pytest.fixture
def namespace(store: Store) -> Iterator[str]:
    created = store.create(NAMESPACES, {"metadata": {"generateName": "contract-"}})
    name = created["metadata"]["name"]
    yield name
    store.delete(NAMESPACES, name)


@pytest.fixture
def needs_collector(store_kind: StoreKind) -> None:
    if not store_kind.collects:
        pytest.skip("nothing collects garbage on this server")


def config_map(name: str, labels: dict[str, str] | None = None, **data: str) -> JsonObject:
    metadata: JsonObject = {"name": name}
    if labels:
        metadata["labels"] = labels
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def profile(name: str, **spec: Any) -> JsonObject:
    return {
        "apiVersion": PROFILES.api_version,
        "kind": "WorkloadProfile",
        "metadata": {"name": name},
        "spec": spec or {"gpuModel": "A100"},
    }


def deployment(name: str) -> JsonObject:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "containers": [
                        {"name": "main", "image": "one", "env": [{"name": "A", "value": "1"}]},
                        {"name": "side", "image": "two"},
                    ]
                },
            },
        },
    }


def version(obj: JsonObject) -> str:
    found = obj["metadata"]["resourceVersion"]
    assert isinstance(found, str)
    return found


def names(items: list[JsonObject]) -> list[str]:
    return [item["metadata"]["name"] for item in items]


def with_metadata(obj: JsonObject, **changes: Any) -> JsonObject:
    return {**obj, "metadata": {**obj["metadata"], **changes}}


def without_version(obj: JsonObject) -> JsonObject:
    metadata = {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}
    return {**obj, "metadata": metadata}


def collect(
    store: Store, resource: Resource, namespace: str, count: int, **options: Any
) -> list[WatchEvent]:
    """Return the next ``count`` events of a watch."""
    watch = store.watch(resource, namespace, timeout_seconds=DEADLINE_SECONDS, **options)
    try:
        return [event for _, event in zip(range(count), watch, strict=False)]
    finally:
        watch.stop()


def kinds(events: list[WatchEvent]) -> list[tuple[str, str]]:
    return [(event.type.value, event.object["metadata"]["name"]) for event in events]


def eventually(check: Callable[[], bool]) -> None:
    clock = SystemClock()
    end = clock.monotonic() + DEADLINE_SECONDS
    while not check():
        assert clock.monotonic() < end, "it did not happen in time"
        clock.wait(threading.Event(), 0.05)


def is_gone(store: Store, resource: Resource, name: str, namespace: str) -> bool:
    try:
        store.get(resource, name, namespace)
    except NotFound:
        return True
    return False


def apply(
    store: Store,
    resource: Resource,
    obj: JsonObject,
    namespace: str,
    manager: str,
    **options: Any,
) -> JsonObject:
    return store.patch(
        resource,
        obj["metadata"]["name"],
        obj,
        namespace,
        patch_type=PatchType.APPLY,
        field_manager=manager,
        **options,
    )
