"""The wire as a plain HTTP client sees it."""

import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tensorfusion.apiserver import ApiServer, PodLogRequest, Seams, json_response
from tensorfusion.errors import ConfigError, NotFound
from tensorfusion.sqlite import SQLiteStore

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
PROFILES = "/apis/tensor-fusion.ai/v1/namespaces/default/workloadprofiles"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


class Client:
    """One keep-alive connection to a server, with its token."""

    def __init__(self, server: ApiServer) -> None:
        context = ssl.create_default_context(cadata=server.credentials.authority_pem.decode())
        self.port = int(server.url.rpartition(":")[2])
        self.connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, context=context, timeout=10
        )
        self.headers = {"Authorization": f"Bearer {server.credentials.token}"}

    def raw(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        sent = {**self.headers, **{k.replace("_", "-"): v for k, v in headers.items()}}
        self.connection.request(method, path, body=body, headers=sent)
        response = self.connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        kind: str = "application/json",
        **headers: str,
    ) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        status, _, content = self.raw(method, path, data, Content_Type=kind, **headers)
        return status, json.loads(content)


def logs(request: PodLogRequest) -> Iterator[bytes]:
    if request.container == "nope":
        raise NotFound("container nope is not in the pod")
    return iter([b"line 1\n", b"line 2\n"])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    opened = SQLiteStore(tmp_path / "store.db", bookmark_seconds=0.1)
    yield opened
    opened.close()


@pytest.fixture
def server(store: SQLiteStore, tmp_path: Path) -> Iterator[ApiServer]:
    seams = Seams(
        pod_logs=logs,
        readiness={"placement": lambda: "not synced"},
        metrics=lambda: b"tensorfusion_up 1\n",
        extra_routes={"extra/thing": lambda request: json_response({"path": request.segments})},
    )
    started = ApiServer(store, data_dir=tmp_path / "data", seams=seams)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def client(server: ApiServer) -> Iterator[Client]:
    opened = Client(server)
    yield opened
    opened.connection.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a server for all tests that leave nothing behind."""
    folder = tmp_path_factory.mktemp("shared")
    opened = SQLiteStore(folder / "store.db")
    started = ApiServer(opened, data_dir=folder / "data")
    started.start()
    connected = Client(started)
    yield connected
    connected.connection.close()
    started.stop()
    opened.close()


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


# Access.


def test_request_without_token_is_unauthorized(client: Client) -> None:
    client.headers = {}
    status, body = client.call("GET", CONFIG_MAPS)
    assert (status, body["kind"], body["reason"]) == (401, "Status", "Unauthorized")


def test_request_with_a_wrong_token_is_unauthorized(client: Client) -> None:
    client.headers = {"Authorization": "Bearer wrong"}
    assert client.call("GET", CONFIG_MAPS)[0] == 401
    client.headers = {"Authorization": "Basic wrong"}
    assert client.call("GET", "/metrics")[0] == 401


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "[::1]:80", ""])
def test_foreign_host_header_is_refused(client: Client, host: str) -> None:
    assert client.call("GET", CONFIG_MAPS, Host=host)[0] in (400, 403)


def test_foreign_origin_is_refused_and_own_is_not(client: Client) -> None:
    assert client.call("GET", CONFIG_MAPS, Origin="https://evil.example")[0] == 403
    assert client.call("GET", CONFIG_MAPS, Origin="null")[0] == 403
    assert client.call("GET", CONFIG_MAPS, Origin=f"https://localhost:{client.port}")[0] == 200


def test_files_are_private_and_reused_over_restarts(
    store: SQLiteStore, server: ApiServer, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    names = {"ca.crt", "tls.crt", "tls.key", "token", "port", "kubeconfig"}
    assert {path.name for path in folder.iterdir()} == names
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
    server.stop()
    again = ApiServer(store, data_dir=folder)
    again.start()
    assert again.url == server.url
    assert again.credentials.token == server.credentials.token
    again.stop()


def test_port_in_use_is_a_clear_error(
    store: SQLiteStore, server: ApiServer, tmp_path: Path
) -> None:
    port = int(server.url.rpartition(":")[2])
    second = ApiServer(store, data_dir=tmp_path / "other", port=port)
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
        second.start()


def test_data_folder_that_cannot_be_made_is_a_clear_error(
    store: SQLiteStore, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot use"):
        ApiServer(store, data_dir=tmp_path / "file" / "data")


# Discovery and health.


def test_discovery_lists_kinds_with_subresources(client: Client) -> None:
    _, groups = client.call("GET", "/apis")
    assert "apps" in [group["name"] for group in groups["groups"]]
    _, resources = client.call("GET", "/apis/apps/v1")
    assert {"deployments", "deployments/status", "deployments/scale"} <= {
        entry["name"] for entry in resources["resources"]
    }
    assert client.call("GET", "/api")[1]["versions"] == ["v1"]
    assert client.call("GET", "/apis/apps")[1]["preferredVersion"]["groupVersion"] == "apps/v1"
    assert client.call("GET", "/apis/nope")[0] == 404


def test_aggregated_discovery_is_one_document(client: Client) -> None:
    wanted = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
    status, headers, body = client.raw("GET", "/apis", Accept=wanted)
    assert status == 200
    assert "as=APIGroupDiscoveryList" in headers["content-type"]
    names = [item["metadata"]["name"] for item in json.loads(body)["items"]]
    assert "tensor-fusion.ai" in names


def test_openapi_index_points_to_documents(client: Client) -> None:
    _, index = client.call("GET", "/openapi/v3")
    url = index["paths"]["apis/tensor-fusion.ai/v1"]["serverRelativeURL"]
    assert "hash=" in url
    _, document = client.call("GET", url)
    assert document["openapi"].startswith("3.")
    path = "/apis/tensor-fusion.ai/v1/namespaces/{namespace}/workloadprofiles/{name}"
    content = document["paths"][path]["patch"]["requestBody"]["content"]
    assert "application/strategic-merge-patch+json" not in content
    assert client.call("GET", "/openapi/v2")[0] == 404


def test_health_needs_no_token_and_tells_what_is_wrong(client: Client) -> None:
    client.headers = {}
    assert client.raw("GET", "/livez")[2] == b"ok"
    status, _, body = client.raw("GET", "/readyz?verbose")
    assert status == 500
    assert b"[-]placement failed: not synced" in body
    assert client.raw("GET", "/healthz/nope")[0] == 404


def test_metrics_version_and_extra_routes(client: Client) -> None:
    assert client.raw("GET", "/metrics")[2] == b"tensorfusion_up 1\n"
    assert client.call("GET", "/version")[1]["major"] == "1"
    assert client.call("GET", "/extra/thing")[1] == {"path": ["extra", "thing"]}


# Objects.


def test_object_goes_through_its_life(client: Client) -> None:
    status, created = client.call("POST", CONFIG_MAPS, config_map("a", x="1"))
    assert status == 201
    assert client.call("GET", f"{CONFIG_MAPS}/a") == (200, created)
    status, updated = client.call("PUT", f"{CONFIG_MAPS}/a", {**created, "data": {"x": "2"}})
    assert (status, updated["data"]) == (200, {"x": "2"})
    assert client.call("PUT", f"{CONFIG_MAPS}/a", {**created, "data": {"x": "3"}})[0] == 409
    merge = "application/merge-patch+json"
    _, patched = client.call("PATCH", f"{CONFIG_MAPS}/a", {"data": {"y": "1"}}, merge)
    assert patched["data"] == {"x": "2", "y": "1"}
    _, deleted = client.call("DELETE", f"{CONFIG_MAPS}/a")
    assert (deleted["kind"], deleted["status"]) == ("Status", "Success")
    status, body = client.call("GET", f"{CONFIG_MAPS}/a")
    assert (status, body["message"]) == (404, 'configmaps "a" not found')
    assert body["details"] == {"kind": "configmaps", "name": "a"}


def test_yaml_bodies_are_read(client: Client) -> None:
    text = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: y}\ndata: {k: 'true'}\n"
    status, _, body = client.raw("POST", CONFIG_MAPS, text, Content_Type="application/yaml")
    assert (status, json.loads(body)["data"]) == (201, {"k": "true"})
    apply = f"{CONFIG_MAPS}/y?fieldManager=me&force=true"
    status, _, body = client.raw(
        "PATCH", apply, text.replace(b"true", b"no"), Content_Type="application/apply-patch+yaml"
    )
    assert (status, json.loads(body)["data"]) == (200, {"k": "no"})


def test_apply_that_creates_answers_created(client: Client) -> None:
    kind = "application/apply-patch+yaml"
    path = f"{CONFIG_MAPS}/n?fieldManager=me"
    assert client.call("PATCH", path, config_map("n"), kind)[0] == 201
    assert client.call("PATCH", path, config_map("n"), kind)[0] == 200


def test_invalid_object_is_a_status_with_causes(client: Client) -> None:
    body = {"metadata": {"name": "a"}, "spec": {"gpuCount": 0}}
    status, answer = client.call("POST", PROFILES, body)
    assert (status, answer["reason"]) == (422, "Invalid")
    assert answer["details"]["causes"][0]["field"] == "spec.gpuCount"
    assert answer["details"]["kind"] == "WorkloadProfile"


def test_unknown_fields_warn_or_are_refused(client: Client) -> None:
    body = json.dumps({"metadata": {"name": "a"}, "spec": {"gpuModle": "x"}}).encode()
    status, headers, _ = client.raw("POST", PROFILES, body)
    assert (status, headers["warning"]) == (201, '299 - "unknown field \\"spec.gpuModle\\""')
    status, answer = client.call("POST", f"{PROFILES}?fieldValidation=Strict", json.loads(body))
    assert status == 400
    assert 'unknown field "spec.gpuModle"' in answer["message"]


def test_duplicate_keys_are_refused_under_strict(client: Client) -> None:
    body = b'{"metadata": {"name": "d"}, "data": {"a": "1", "a": "2"}}'
    status, _, answer = client.raw("POST", f"{CONFIG_MAPS}?fieldValidation=Strict", body)
    assert status == 400
    assert b'duplicate field \\"a\\"' in answer
    status, headers, _ = client.raw("POST", CONFIG_MAPS, body)
    assert (status, "duplicate field" in headers["warning"]) == (201, True)


def test_list_pages_with_continue(client: Client) -> None:
    for index in range(5):
        client.call("POST", PROFILES, {"metadata": {"name": f"p{index}"}})
    _, first = client.call("GET", f"{PROFILES}?limit=3")
    assert first["kind"] == "WorkloadProfileList"
    assert first["metadata"]["remainingItemCount"] == 2
    token = first["metadata"]["continue"]
    _, second = client.call("GET", f"{PROFILES}?limit=3&continue={token}")
    found = [item["metadata"]["name"] for item in first["items"] + second["items"]]
    assert found == [f"p{index}" for index in range(5)]


def test_table_and_metadata_forms(client: Client) -> None:
    client.call("POST", PROFILES, {"metadata": {"name": "p"}})
    _, table = client.call("GET", PROFILES, Accept=TABLE)
    assert (table["kind"], table["columnDefinitions"][0]["name"]) == ("Table", "Name")
    assert table["rows"][0]["cells"][0] == "p"
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    _, metadata = client.call("GET", PROFILES, Accept=partial)
    assert metadata["kind"] == "PartialObjectMetadataList"
    assert set(metadata["items"][0]) == {"kind", "apiVersion", "metadata"}
    assert client.call("GET", PROFILES, Accept="text/html")[0] == 406


def test_scale_and_status_are_subresources(client: Client) -> None:
    template = {
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    path = "/apis/apps/v1/namespaces/default/deployments"
    assert client.call("POST", path, {"metadata": {"name": "d"}, "spec": spec})[0] == 201
    _, scale = client.call("GET", f"{path}/d/scale")
    assert (scale["kind"], scale["spec"]) == ("Scale", {"replicas": 1})
    scale["spec"]["replicas"] = 3
    assert client.call("PUT", f"{path}/d/scale", scale)[1]["spec"] == {"replicas": 3}
    assert client.call("GET", f"{path}/d/status")[1]["kind"] == "Deployment"
    assert client.call("GET", f"{PROFILES}/d/scale")[0] == 404


def test_binding_and_logs(client: Client) -> None:
    pods = "/api/v1/namespaces/default/pods"
    spec = {"containers": [{"name": "c", "image": "i"}]}
    client.call("POST", pods, {"metadata": {"name": "p"}, "spec": spec})
    binding = {"target": {"kind": "Node", "name": "n"}}
    assert client.call("POST", f"{pods}/p/binding", binding)[0] == 201
    assert client.call("POST", f"{pods}/p/binding", binding)[0] == 409
    selected = client.call("GET", f"{pods}?fieldSelector=spec.nodeName%3Dn")[1]["items"]
    assert [item["metadata"]["name"] for item in selected] == ["p"]
    assert client.raw("GET", f"{pods}/p/log")[2] == b"line 1\nline 2\n"
    assert client.raw("GET", f"{pods}/p/log?follow=true")[2] == b"line 1\nline 2\n"
    assert client.call("GET", f"{pods}/p/log?container=nope")[0] == 404
    assert client.call("GET", f"{pods}/nobody/log")[0] == 404


def test_delete_collection_takes_what_is_selected(client: Client) -> None:
    for name, label in (("a", "x"), ("b", "y")):
        client.call("POST", CONFIG_MAPS, {"metadata": {"name": name, "labels": {"l": label}}})
    status, deleted = client.call("DELETE", f"{CONFIG_MAPS}?labelSelector=l%3Dx")
    assert (status, len(deleted["items"])) == (200, 1)
    assert len(client.call("GET", CONFIG_MAPS)[1]["items"]) == 1


def test_dry_run_stores_nothing(client: Client) -> None:
    assert client.call("POST", f"{CONFIG_MAPS}?dryRun=All", config_map("a"))[0] == 201
    assert client.call("GET", f"{CONFIG_MAPS}/a")[0] == 404
    assert client.call("POST", f"{CONFIG_MAPS}?dryRun=Some", config_map("a"))[0] == 422


def test_access_review_allows(client: Client) -> None:
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    status, review = client.call("POST", path, {"spec": {}})
    assert (status, review["status"]) == (201, {"allowed": True})


# Watches.


def lines(client: Client, path: str, count: int, **headers: str) -> list[Any]:
    client.connection.request("GET", path, headers={**client.headers, **headers})
    response = client.connection.getresponse()
    found = [json.loads(response.readline()) for _ in range(count)]
    client.connection.close()
    return found


def test_watch_streams_a_line_per_event(client: Client, store: SQLiteStore) -> None:
    version = store.version
    client.call("POST", CONFIG_MAPS, config_map("a"))
    client.call("DELETE", f"{CONFIG_MAPS}/a")
    events = lines(client, f"{CONFIG_MAPS}?watch=true&resourceVersion={version}", 2)
    assert [event["type"] for event in events] == ["ADDED", "DELETED"]
    assert events[0]["object"]["metadata"]["name"] == "a"


def test_watch_of_a_table_sends_columns_once(client: Client, store: SQLiteStore) -> None:
    version = store.version
    for name in ("a", "b"):
        client.call("POST", CONFIG_MAPS, config_map(name))
    path = f"{CONFIG_MAPS}?watch=true&resourceVersion={version}"
    first, second = lines(client, path, 2, Accept=TABLE)
    assert first["object"]["kind"] == "Table"
    assert first["object"]["columnDefinitions"]
    assert second["object"]["columnDefinitions"] is None
    assert second["object"]["rows"][0]["cells"][0] == "b"


def test_watch_with_bookmarks_and_initial_events(client: Client) -> None:
    client.call("POST", CONFIG_MAPS, config_map("a"))
    query = (
        "watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
    )
    first, end, idle = lines(client, f"{CONFIG_MAPS}?{query}", 3)
    assert first["type"] == "ADDED"
    assert end["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert idle["type"] == "BOOKMARK"


def test_watch_ends_at_its_timeout(client: Client, store: SQLiteStore) -> None:
    path = f"{CONFIG_MAPS}?watch=true&resourceVersion={store.version}&timeoutSeconds=1"
    assert client.raw("GET", path)[2] == b""


def test_watch_from_a_lost_version_is_gone(client: Client) -> None:
    status, body = client.call("GET", f"{CONFIG_MAPS}?watch=true&resourceVersion=999999")
    assert (status, body["reason"]) == (410, "Expired")


def test_stopping_the_server_ends_streams(
    client: Client, server: ApiServer, store: SQLiteStore
) -> None:
    path = f"{CONFIG_MAPS}?watch=true&resourceVersion={store.version}"
    client.connection.request("GET", path, headers=client.headers)
    response = client.connection.getresponse()
    server.stop()
    try:
        rest = response.read()
    except (http.client.HTTPException, OSError):
        rest = b""
    assert rest == b""


# Odd requests.


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", 404),
        ("GET", "/api/v2/pods", 404),
        ("GET", "/api/v1/nothings", 404),
        ("GET", "/apis/tensor-fusion.ai/v1/namespaces/x/gpupools", 404),
        ("GET", "/api/v1/namespaces/default/pods/a/b/c", 404),
        ("GET", "/api/v1/namespaces/default/pods/..%2f", 400),
        ("GET", "/api/v1/namespaces/default/pods/%ff", 400),
        ("GET", "/api/v1/pods?limit=-1", 400),
        ("GET", "/api/v1/pods?limit=x", 400),
        ("GET", "/api/v1/pods?watch=maybe", 400),
        ("GET", "/api/v1/pods?labelSelector=%3D", 400),
        ("GET", "/api/v1/pods?resourceVersion=x", 400),
        ("GET", "/api/v1/pods?%ff=%ff", 400),
        ("POST", "/api/v1/pods", 405),
        ("PUT", "/api/v1/namespaces/default/pods", 405),
        ("BREW", "/api/v1/namespaces/default/pods", 405),
        ("DELETE", "/api/v1/namespaces", 405),
        ("POST", "/version", 405),
        ("PATCH", "/api/v1/namespaces/default/pods/p", 415),
    ],
)
def test_odd_request_is_a_clear_status(
    shared: Client, method: str, path: str, expected: int
) -> None:
    status, _, body = shared.raw(method, path)
    if status == 400 and not body.startswith(b"{"):
        return  # the HTTP parser itself refused the request line
    assert (status, json.loads(body)["kind"]) == (expected, "Status")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff",
        b'{"metadata": []}',
        b'{"metadata": {"name": 1}}',
        b'{"metadata": {"name": "a", "labels": {"x": 1}}}',
        b'{"metadata": {"name": "a", "finalizers": [1]}}',
        b'{"metadata": {"name": "a", "ownerReferences": [{"uid": 1}]}}',
        b'{"metadata": {"name": "a"}, "data": {"x": NaN}}',
        b'{"metadata": {"name": "a"}, "data": {"x": 1e999}}',
        b'{"metadata": {"name": "a"}, "data": {"x": 99999999999999999999999999}}',
        b'{"metadata": {"name": "a"}, "data": {"x": "\\ud800"}}',
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"[" * 100_000,
    ],
)
def test_body_that_cannot_be_read_is_refused(shared: Client, body: bytes) -> None:
    status, _, answer = shared.raw("POST", CONFIG_MAPS, body)
    assert 400 <= status < 500
    assert json.loads(answer)["kind"] == "Status"


def test_body_over_the_limit_is_refused(shared: Client) -> None:
    body = b'{"x":"' + b"a" * (3 * 1024 * 1024) + b'"}'
    shared.connection.putrequest("POST", CONFIG_MAPS)
    shared.connection.putheader("Authorization", shared.headers["Authorization"])
    shared.connection.putheader("Content-Length", str(len(body)))
    shared.connection.endheaders()
    response = shared.connection.getresponse()
    assert response.status == 413
    response.read()
    shared.connection.close()


def test_yaml_bombs_are_refused(shared: Client) -> None:
    text = b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    status, _, _ = shared.raw("POST", CONFIG_MAPS, text, Content_Type="application/yaml")
    assert status == 400
