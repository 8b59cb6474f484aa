"""MIG: the NVIDIA backend cuts cards of the simulated driver through nvidia-ml-py, and programs run on the parts."""

import itertools
import json
import subprocess
import sys
from ctypes import byref, c_uint

import pytest

from tensorfusion.clock import SystemClock
from tensorfusion.errors import BackendError
from tensorfusion.hypervisor.environment import process_environment
from tensorfusion.hypervisor.partitions import cut_for, idle_of
from tensorfusion.model.partitions import Cut, legal_starts
from tensorfusion.spi.backend import Enforcement, NodeContext, Share, Tier, WorkerSpec
from tensorfusion_native.checkpoint import CheckpointError
from tensorfusion_native.libraries import built
from tensorfusion_nvidia.backend import NvidiaBackend
from tensorfusion_nvidia.devices import catalogue_card
from tensorfusion_nvidia.nvml import text

pytestmark = pytest.mark.skipif(not built(), reason="the native part is not built")
GIB = 1 << 30
PROGRAM = """
import ctypes as C, json
cuda = C.CDLL("libcuda.so.1")
def ok(code): assert code == 0, code
ok(cuda.cuInit(0))
count, name, bytes_, sms, context = C.c_int(), C.create_string_buffer(96), C.c_size_t(), C.c_int(), C.c_void_p()
ok(cuda.cuDeviceGetCount(C.byref(count)))
ok(cuda.cuDeviceGetName(name, 96, 0))
ok(cuda.cuDeviceTotalMem_v2(C.byref(bytes_), 0))
ok(cuda.cuDeviceGetAttribute(C.byref(sms), 16, 0))
ok(cuda.cuDevicePrimaryCtxRetain(C.byref(context), 0))
ok(cuda.cuCtxSetCurrent(context))
pointer = C.c_uint64()
codes = [cuda.cuMemAlloc_v2(C.byref(pointer), C.c_size_t(n << 30)) for n in [%s]]
print(json.dumps({"count": count.value, "name": name.value.decode(), "bytes": bytes_.value, "sms": sms.value,
                  "codes": codes}), flush=True)
input()
"""


@pytest.fixture
def cards(request):
    """Two A100 unless the test says otherwise."""
    return getattr(request, "param", ("A100_SXM_80G", "A100_SXM_80G"))


@pytest.fixture
def node(simulated_nvml, tmp_path):
    """Opens sessions on a machine whose first card is in MIG mode."""

    class Node:
        pynvml = simulated_nvml

        def __init__(self):
            self.backend = NvidiaBackend(self.pynvml, limiter=True)
            self.handle = self.pynvml.nvmlDeviceGetHandleByIndex(0)

        def set_mode(self, mode, index=0):
            handle = self.pynvml.nvmlDeviceGetHandleByIndex(index)
            return self.pynvml.nvmlDeviceSetMigMode(handle, mode)

        def open(self, **options):
            context = NodeContext(node="here", state_dir=tmp_path, clock=SystemClock())
            return NvidiaBackend(self.pynvml, limiter=True, **options).open(context)

        def spec(self, device, worker="w", **changes):
            share = Share(0, GIB, device.compute_gflops, device.vram_bytes)
            given = {"isolation": "partitioned", **changes}
            return WorkerSpec(
                worker=worker, namespace="ns", name=worker, workload="w", devices=(device.uuid,),
                share=share, **given,
            )  # fmt: skip

        def run(self, prepared, gibibytes="1"):
            environment = process_environment({}, {**simulated_nvml.environment, **prepared.env})
            return subprocess.Popen(
                [sys.executable, "-c", PROGRAM % gibibytes], env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip

    simulated_nvml.nvmlInit()
    node = Node()
    node.set_mode(1)
    return node


def cut(session, device, worker, template, start, node):
    spec = cut_for(
        session, node.spec(device, worker), [device], {device.uuid.lower(): Cut(template, start)}
    )
    return session.prepare(spec)


def test_a_card_in_mig_mode_is_reported_as_cut_and_takes_nothing_else(node):
    session = node.open()
    first, second = session.discover()

    assert (first.partitioned, second.partitioned) == (True, False)
    assert first.healthy
    with pytest.raises(BackendError, match="in MIG mode and takes isolation 'partitioned' only"):
        session.prepare(node.spec(first, isolation="soft"))
    session.prepare(node.spec(second, isolation="soft"))
    capabilities = NvidiaBackend(node.pynvml).capabilities()
    assert capabilities.partitions
    assert capabilities.isolation["partitioned"] is Enforcement.DRIVER


def test_without_a_card_in_mig_mode_partitions_are_not_offered(node):
    node.set_mode(0)
    backend = NvidiaBackend(node.pynvml)
    assert not backend.capabilities().partitions
    assert "partitioned" not in backend.capabilities().isolation


def test_a_program_gets_a_device_of_the_size_of_its_partition(node):
    session = node.open()
    card = session.discover()[0]
    prepared = cut(session, card, "w", "2g.20gb", 2, node)
    (made,) = session.partitions()
    assert prepared.env["CUDA_VISIBLE_DEVICES"] == made.uuid
    assert made.uuid.startswith("MIG-")
    assert prepared.enforcement is Enforcement.DRIVER
    assert "LD_PRELOAD" not in prepared.env

    with node.run(prepared, "15, 6, 4") as program:
        try:
            seen = json.loads(program.stdout.readline())
            [row] = session.usage()
        finally:
            program.kill()

    assert seen["count"] == 1
    assert seen["name"].endswith("MIG 2g.20gb")
    assert seen["bytes"] == made.vram_bytes == 20 * GIB
    assert seen["sms"] == 28, "14 for each slice: NVIDIA's MIG user guide, A100"
    assert seen["codes"] == [0, 2, 0]
    assert row.vram_bytes == 19 * GIB + (300 << 20)


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        (("A100_SXM_80G",), {19: 14, 20: 14, 15: 14, 14: 28, 9: 42, 5: 56, 0: 98}),
        (("H100_SXM",), {19: 16, 20: 16, 15: 26, 14: 32, 9: 60, 5: 64, 0: 132}),
        (("A30",), {14: 14, 5: 28, 0: 56}),
    ],
    indirect=["cards"],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_profile_has_the_multiprocessors_that_the_guide_lists(node, cards, expected):
    """The column SM of `nvidia-smi mig -lgip` in NVIDIA's MIG user guide, by the number of the profile."""
    seen = {}
    for number in range(node.pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            told = node.pynvml.nvmlDeviceGetGpuInstanceProfileInfo(node.handle, number)
        except node.pynvml.NVMLError_NotSupported:
            continue
        seen[told.id] = told.multiprocessorCount
    assert seen == expected


def test_neighbours_do_not_share_memory_and_a_dead_one_leaves_none(node):
    session = node.open()
    card = session.discover()[0]
    workers = {
        name: cut(session, card, name, "3g.40gb", start, node)
        for name, start in (("a", 0), ("b", 4))
    }
    with node.run(workers["a"], "39") as one, node.run(workers["b"], "39") as other:
        try:
            assert json.loads(one.stdout.readline())["codes"] == [0]
            assert json.loads(other.stdout.readline())["codes"] == [0]
            used = {row.worker: row.vram_bytes for row in session.usage()}
        finally:
            one.kill()
            other.kill()
    assert used == dict.fromkeys("ab", 39 * GIB + (300 << 20))
    assert {row.worker: row.vram_bytes for row in session.usage()} == {"a": 0, "b": 0}


def test_partitions_outlive_sessions_and_processes(node):
    session = node.open()
    card = session.discover()[0]
    cut(session, card, "w", "3g.40gb", 4, node)
    made = session.partitions()
    session.close()

    again = node.open()
    assert again.partitions() == made
    assert idle_of(again) == []
    again.release("w")
    assert idle_of(again) == list(made)
    again.remove_partition(made[0].uuid)
    again.remove_partition(made[0].uuid)
    assert again.partitions() == []


def test_an_idle_partition_is_taken_again_or_makes_room(node):
    session = node.open()
    card = session.discover()[0]
    cut(session, card, "a", "1g.10gb", 0, node)
    session.release("a")
    kept = session.partitions()
    cut(session, card, "b", "1g.10gb", 0, node)
    assert session.partitions() == kept
    session.release("b")
    cut(session, card, "c", "7g.80gb", 0, node)
    assert [(one.template, one.start) for one in session.partitions()] == [("7g.80gb", 0)]


def test_a_partition_in_use_is_refused_by_name(node):
    session = node.open()
    card = session.discover()[0]
    prepared = cut(session, card, "w", "1g.10gb", 0, node)
    (made,) = session.partitions()
    with pytest.raises(BackendError, match="is used by worker w"):
        session.remove_partition(made.uuid)
    with pytest.raises(BackendError, match="is used by worker w"):
        session.prepare(node.spec(card, "other", partitions=(made.uuid,)))
    with pytest.raises(BackendError, match="has the size of its template"):
        session.set_limits("w", Share(0, 0, 1, 1))

    with node.run(prepared) as program:
        try:
            program.stdout.readline()
            session.release("w")
            with pytest.raises(BackendError, match="a process uses it"):
                session.remove_partition(made.uuid)
        finally:
            program.kill()
    session.remove_partition(made.uuid)
    assert session.partitions() == []


@pytest.mark.parametrize(
    ("template", "start", "message"),
    [
        ("9g.90gb", None, r"no partition template '9g.90gb'; allowed for A100_SXM_80G: 1g\.10gb,"),
        ("3g.40gb", 1, "3g.40gb may start at slots 0, 4, not at 1"),
        ("3g.40gb", 0, "3g.40gb at slot 0: there is no room for it beside what is there"),
        ("7g.80gb", None, "7g.80gb: there is no room for it"),
    ],
)
def test_a_cut_that_cannot_be_is_refused_with_the_reason(node, template, start, message):
    session = node.open()
    card = session.discover()[0]
    session.create_partition(card.uuid, "1g.10gb", 0)
    with pytest.raises(BackendError, match=message):
        session.create_partition(card.uuid, template, start)
    assert len(session.partitions()) == 1


def test_a_card_that_is_not_in_the_mode_is_not_cut(node):
    session = node.open()
    whole = session.discover()[1]
    with pytest.raises(BackendError, match="MIG mode is off; `nvidia-smi -i 1 -mig 1` turns it on"):
        session.create_partition(whole.uuid, "1g.10gb")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (4, "no permission: partitions are cut by root"),
        (16, "must be reset first"),
        (19, "a process uses it"),
    ],
)
def test_errors_of_the_driver_are_told_in_words(node, monkeypatch, code, words):
    session = node.open()
    card = session.discover()[0]

    def refuse(*_):
        raise node.pynvml.NVMLError(code)

    monkeypatch.setattr(node.pynvml, "nvmlDeviceCreateGpuInstance", refuse)
    with pytest.raises(BackendError, match=words):
        session.create_partition(card.uuid, "1g.10gb")


@pytest.mark.parametrize("start", [0, None])
def test_what_a_crash_left_half_cut_is_taken_up_or_cleared(node, start):
    session = node.open()
    card = session.discover()[0]
    placement = node.pynvml.c_nvmlGpuInstancePlacement_t(0, 8)
    node.pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(node.handle, 0, byref(placement))
    assert session.partitions() == [], "without a compute instance no program can use it"

    made = session.create_partition(card.uuid, "7g.80gb", start)
    assert list(session.partitions()) == [made]
    session.remove_partition(made.uuid)
    count = c_uint(8)
    rows = (node.pynvml.c_nvmlGpuInstance_t * 8)()
    node.pynvml.nvmlDeviceGetGpuInstances(node.handle, 0, rows, byref(count))
    assert count.value == 0


def test_a_change_of_mode_waits_for_those_who_use_the_card(node):
    session = node.open()
    whole = session.discover()[1]
    prepared = session.prepare(node.spec(whole, isolation="shared"))
    with node.run(prepared) as program:
        try:
            program.stdout.readline()
            assert node.set_mode(1, 1) == 19
            info = session.discover()[1]
            assert not info.partitioned
            assert "MIG mode is off until the device is reset" in info.message
        finally:
            program.kill()
    assert node.set_mode(1, 1) == 0
    assert session.discover()[1].partitioned


def test_checkpoints_are_refused_on_partitions(node, simulated_nvml, tmp_path):
    backend = NvidiaBackend(node.pynvml, limiter=True, checkpoints=simulated_nvml.checkpoints())
    context = NodeContext(node="here", state_dir=tmp_path, clock=SystemClock())
    session = backend.open(context)
    cut(session, session.discover()[0], "w", "1g.10gb", 0, node)
    with pytest.raises(BackendError, match="no checkpoints on partitions"):
        session.freeze("w", Tier.WARM)


def test_the_simulated_driver_has_no_checkpoints_on_partitions_either(node, simulated_nvml):
    session = node.open()
    prepared = cut(session, session.discover()[0], "w", "1g.10gb", 0, node)
    checkpoints = simulated_nvml.checkpoints()
    with node.run(prepared) as program:
        try:
            program.stdout.readline()
            checkpoints.lock(program.pid, 5.0)
            with pytest.raises(CheckpointError):
                checkpoints.checkpoint(program.pid)
        finally:
            program.kill()


def test_the_device_files_of_a_partition_are_those_that_the_kernel_names(node, tmp_path):
    for path, number in (("gi1/access", 21), ("gi1/ci0/access", 22)):
        file = tmp_path / "proc" / "driver/nvidia/capabilities/gpu0/mig" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"DeviceFileMinor: {number}\nDeviceFileMode: 256\n")
    session = node.open(proc=tmp_path / "proc")
    prepared = cut(session, session.discover()[0], "w", "1g.10gb", 0, node)
    assert [path for path in prepared.device_paths if "caps" in path] == [
        "/dev/nvidia-caps/nvidia-cap21",
        "/dev/nvidia-caps/nvidia-cap22",
    ]


class Driver:
    """The GPU instances of one card, by the management library alone."""

    def __init__(self, pynvml):
        self.pynvml = pynvml
        self.handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def profiles(self):
        """Name without MIG in front, to the profile."""
        found = {}
        for number in range(self.pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
            try:
                told = self.pynvml.nvmlDeviceGetGpuInstanceProfileInfo(self.handle, number)
            except self.pynvml.NVMLError:
                continue
            found[text(told.name).removeprefix("MIG ")] = told
        return found

    def placements(self, profile):
        rows, count = (self.pynvml.c_nvmlGpuInstancePlacement_t * 16)(), c_uint(16)
        self.pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(
            self.handle, profile, rows, byref(count)
        )
        return [(row.start, row.size) for row in rows[: count.value]]

    def make(self, profile, start, size):
        placement = self.pynvml.c_nvmlGpuInstancePlacement_t(start, size)
        try:
            return self.pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(
                self.handle, profile, byref(placement)
            )
        except self.pynvml.NVMLError:
            return None

    def destroy(self, instance):
        self.pynvml.nvmlGpuInstanceDestroy(instance)


GEOMETRIES = ("A100_SXM_80G", "A100_SXM_40G", "H100_SXM", "H100_PCIe_80G")


@pytest.mark.parametrize("cards", [(name,) for name in GEOMETRIES], indirect=True, ids=GEOMETRIES)
def test_the_drivers_tables_of_profiles_are_the_catalogues(node, cards):
    driver = Driver(node.pynvml)
    geometry = catalogue_card(node.pynvml.nvmlDeviceGetName(node.handle)).geometry
    found = driver.profiles()

    assert set(found) == {template.id for template in geometry.templates}
    for template in geometry.templates:
        told = found[template.id]
        assert (told.id, told.sliceCount, told.instanceCount) == (
            template.profile,
            template.slices,
            template.max_instances,
        )
        assert driver.placements(template.profile) == [(s, template.width) for s in template.starts]
        assert told.memorySizeMB << 20 == min(
            template.vram_bytes, catalogue_card(cards[0]).vram_bytes * template.width // 8
        )


@pytest.mark.parametrize(
    "cards", [("A100_SXM_80G",), ("H100_SXM",)], indirect=True, ids=["A100", "H100"]
)
def test_every_reachable_state_of_a_card_is_cut_as_the_catalogue_says(node):
    """Walk all states: in each, what the driver accepts and refuses is what our table does."""
    driver = Driver(node.pynvml)
    geometry = catalogue_card(node.pynvml.nvmlDeviceGetName(node.handle)).geometry
    everything = [(t, start) for t in geometry.templates for start in range(geometry.slots)]
    seen, pairs = set(), itertools.count()

    def walk(cuts):
        if cuts in seen:
            return
        seen.add(cuts)
        for template, start in everything:
            instance = driver.make(template.profile, start, template.width)
            next(pairs)
            legal = start in legal_starts(geometry, cuts, template.id)
            assert (instance is not None) == legal, (cuts, template.id, start)
            if instance is not None:
                walk(tuple(sorted((*cuts, Cut(template.id, start)))))
                driver.destroy(instance)

    walk(())
    assert len(seen) > 1000
    assert next(pairs) == len(seen) * len(everything)
