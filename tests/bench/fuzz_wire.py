"""Throws mutated requests at the embedded server: each must end in a 2xx or a 4xx ``Status``.

Run it with a number of requests and a seed::

    python tests/bench/fuzz_wire.py --requests 100000 --seed 1

It prints the answers by status code and exits with 1 at the first that breaks the promise. Data
must survive: a few objects that no request names are compared at the end, after a restart.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tensorfusion.api.registry import CONFIG_MAPS, NAMESPACES, RESOURCES
from tensorfusion.apiserver.app import Application, Seams
from tensorfusion.apiserver.security import Credentials, ensure_credentials
from tensorfusion.clock import SystemClock
from tensorfusion.sqlite import SQLiteStore

ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**70), 1e308, 0.1, "", "x", "\x00",
    "\ud800", "é" * 300, "a" * 70_000, [], {}, [[]], [None], {"": ""}, {"a": None}, "NaN", "1",
    "../..", "default", "10Gi", "-1", "1e1000000000", "${x}", [1] * 500, {"$patch": "delete"},
    [{"$patch": "replace"}], {"name": 1}, "2020-01-01T00:00:00Z",
]  # fmt: skip
ODD_TEXTS = ["", "%", "%00", "%ff", "%2e%2e", "a/b", "*", "x" * 5_000, "é", "default", "-1", "true",
             "1" * 40, "a in (b", "a=b,c", "metadata.name=x", "=", "!", "All", "Strict", "\\", "'\""]  # fmt: skip
MEDIA_TYPES = [
    "application/json", "application/yaml", "application/json-patch+json", "text/plain", "",
    "application/merge-patch+json", "application/strategic-merge-patch+json", "a;b;c", "*/*",
    "application/apply-patch+yaml", "application/vnd.kubernetes.protobuf", "application/cbor",
    "application/json;as=Table;v=v1;g=meta.k8s.io", "application/json; charset=utf-16",
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", "application/json;as=X",
]  # fmt: skip
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "BREW"]
PARAMETERS = [
    "watch", "limit", "continue", "labelSelector", "fieldSelector", "resourceVersion", "dryRun",
    "resourceVersionMatch", "fieldValidation", "fieldManager", "force", "timeoutSeconds", "pretty",
    "allowWatchBookmarks", "sendInitialEvents", "propagationPolicy", "gracePeriodSeconds", "x",
    "orphanDependents", "includeObject", "tailLines", "follow", "container",
]  # fmt: skip
POD_SPEC = {
    "containers": [
        {
            "name": "main",
            "image": "x",
            "env": [{"name": "A", "value": "1"}],
            "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
        }
    ],
    "tolerations": [{"key": "x", "operator": "Exists"}],
}
SPECS: dict[str, Any] = {
    "Pod": {"spec": POD_SPEC},
    "Deployment": {
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": POD_SPEC},
        }
    },
    "ConfigMap": {"data": {"a": "1"}},
    "Secret": {"data": {"a": "YQ=="}},
    "WorkloadProfile": {
        "spec": {
            "replicas": 2,
            "qos": "high",
            "resources": {"requests": {"tflops": "10", "vram": "1Gi"}},
            "gangScheduling": {"minMembers": 2},
        }
    },
    "Node": {"status": {"capacity": {"cpu": "1"}}},
    "Event": {"involvedObject": {"kind": "Pod", "name": "x"}, "reason": "R", "message": "m"},
}


class Failure(AssertionError):
    """A request whose answer breaks the promise."""


class Fuzzer:
    """Makes one mutated request per seed and judges the answer."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "store.db"
        self.store = SQLiteStore(self.path, ring_events=500)
        self.credentials: Credentials = ensure_credentials(folder / "data", SystemClock())
        self.application = Application(self.store, self.credentials, "https://127.0.0.1:1", Seams())
        self.store.create(NAMESPACES, {"metadata": {"name": "untouched-canary"}})
        self.canaries = [
            self.store.create(
                CONFIG_MAPS,
                {"metadata": {"name": f"c{i}"}, "data": {"n": str(i)}},
                "untouched-canary",
            )
            for i in range(5)
        ]
        self.answers: Counter[int] = Counter()

    def request(self, choose: random.Random) -> tuple[str, bytes, bytes, dict[bytes, bytes], bytes]:
        """Return method, path, query, headers and body of a mutated request."""
        resource = choose.choice(RESOURCES)
        name = f"n{choose.randrange(6)}"
        root = f"/apis/{resource.api_version}" if resource.group else "/api/v1"
        if resource.namespaced:
            root += f"/namespaces/{choose.choice(['default'] * 9 + ['nowhere'])}"
        collection = f"{root}/{resource.plural}"
        obj: Any = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name, "labels": {"a": "b"}, "annotations": {"c": "d"}},
            **SPECS.get(resource.kind, {"spec": {}}),
        }
        method = choose.choice(["GET", "POST", "POST", "PUT", "PATCH", "PATCH", "PATCH", "DELETE"])
        kind = "application/json"
        path = collection if method == "POST" or choose.random() < 0.2 else f"{collection}/{name}"
        if path != collection and choose.random() < 0.2:
            path += "/" + choose.choice(["status", "status", "scale", "binding", "log", "exec"])
        if method == "PATCH":
            kind = choose.choice(MEDIA_TYPES[2:3] + MEDIA_TYPES[5:10])
            if kind == "application/json-patch+json":
                obj = [{"op": "add", "path": "/metadata/labels/x", "value": "y"}]
            else:
                obj = {**obj, "metadata": {"labels": {"x": name}}}
        query = ["fieldManager=f&force=true"] if kind == "application/apply-patch+yaml" else []
        if choose.random() < 0.3:
            for _ in range(choose.randrange(1, 4)):
                parameter = choose.choice(PARAMETERS)
                query.append(f"{parameter}={choose.choice(ODD_TEXTS)}")
        headers = {
            b"host": b"127.0.0.1",
            b"authorization": b"Bearer " + self.credentials.token.encode(),
            b"content-type": kind.encode(),
        }
        body = b"" if method == "GET" else self._body(choose, obj)
        return self._mangle(choose, method, path, "&".join(query), headers, body)

    def _body(self, choose: random.Random, obj: Any) -> bytes:
        for _ in range(choose.randrange(3)):
            obj = mutate(choose, obj)
        text = json.dumps(obj)
        body = text.encode("utf-8", "surrogatepass")
        if choose.random() < 0.15:
            raw = bytearray(body)
            for _ in range(choose.randrange(1, 6)):
                raw[choose.randrange(len(raw))] = choose.randrange(256)
            body = bytes(raw)
        if choose.random() < 0.05:
            cut = choose.randrange(len(body))
            body = choose.choice(
                [body[:cut], body + body, body[:cut] + body, b"[" * 3_000, b"\xff"]
            )
        return body

    def _mangle(
        self,
        choose: random.Random,
        method: str,
        path: str,
        query: str,
        headers: dict[bytes, bytes],
        body: bytes,
    ) -> tuple[str, bytes, bytes, dict[bytes, bytes], bytes]:
        if choose.random() < 0.1:
            method = choose.choice(METHODS)
        if choose.random() < 0.05:
            parts = path.split("/")
            parts[choose.randrange(len(parts))] = choose.choice(ODD_TEXTS)
            path = "/".join(parts)
        if choose.random() < 0.08:
            headers[b"content-type"] = choose.choice(MEDIA_TYPES).encode()
        if choose.random() < 0.08:
            headers[b"accept"] = choose.choice(MEDIA_TYPES).encode()
        if choose.random() < 0.05:
            odd = bytes(choose.randrange(128, 256) for _ in range(5))
            headers[
                choose.choice([b"user-agent", b"accept", b"host", b"authorization", b"origin"])
            ] = odd
        if choose.random() < 0.02:
            headers[b"content-length"] = choose.choice([b"999999999999999999999", b"-1", b"x"])
        safe = "/%"
        raw_path = quote(path, safe=safe).encode()
        raw_query = quote(query, safe="/%=&,()!'\"").encode()
        return method, raw_path, raw_query, headers, body

    async def send(
        self, method: str, path: bytes, query: bytes, headers: dict[bytes, bytes], body: bytes
    ) -> tuple[int, bytes]:
        """Give one request to the application; a stream is left after its first chunk."""
        state: dict[str, Any] = {"status": 0, "body": b""}
        gone = asyncio.Event()
        bodies = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if bodies:
                return bodies.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def collect(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
            else:
                state["body"] += message.get("body", b"")
                if message.get("more_body"):
                    gone.set()

        scope = {
            "type": "http",
            "method": method,
            "path": path.decode("latin-1"),
            "raw_path": path,
            "query_string": query,
            "headers": list(headers.items()),
        }
        await self.application(scope, receive, collect)
        return state["status"], state["body"]

    async def one(self, seed: int) -> int:
        """Send the request of a seed and judge its answer."""
        request = self.request(random.Random(seed))
        status, body = await self.send(*request)
        self.answers[status] += 1
        good = 200 <= status < 300
        if 400 <= status < 500:
            document = json.loads(body)
            good = document["kind"] == "Status" and document["code"] == status
            good = good and bool(document["message"])
        if not good:
            raise Failure(
                f"seed {seed}: {request[:4]!r} {request[4][:2000]!r} -> {status} {body[:500]!r}"
            )
        return status

    def check_data(self) -> None:
        """Compare what no request touched, before and after a restart of the store."""
        for _ in range(2):
            for canary in self.canaries:
                found = self.store.get(CONFIG_MAPS, canary["metadata"]["name"], "untouched-canary")
                if found != canary:
                    raise Failure(f"{canary['metadata']['name']} changed to {found}")
            self.store.close()
            self.store = SQLiteStore(self.path)
        self.store.close()


def mutate(choose: random.Random, value: Any) -> Any:
    """Return a copy of a JSON value with one place changed."""
    if isinstance(value, dict) and value and choose.random() < 0.85:
        key = choose.choice(sorted(value))
        changed = dict(value)
        action = choose.random()
        if action < 0.1:
            del changed[key]
        elif action < 0.2:
            changed[choose.choice(["x", "", "a" * 300, "é", "$patch", "status", "metadata"])] = (
                value[key]
            )
        else:
            changed[key] = mutate(choose, value[key])
        return changed
    if isinstance(value, list) and value and choose.random() < 0.8:
        position = choose.randrange(len(value))
        return [*value[:position], mutate(choose, value[position]), *value[position + 1 :]]
    return choose.choice(ODD_VALUES)


def run(folder: Path, requests: int, first_seed: int) -> Counter[int]:
    """Send requests of consecutive seeds and check the data.

    Returns:
        How many answers had each status code.

    Raises:
        Failure: An answer broke the promise, or data was lost.
    """

    async def work() -> None:
        for seed in range(first_seed, first_seed + requests):
            await fuzzer.one(seed)

    fuzzer = Fuzzer(folder)
    try:
        asyncio.run(work())
        fuzzer.check_data()
    finally:
        fuzzer.store.close()
    return fuzzer.answers


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            answers = run(Path(folder), arguments.requests, arguments.seed)
        except Failure as failure:
            print(failure)
            return 1
    print(f"{arguments.requests} requests, seed {arguments.seed}:")
    for status, count in sorted(answers.items()):
        print(f"  {status}: {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
