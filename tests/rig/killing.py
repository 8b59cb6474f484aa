"""Kill a control plane at random moments under load, and prove that nothing was lost or leaked.

Each round starts the program on the same data folder, changes things through the wire from
several threads, kills the process with SIGKILL at a random moment, and looks at what is left:

- the decision log replays, and whatever it holds for a bound pod is what runs after the restart;
- after the restart every acknowledged pod exists and reaches its state, every deleted one is gone;
- the ledger in memory, the replay of the log and the rebuild from the pods have one digest, and
  a recount finds no GPU promised twice.
"""

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import decode
from tensorfusion.api.registry import PODS as PODS_KIND
from tensorfusion.app.snapshot import engine_from
from tensorfusion.model.allocation import Allocation
from tensorfusion.model.decision_log import Replay, replay
from tensorfusion.scheduling.placer import rebuild
from tensorfusion.sqlite import SQLiteStore
from tensorfusion_plugins.policies import tensorfusion_placement_policies

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from scale import Client

SETTLE_SECONDS = 30.0
POLICIES = {policy.name: policy for policy in tensorfusion_placement_policies()}
PODS = "/api/v1/namespaces/default/pods"


@dataclass
class Acknowledged:
    """What the server said yes to."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    created: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    """Names whose last request got no answer: either outcome is right."""


@dataclass
class Report:
    """Figures of a run."""

    rounds: int = 0
    created: int = 0
    deleted: int = 0
    repairs: int = 0
    torn_lines: int = 0


class Round:
    """One life of the control plane."""

    def __init__(self, data: Path, seed: int, known: Acknowledged) -> None:
        self.data = data
        self.random = random.Random(seed)
        self.known = known
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Client:
        """Start the program and wait until it is ready."""
        with (self.data / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tensorfusion", "up", "--data", str(self.data)),
                    *("--config", str(self.data / "settings.yaml")),
                ],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError((self.data / "log").read_text()[-3000:])
            client: Client | None = None
            try:
                client = Client(self.data)
                if client.request("GET", "/readyz")[0] == 200:
                    return client
            except (OSError, KeyError, TypeError, http.client.HTTPException):
                pass
            if client is not None:
                client.close()
            time.sleep(0.02)
        raise AssertionError("the control plane was not ready in 60 s")

    def load(self, seconds: float) -> None:
        """Change things from three threads, then kill the process in the middle of it."""
        stop = threading.Event()
        threads = [
            threading.Thread(target=self._work, args=(stop, self.random.random())) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        stop.set()
        for thread in threads:
            thread.join()

    def _work(self, stop: threading.Event, seed: float) -> None:
        chance = random.Random(seed)
        client = Client(self.data)
        try:
            while not stop.is_set():
                with self.known.lock:
                    alive = sorted(self.known.created - self.known.deleted - self.known.unknown)
                if alive and (chance.random() < 0.45 or len(alive) > 60):
                    self._delete(client, chance.choice(alive))
                else:
                    self._create(client, f"p-{chance.getrandbits(48):012x}", chance)
        except (OSError, http.client.HTTPException):
            return  # the server was killed
        finally:
            client.close()

    def _create(self, client: Client, name: str, chance: random.Random) -> None:
        amounts = {
            "tflops-request": str(chance.randint(1, 20)),
            "vram-request": f"{chance.randint(1, 6)}Gi",
        }
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "labels": {"tensor-fusion.ai/enabled": "true"},
                "annotations": {f"tensor-fusion.ai/{k}": v for k, v in amounts.items()},
            },
            "spec": {"containers": [{"name": "main", "image": "busybox"}]},
        }
        with self.known.lock:
            self.known.unknown.add(name)
        status, answer = client.request("POST", PODS, json.dumps(body).encode())
        assert status == 201, answer
        with self.known.lock:
            self.known.unknown.discard(name)
            self.known.created.add(name)

    def _delete(self, client: Client, name: str) -> None:
        with self.known.lock:
            self.known.unknown.add(name)
        status, answer = client.request("DELETE", f"{PODS}/{name}")
        assert status in (200, 202, 404), answer
        with self.known.lock:
            self.known.unknown.discard(name)
            self.known.deleted.add(name)


def prepare(data: Path) -> None:
    """Write the settings: four nodes of four A100, nothing that slows a round down."""
    group = {"model": "A100_SXM_80G", "count": 4}
    settings = {
        "backend": "simulated",
        "sample_seconds": 5.0,
        "log_level": "warning",
        "plugin_settings": {
            "simulated": {"nodes": [{"name": "node", "count": 4, "gpus": [group]}]}
        },
    }
    (data / "settings.yaml").write_text(yaml.safe_dump(settings))


def run(data: Path, rounds: int, seed: int, say: Any = None) -> Report:
    """Run the rounds; raises AssertionError at the first finding."""
    prepare(data)
    known = Acknowledged()
    report = Report()
    logged: dict[str, Allocation] = {}
    for number in range(rounds):
        life = Round(data, seed + number, known)
        client = life.start()
        try:
            check(data, client, known, logged)
            life.load(life.random.uniform(0.0, 0.8))
        finally:
            client.close()
            if life.process is not None and life.process.poll() is None:
                life.process.kill()
                life.process.wait()
        past = read_log(data)
        bound = bound_pods(data)
        # A placement whose binding was not committed was never acknowledged: it may be undone.
        logged = {k: v for k, v in past.ledger.allocations.items() if k in bound}
        report.torn_lines += bool(past.torn_bytes)
        report.rounds = number + 1
        if say is not None:
            say(report, known)
    report.created, report.deleted = len(known.created), len(known.deleted)
    report.repairs = (data / "log").read_text().count('"msg": "recovered"')
    return report


def read_log(data: Path) -> Replay:
    """Replay the decision log."""
    with (data / "decisions.log").open("rb") as lines:
        return replay(lines)


def bound_pods(data: Path) -> set[str]:
    """Uids of the pods that the dead process left bound."""
    store = SQLiteStore(data / "state.db")
    pods = store.list(PODS_KIND).items
    store.close()
    return {p["metadata"]["uid"] for p in pods if p["spec"].get("nodeName")}


def check(data: Path, client: Client, known: Acknowledged, logged: dict[str, Allocation]) -> None:
    """Check a control plane that has just been restarted."""
    pods = settle(client, known)
    names = {p["metadata"]["name"] for p in pods}
    lost = known.created - known.deleted - known.unknown - names
    assert not lost, f"acknowledged pods are gone: {sorted(lost)[:5]}"
    with known.lock:
        # What was in flight is now decided.
        known.created |= names
        known.deleted |= known.unknown - names
        known.unknown.clear()
    live = client.get("/tensorfusion/ledger")
    assert live["findings"] == [], live["findings"]
    past = read_log(data)
    objects = [
        obj for path in ("nodes",) for obj in typed(client.get(f"/api/v1/{path}")["items"], "Node")
    ]
    for plural, kind in (("gpus", "GPU"), ("gpunodes", "GPUNode"), ("gpupools", "GPUPool")):
        items = client.get(f"/apis/tensor-fusion.ai/v1/{plural}")["items"]
        objects += typed(items, kind)
    devices = {
        uuid: usage.device
        for uuid, usage in engine_from(objects, POLICIES).ledger.devices.items()
        if usage.device is not None
    }
    rebuilt = rebuild([decode(Pod, p) for p in pods], devices)
    assert rebuilt == dict(past.ledger.allocations), "log and pods disagree"
    assert f"{past.ledger.digest:032x}" == live["digest"], "log and memory disagree"
    for key, allocation in logged.items():
        if key in rebuilt:
            assert rebuilt[key] == allocation, (
                f"{allocation.name} changed over the kill: {allocation} became {rebuilt[key]}"
            )


def typed(items: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Give list items the kind that lists leave out."""
    return [{**item, "kind": kind} for item in items]


def settle(client: Client, known: Acknowledged) -> list[dict[str, Any]]:
    """Wait until every pod that stays runs and every deleted one is gone; return the pods."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        pods = typed(client.get(PODS)["items"], "Pod")
        left = [p["metadata"]["name"] for p in pods if "deletionTimestamp" in p["metadata"]]
        left += [
            p["metadata"]["name"] for p in pods if p.get("status", {}).get("phase") != "Running"
        ]
        left += sorted(known.deleted & {p["metadata"]["name"] for p in pods})
        ledger = client.get("/tensorfusion/ledger")["allocations"]
        if not left and ledger == len(pods):
            return pods
        if time.monotonic() > deadline:
            raise AssertionError(
                f"not settled after {SETTLE_SECONDS} s: {len(left)} pods such as {left[:3]},"
                f" {ledger} allocations for {len(pods)} pods"
            )
        time.sleep(0.05)
