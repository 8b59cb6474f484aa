"""Real processes of workers are frozen, moved, saved and brought back by a session and by the loop."""

import json
import os
import select
import signal
import subprocess
import sys
import time

import pytest
from native.machine import CONTEXT, GIB, MIB, TESTS

from tensorfusion.api import registry
from tensorfusion.clock import SystemClock
from tensorfusion.errors import BackendError
from tensorfusion.hypervisor.environment import process_environment
from tensorfusion.hypervisor.freeze_rules import FreezeRule
from tensorfusion.hypervisor.freezer import WorkerFreezer
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.spi.backend import NodeContext, Share, Tier, WorkerSpec
from tensorfusion.sqlite import SQLiteStore
from tensorfusion_simulated.backend import SimulatedBackend

SETTINGS = {
    "fidelity": "driver",
    "nodes": [{"name": "sim", "gpus": [{"model": "A100_SXM_80G", "count": 2}]}],
}

TENANT = """
import hashlib, random
init()
size = 16 * MIB
code, address = alloc(size)
ok(code)
ok(alloc(GIB := 1 << 30)[0])
host = C.create_string_buffer(random.Random(os.environ["SEED"]).randbytes(size), size)
ok(cuda.cuMemcpyHtoD_v2(C.c_uint64(address), host, C.c_size_t(size)))
saxpy = function("saxpy")
count = C.c_uint64(size // 8)
say(ready=1)
for line in sys.stdin:
    # Results depend on all that was computed before.
    ok(launch(saxpy, count, C.c_float(0.5), C.c_uint64(address), C.c_uint64(address + size // 2)))
    ok(cuda.cuMemcpyDtoH_v2(host, C.c_uint64(address), C.c_size_t(size)))
    uuid = (C.c_char * 16)()
    ok(cuda.cuDeviceGetUuid_v2(uuid, 0))
    say(digest=hashlib.sha256(host).hexdigest(), card=bytes(uuid).hex(), free=info()[0])
"""


class Tenant:
    def __init__(self, process):
        self.process = process
        self.pid = process.pid

    def ask(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def hear(self, seconds=20):
        assert select.select([self.process.stdout], [], [], seconds)[0], "no answer"
        return json.loads(self.process.stdout.readline())

    def work(self):
        self.ask()
        return self.hear()

    def quiet(self, seconds=0.2):
        return not select.select([self.process.stdout], [], [], seconds)[0]


class Node:
    """A node of the fidelity ``driver``, its sessions one after the other, and tenants' processes."""

    def __init__(self, folder):
        self.folder = folder
        self.running = []
        self.session = None
        self.open()

    def open(self):
        backend = SimulatedBackend()
        backend.nodes(SETTINGS)
        self.backend = backend
        if self.session is not None:
            self.session.close()
        context = NodeContext(
            node="sim", state_dir=self.folder, clock=SystemClock(), settings=SETTINGS
        )
        self.session = backend.open(context)
        self.cards = self.session.discover()
        return self.session

    def spec(self, name, card=0, percent=50, **changes):
        gflops = self.cards[card].compute_gflops * percent // 100
        values = {
            "worker": name, "namespace": "ns", "name": name, "workload": "w",
            "devices": (self.cards[card].uuid,), "share": Share(gflops, 4 * GIB, gflops, 4 * GIB),
        }  # fmt: skip
        return WorkerSpec(**{**values, **changes})

    def start(self, spec, code=TENANT, **environment):
        prepared = self.session.prepare(spec)
        process = subprocess.Popen(
            [sys.executable, "-c", "from native.actor import *\n" + code],
            env=process_environment(os.environ, prepared.env)
            | {"PYTHONPATH": str(TESTS), "SEED": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        tenant = Tenant(process)
        assert tenant.hear() == {"ready": 1}
        return tenant

    def used(self, card=0):
        return self.session.metrics()[card].vram_used_bytes

    def close(self):
        for process in self.running:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
        self.session.close()


@pytest.fixture
def node(build, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORFUSION_NATIVE_BUILD", str(build))
    node = Node(tmp_path / "node")
    yield node
    node.close()


@pytest.fixture
def expected(node):
    """What the tenant computes when nobody disturbs it."""
    tenant = node.start(node.spec("undisturbed", card=1))
    digests = [tenant.work()["digest"] for _ in range(4)]
    tenant.process.kill()
    tenant.process.wait()
    node.session.release("undisturbed")
    assert len(set(digests)) == 4
    return digests


@pytest.mark.parametrize("tier", [Tier.WARM, Tier.COLD])
def test_results_are_those_of_an_undisturbed_run(node, expected, tier):
    tenant = node.start(node.spec("w"))
    seen = [tenant.work()["digest"]]
    for _ in range(3):
        node.session.freeze("w", tier)
        assert node.used() == 0
        [row] = node.session.frozen()
        assert (row.tier, row.waiting) == (tier, False)
        assert row.vram_bytes == CONTEXT + GIB + 16 * MIB
        tenant.ask()
        assert tenant.quiet()
        assert node.session.frozen()[0].waiting is True
        assert 0 < node.session.thaw("w") < 10
        seen.append(tenant.hear()["digest"])
    assert seen == expected
    assert node.used() == row.vram_bytes
    images = list((node.folder / "native" / "frozen").rglob("*"))
    assert images == []


def test_what_the_limiter_counts_stays(node):
    """Frozen bytes count against the worker's own limit, and it is told so afterwards."""
    tenant = node.start(node.spec("w"))
    before = tenant.work()["free"]
    node.session.freeze("w", Tier.WARM)
    [row] = node.session.usage()
    assert row.vram_bytes == 0
    other = node.start(node.spec("other"))
    assert other.work()["free"] == before
    node.session.thaw("w")
    assert tenant.work()["free"] == before
    assert {r.worker: r.vram_bytes for r in node.session.usage()} == dict.fromkeys(
        ("w", "other"), CONTEXT + GIB + 16 * MIB
    )


def test_a_snapshot_is_resumed_on_another_card_after_a_restart(node, expected):
    tenant = node.start(node.spec("w"))
    seen = [tenant.work()]
    target = node.folder / "snapshots" / "w"
    node.session.snapshot("w", target)
    assert node.used(0) == 0
    assert sum(f.stat().st_size for f in target.iterdir()) >= 16 * MIB
    for call in (lambda: node.session.freeze("w", Tier.WARM), lambda: node.session.thaw("w")):
        with pytest.raises(BackendError, match="waits for `resume`"):
            call()
    session = node.open()
    tenant.ask()
    assert tenant.quiet()
    session.prepare(node.spec("w", card=1))
    session.resume("w", target)
    seen += [tenant.hear(), tenant.work(), tenant.work()]
    assert [row["digest"] for row in seen] == expected
    assert len({row["card"] for row in seen}) == 2
    assert len({row["free"] for row in seen}) == 1
    assert (node.used(0), node.used(1)) == (0, CONTEXT + GIB + 16 * MIB)
    [row] = session.usage()
    assert row.uuid == node.cards[1].uuid
    assert row.vram_bytes == node.used(1)


def test_wrong_snapshots_are_refused(node, tmp_path):
    node.start(node.spec("w"))
    node.session.prepare(node.spec("other"))
    with pytest.raises(BackendError, match="holds no snapshot"):
        node.session.resume("w", tmp_path)
    node.session.snapshot("w", tmp_path / "s")
    with pytest.raises(BackendError, match="is of worker w, not of other"):
        node.session.resume("other", tmp_path / "s")
    node.session.prepare(node.spec("w", devices=tuple(c.uuid for c in node.cards)))
    with pytest.raises(BackendError, match="of 1 devices, it has 2 now"):
        node.session.resume("w", tmp_path / "s")


def test_all_processes_of_a_worker_or_none(node):
    good = node.start(node.spec("w"))
    bad = node.start(node.spec("w"), TF_SIM_FAIL_CHECKPOINT="1")
    before = [good.work()["card"], bad.work()["card"]]
    used = node.used()
    with pytest.raises(BackendError, match=f"checkpoint of process {bad.pid}: out of memory"):
        node.session.freeze("w", Tier.WARM)
    assert node.session.frozen() == []
    assert node.used() == used
    assert [good.work()["card"], bad.work()["card"]] == before


def test_two_processes_go_and_come_back_together(node):
    pair = [node.start(node.spec("w")), node.start(node.spec("w"))]
    node.session.freeze("w", Tier.WARM)
    assert node.session.frozen()[0].vram_bytes == 2 * (CONTEXT + GIB + 16 * MIB)
    pair[0].process.kill()
    pair[0].process.wait()
    pair[1].ask()
    assert pair[1].quiet()
    node.session.thaw("w")
    assert pair[1].hear()["digest"]
    assert node.used() == CONTEXT + GIB + 16 * MIB
    node.session.freeze("w", Tier.COLD)
    pair[1].process.kill()
    pair[1].process.wait()
    assert node.session.frozen() == []
    node.session.release("w")
    assert not list((node.folder / "native" / "frozen").rglob("image-*"))


def test_without_room_it_stays_frozen_and_says_how_much_is_missing(node):
    tenant = node.start(node.spec("w"))
    node.session.freeze("w", Tier.WARM)
    code = "init()\nheld = alloc(79 << 30)\nok(held[0])\nsay(ready=1)\nsys.stdin.readline()"
    other = node.start(node.spec("other", isolation="shared"), code)
    tenant.ask()
    assert tenant.quiet()
    with pytest.raises(BackendError, match=r"has \d+ bytes free, \d+ are needed"):
        node.session.thaw("w")
    assert node.session.frozen()[0].waiting is True
    other.process.kill()
    other.process.wait()
    node.session.thaw("w")
    assert tenant.hear()["digest"]


def test_work_that_does_not_end_is_left_running(node):
    tenant = node.start(
        node.spec("w"),
        "init()\nsay(ready=1)\nok(launch(function('spin_us'), C.c_uint64(8_000_000)))\n"
        "ok(cuda.cuCtxSynchronize())\nsay(done=1)\nsys.stdin.readline()",
    )
    time.sleep(0.2)
    with pytest.raises(BackendError, match="not done within the time"):
        node.session.freeze("w", Tier.WARM)
    assert node.session.frozen() == []
    assert tenant.hear() == {"done": 1}


def test_the_share_is_the_same_after_a_pause(node):
    """Neither the pause nor what was under way when it came is charged."""
    tenant = node.start(
        node.spec("w", percent=25),
        """
init()
kernel = function("spin_500us")
say(ready=1)
while True:
    ok(launch(kernel))
""",
    )

    def share():
        before = node.session.usage()[0].busy_seconds_total
        since = time.monotonic()
        time.sleep(1.5)
        spent = node.session.usage()[0].busy_seconds_total - before
        return 100 * spent / (time.monotonic() - since)

    time.sleep(1.5)
    assert share() == pytest.approx(25, abs=5)
    for _ in range(3):
        node.session.freeze("w", Tier.WARM)
        time.sleep(0.7)
        node.session.thaw("w")
    time.sleep(0.5)
    assert share() == pytest.approx(25, abs=5)
    assert tenant.process.poll() is None


def test_the_loop_freezes_who_idles_and_thaws_who_works(node, tmp_path):
    store = SQLiteStore(tmp_path / "state.db", clock=SystemClock())
    instruments = Instruments()
    specs = [node.spec("idle", qos="low"), node.spec("kept", qos="high")]
    tenants = [node.start(spec) for spec in specs]
    freezer = WorkerFreezer(
        {"sim": node.session},
        node.backend.capabilities(),
        promised=lambda _node: specs,
        rules=lambda _node: {"low": FreezeRule(to_memory=1.0, to_disk=2.5)},
        pool_of=lambda _node: "p",
        pod_of=lambda _spec: None,
        store=store,
        events=EventRecorder(store, registry.EVENTS, "test", SystemClock()),
        instruments=instruments,
        clock=SystemClock(),
    )

    def run_until(check):
        until = time.monotonic() + 15
        while not check():
            assert time.monotonic() < until
            freezer.run_once()
            time.sleep(0.05)

    def tiers():
        return {row.worker: row.tier for row in node.session.frozen()}

    run_until(lambda: tiers() == {"idle": Tier.WARM})
    run_until(lambda: tiers() == {"idle": Tier.COLD})
    tenants[0].ask()
    run_until(lambda: tiers() == {})
    assert tenants[0].hear()["digest"] == tenants[1].work()["digest"]
    text = instruments.exposition().decode()
    assert 'thaw_seconds_count{node="sim",pool="p",tier="cold"} 1.0' in text
    store.close()


def test_a_stopped_process_is_given_up_and_not_left_locked(node):
    tenant = node.start(node.spec("w"))
    os.kill(tenant.pid, signal.SIGSTOP)
    with pytest.raises(BackendError, match="not done within the time"):
        node.session.freeze("w", Tier.WARM)
    os.kill(tenant.pid, signal.SIGCONT)
    assert tenant.work()["digest"]
