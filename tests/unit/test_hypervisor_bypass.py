"""Which processes are examined when, and what a pod is told of those that go past the limiter."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tensorfusion.api import registry
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import decode
from tensorfusion.hypervisor.bypass import CONDITION, FIRST_LOOKS, IN_TURN, BypassWatch
from tensorfusion.hypervisor.pod_report import PodReport
from tensorfusion.hypervisor.registry import Origin
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.spi.backend import Share, WorkerSpec
from tensorfusion.spi.limited import Attachment, TellsAttachment
from tensorfusion.sqlite import SQLiteStore
from tensorfusion.testing.clock import FakeClock
from tensorfusion_native import processes

METRIC = "tensorfusion_worker_limiter_bypassed_processes"


class Machine:
    """A node with made-up processes."""

    def __init__(self, tmp_path):
        self.proc = tmp_path / "proc"
        self.proc.mkdir()
        (self.proc / "self").mkdir()
        self.origins, self.leaders, self.attachments, self.examined = {}, {}, {}, []
        self.clock = FakeClock(1000.0)
        self.store = SQLiteStore(tmp_path / "state.db", clock=self.clock)
        self.store.create(registry.NAMESPACES, {"metadata": {"name": "ns"}})
        self.specs = []
        self.instruments = Instruments()
        self.restart()

    def restart(self):
        events = EventRecorder(self.store, registry.EVENTS, "test", self.clock)
        self.watch = BypassWatch(
            self,
            origin=lambda pid: self.origins[pid],
            led_by=lambda pid: self.leaders.get(pid, ""),
            specs=lambda: self.specs,
            labels=lambda spec: ("pool", "n1", spec.namespace, spec.workload, spec.name),
            report=PodReport(self.pod_of, self.store, events, self.clock),
            instruments=self.instruments,
            clock=self.clock,
            proc=self.proc,
        )

    def attachment(self, _worker, pid):
        self.examined.append(pid)
        return self.attachments.get(pid, Attachment.LIMITED)

    def pod_of(self, spec):
        return decode(Pod, self.store.get(registry.PODS, spec.name, spec.namespace))

    def add_worker(self, name):
        self.specs.append(
            WorkerSpec(
                worker=name, namespace="ns", name=name, workload="w", devices=("GPU-1",),
                share=Share(10, 100, 20, 100),
            )
        )  # fmt: skip
        container = {"name": "main", "image": "none"}
        pod = {"metadata": {"name": name, "namespace": "ns"}, "spec": {"containers": [container]}}
        self.store.create(registry.PODS, pod, "ns")

    def start(self, pid, worker="", attachment=Attachment.LIMITED, *, parent=1, session=0):
        (self.proc / str(pid)).mkdir()
        self.origins[pid] = Origin(parent, session, worker)
        self.attachments[pid] = attachment

    def end(self, pid):
        (self.proc / str(pid)).rmdir()

    def look(self, times=1):
        for _ in range(times):
            self.examined = []
            self.watch.look()

    def condition(self, name):
        status = self.store.get(registry.PODS, name, "ns").get("status", {})
        found = [c for c in status.get("conditions", ()) if c["type"] == CONDITION]
        return (found[0]["status"], found[0]["message"]) if found else None

    def events(self):
        return [e["reason"] for e in self.store.list(registry.EVENTS, "ns").items]

    def counted(self):
        text = self.instruments.exposition().decode()
        return {
            sample.labels["worker"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == METRIC
        }


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    assert isinstance(made, TellsAttachment)
    made.add_worker("good")
    made.add_worker("bad")
    return made


def test_a_process_without_the_limiter_is_told_until_it_ends(machine):
    machine.start(1)
    machine.start(10, "good")
    machine.start(20, "bad", Attachment.BYPASSED)
    machine.look()
    assert machine.condition("bad") == (
        "True",
        "processes that have the driver open without the limiter: 20",
    )
    assert machine.condition("good") is None
    assert machine.counted() == {"good": 0, "bad": 1}
    machine.look(3)
    assert machine.events() == ["LimiterBypassed"]  # once for the same process

    machine.start(21, "bad", Attachment.BYPASSED)
    machine.look()
    assert machine.condition("bad")[1].endswith(": 20, 21")
    machine.end(20)
    machine.end(21)
    machine.look()
    assert machine.condition("bad")[0] == "False"
    assert machine.counted() == {"good": 0, "bad": 0}


def test_one_that_opens_the_driver_later_is_found(machine):
    machine.start(20, "bad", Attachment.NONE)
    machine.look(FIRST_LOOKS + 5)
    assert machine.condition("bad") is None
    machine.attachments[20] = Attachment.BYPASSED
    machine.look()
    assert machine.condition("bad")[0] == "True"


def test_nobody_is_told_of_a_worker_that_runs_without_the_limiter(machine):
    machine.start(20, "bad", Attachment.EXEMPT)
    machine.look()
    assert machine.condition("bad") is None


def test_who_is_settled_is_examined_in_turns_and_nobody_else(machine):
    limited = list(range(100, 150))
    for pid in limited:
        machine.start(pid, "good")
    for pid in range(200, 400):
        machine.start(pid)
    machine.look(FIRST_LOOKS)
    seen = []
    for _ in range(-(-len(limited) // IN_TURN)):
        machine.look()
        assert len(machine.examined) == IN_TURN
        seen += machine.examined
    assert set(seen) == set(limited)
    # One became another program, with the same number.
    machine.attachments[120] = Attachment.BYPASSED
    machine.look(-(-len(limited) // IN_TURN))
    assert machine.condition("good")[0] == "True"


def test_one_that_says_nothing_of_itself_is_of_its_session_or_its_parent(machine):
    machine.start(20, "", Attachment.BYPASSED, session=19)
    machine.start(21, "", Attachment.BYPASSED, session=21, parent=20)
    machine.look()
    assert machine.counted() == {"good": 0, "bad": 0}
    machine.leaders[19] = "bad"  # the pod is known a moment later
    machine.look(2)
    assert machine.counted() == {"good": 0, "bad": 2}


def test_what_an_earlier_run_told_is_taken_back(machine):
    machine.start(20, "bad", Attachment.BYPASSED)
    machine.look()
    machine.end(20)
    machine.restart()
    machine.look()
    assert machine.condition("bad")[0] == "False"
    assert machine.condition("good") is None


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        ("", Attachment.NONE),
        ("/usr/lib/libcudart.so.12\n/usr/lib/libcuda.so.debug\n", Attachment.NONE),
        ("/usr/lib/libcuda.so.580.65.06\n", Attachment.BYPASSED),
        ("/x/libcuda.so\n[heap]\n", Attachment.BYPASSED),
        ("/x/libcuda.so.1 (deleted)\n[heap]\n", Attachment.BYPASSED),
        ("/x/libcuda.so.1\n/y/libtensorfusion_limiter.so\n", Attachment.LIMITED),
        ("/y/libtensorfusion_limiter.so (deleted)\n/x/libcuda.so.1\n", Attachment.LIMITED),
        ("/y/libtensorfusion_limiter.so\n", Attachment.LIMITED),
        ("/y/libtensorfusion_limiter.so.txt\n/x/libcuda.so.1\n", Attachment.BYPASSED),
    ],
)
def test_what_a_process_has_mapped(maps, expected, tmp_path, monkeypatch):
    line = "7f12c7a00000-7f12c7c00000 r-xp 00000000 fe:00 5111  "
    (tmp_path / "7").mkdir()
    text = "".join(line + name + "\n" for name in maps.splitlines())
    (tmp_path / "7" / "maps").write_text(text)
    monkeypatch.setattr(processes, "PROC", tmp_path)
    assert processes.attachment(7) is expected
    assert processes.attachment(8) is Attachment.NONE
