"""Partitions in the fidelity ``driver``: programs run on devices of their size, and the driver keeps who is there."""

import ctypes as c
import json
import sys
import time

import pytest

from tensorfusion import names
from tensorfusion.errors import BackendError
from tensorfusion.hypervisor.partitions import cut_for, idle_of
from tensorfusion.model.partitions import Cut
from tensorfusion.spi.backend import Enforcement, Share, Tier, WorkerSpec
from tensorfusion.spi.limited import Attachment
from tensorfusion_native.libraries import VIEW, built, libraries
from tensorfusion_simulated.backend import SimulatedBackend
from tensorfusion_simulated.description import read_settings
from tensorfusion_simulated.program import USUAL_GFLOPS, rates

pytestmark = pytest.mark.skipif(not built(), reason="the native part is not built")
GIB = 1 << 30
CONTEXT = 300 << 20
PROGRAM = """
import ctypes as C, json
cuda = C.CDLL("libcuda.so.1")
def ok(code): assert code == 0, code
ok(cuda.cuInit(0))
count, name, size, sms, context = C.c_int(), C.create_string_buffer(96), C.c_size_t(), C.c_int(), C.c_void_p()
ok(cuda.cuDeviceGetCount(C.byref(count)))
ok(cuda.cuDeviceGetName(name, 96, 0))
ok(cuda.cuDeviceTotalMem_v2(C.byref(size), 0))
ok(cuda.cuDeviceGetAttribute(C.byref(sms), 16, 0))
ok(cuda.cuDevicePrimaryCtxRetain(C.byref(context), 0))
ok(cuda.cuCtxSetCurrent(context))
pointer = C.c_uint64()
codes = [cuda.cuMemAlloc_v2(C.byref(pointer), C.c_size_t(n << 30)) for n in [%s]]
print(json.dumps([count.value, name.value.decode(), size.value, sms.value, codes]), flush=True)
input()
"""


def described(*gpus):
    return {"fidelity": "driver", "nodes": [{"name": "sim", "gpus": list(gpus)}]}


WHOLE = {"model": "A100_SXM_80G"}
CUT = {**WHOLE, "partitioned": True}


@pytest.fixture
def settings():
    return described(CUT, WHOLE)


def spec(device, worker="w", **changes):
    share = Share(0, GIB, device.compute_gflops, device.vram_bytes)
    given = {"isolation": "partitioned", **changes}
    return WorkerSpec(
        worker=worker, namespace="ns", name=worker, workload="w", devices=(device.uuid,),
        share=share, **given,
    )  # fmt: skip


def cut(session, worker, template, start, **changes):
    """Do what the hypervisor does for a pod that was given this cut of the first card."""
    device = session.discover()[0]
    cuts = {device.uuid.lower(): Cut(template, start)}
    return session.prepare(cut_for(session, spec(device, worker, **changes), [device], cuts))


def load(driver, prepared):
    return driver.start(prepared, libraries().load, "seconds=60", "kernel_us=500", f"hold={GIB}")


def metered(session, seconds=1.5):
    session.usage()
    time.sleep(seconds)
    return {row.worker: row for row in session.usage()}


def test_a_program_sees_memory_and_multiprocessors_of_its_partition(driver):
    session = driver.open()
    prepared = cut(session, "w", "2g.20gb", 2)
    (made,) = session.partitions()
    assert prepared.env["CUDA_VISIBLE_DEVICES"] == made.uuid
    assert prepared.enforcement is Enforcement.DRIVER
    assert "LD_PRELOAD" not in prepared.env

    process = driver.start(prepared, sys.executable, "-c", PROGRAM % "15, 6, 4")
    count, name, size, sms, codes = json.loads(process.stdout.readline())
    assert session.attachment("w", process.pid) is Attachment.EXEMPT
    [row] = session.usage()

    assert (count, name) == (1, "NVIDIA A100-SXM4-80GB MIG 2g.20gb")
    assert size == made.vram_bytes == 20 * GIB
    assert sms == 28, "14 for each slice: NVIDIA's MIG user guide, A100"
    assert codes == [0, 2, 0], "20 GiB have no room for 21"
    assert row.vram_bytes == 19 * GIB + CONTEXT
    card, whole = session.metrics()
    assert (card.vram_used_bytes, whole.vram_used_bytes) == (row.vram_bytes, 0)
    assert card.utilization_ratio is None, "NVML tells none of a cut card"


def test_neighbours_are_metered_in_parts_of_the_card_and_each_has_its_own(driver):
    session = driver.open()
    for worker, template, start in (
        ("a", "3g.40gb", 0),
        ("b", "1g.10gb", 4),
        ("idle", "1g.10gb", 5),
    ):
        prepared = cut(session, worker, template, start)
        if worker != "idle":
            load(driver, prepared)
    time.sleep(1)
    rows = metered(session)
    parts = {worker: row.compute_gflops / 312_000 for worker, row in rows.items()}
    assert parts == {
        "a": pytest.approx(3 / 7, rel=0.1),
        "b": pytest.approx(1 / 7, rel=0.1),
        "idle": 0,
    }
    held = {worker: row.vram_bytes for worker, row in rows.items()}
    assert held == {"a": GIB + CONTEXT, "b": GIB + CONTEXT, "idle": 0}
    assert rows["a"].busy_seconds_total > 1
    assert rows["idle"].busy_seconds_total == 0


def test_the_next_session_meters_on_and_keeps_what_is_in_use(driver):
    session = driver.open()
    process = load(driver, cut(session, "w", "3g.40gb", 4))
    time.sleep(1)
    (made,) = session.partitions()
    session.close()

    again = driver.open()
    assert list(again.partitions()) == [made]
    assert idle_of(again) == []
    row = metered(again)["w"]
    assert row.compute_gflops == pytest.approx(made.compute_gflops, rel=0.1)
    assert row.vram_bytes == GIB + CONTEXT
    with pytest.raises(BackendError, match=f"partition {made.uuid} is used by worker w"):
        again.remove_partition(made.uuid)
    again.release("w")
    with pytest.raises(BackendError, match=f"partition {made.uuid}: a process uses it"):
        again.remove_partition(made.uuid)
    driver.end(process)
    again.remove_partition(made.uuid)
    again.remove_partition(made.uuid)
    assert list(again.partitions()) == []


def test_a_card_is_cut_or_whole_and_says_which(driver):
    session = driver.open()
    first, second = session.discover()
    assert (first.partitioned, second.partitioned) == (True, False)
    with pytest.raises(BackendError, match="is on: it takes isolation partitioned, not 'soft'"):
        session.prepare(spec(first, isolation="soft"))
    with pytest.raises(BackendError, match="is off: it takes isolation shared or soft, not 'part"):
        session.prepare(spec(second))
    with pytest.raises(BackendError, match=f"device {second.uuid}: MIG mode is off; `partitioned:"):
        session.create_partition(second.uuid, "1g.10gb")
    with pytest.raises(BackendError, match="no device 'nowhere' here"):
        session.create_partition("nowhere", "1g.10gb")
    assert (session.workers(), session.partitions()) == ([], [])


@pytest.mark.parametrize(("gpus", "offered"), [([CUT, WHOLE], True), ([WHOLE], False)])
def test_partitions_are_offered_where_a_card_is_set_up_for_them(gpus, offered):
    backend = SimulatedBackend()
    backend.configure(read_settings(described(*gpus)))
    capabilities = backend.capabilities()
    assert capabilities.partitions is offered
    assert ("partitioned" in capabilities.isolation) is offered
    assert capabilities.isolation["soft"] is Enforcement.COOPERATIVE


@pytest.mark.parametrize("first", ["the process ends", "the worker is released"])
def test_a_card_is_set_up_when_no_worker_and_no_process_uses_it(driver, first):
    whole = driver.open(described(WHOLE))
    process = load(driver, whole.prepare(spec(whole.discover()[0], isolation="shared")))
    process.stdout.readline()
    session = driver.open(described(CUT))

    steps = {
        "nothing": lambda: None,
        "the process ends": lambda: driver.end(process),
        "the worker is released": lambda: session.release("w"),
    }
    for what in ("nothing", first):
        steps[what]()
        info = session.discover()[0]
        assert (info.partitioned, info.healthy) == (False, True)
        assert info.message == "MIG mode is off until nobody uses the card"
    for step in steps.values():
        step()
    info = session.discover()[0]
    assert (info.partitioned, info.message) == (True, "")


def test_a_card_is_whole_again_when_nobody_has_a_partition(driver):
    session = driver.open(described(CUT))
    cut(session, "stays", "1g.10gb", 0)
    cut(session, "leaves", "1g.10gb", 1)
    session.release("leaves")
    again = driver.open(described(WHOLE))
    assert again.discover()[0].message == "MIG mode is on until nobody uses the card"
    assert [one.start for one in again.partitions()] == [0]
    again.release("stays")
    info = again.discover()[0]
    assert (info.partitioned, info.message, again.partitions()) == (False, "", [])


def test_what_a_crash_left_half_cut_makes_room(driver, tmp_path):
    session = driver.open()
    card = session.discover()[0]
    [view] = tmp_path.glob(f"native/simulated/*/{VIEW}")
    library, handle, instance = c.CDLL(str(view)), c.c_void_p(), c.c_void_p()
    library.nvmlDeviceGetHandleByIndex_v2(0, c.byref(handle))
    assert library.nvmlDeviceCreateGpuInstance(handle, 0, c.byref(instance)) == 0
    assert session.partitions() == [], "without a compute instance no program can use it"
    made = session.create_partition(card.uuid, "1g.10gb")
    assert list(session.partitions()) == [made]
    assert library.nvmlGpuInstanceDestroy(instance) != 0, "it is gone, or is what was made since"


def test_a_partition_that_was_taken_away_from_outside_is_metered_again_when_it_is_back(driver):
    session = driver.open()
    prepared = cut(session, "w", "2g.20gb", 0)
    (made,) = session.partitions()
    session._mig.remove(made.uuid)  # by the driver's own tools, or by a start of the machine
    again = driver.open()
    [row] = again.usage()
    assert (row.compute_gflops, row.vram_bytes) == (0, 0)
    assert cut(again, "w", "2g.20gb", 0) == prepared
    load(driver, prepared)
    time.sleep(1)
    assert metered(again)["w"].compute_gflops == pytest.approx(made.compute_gflops, rel=0.1)


def test_nothing_is_frozen_or_saved_on_a_partition(driver, tmp_path):
    session = driver.open()
    cut(session, "w", "1g.10gb", 0)
    for call in (
        lambda: session.freeze("w", Tier.WARM),
        lambda: session.thaw("w"),
        lambda: session.snapshot("w", tmp_path / "saved"),
        lambda: session.resume("w", tmp_path / "saved"),
    ):
        with pytest.raises(BackendError, match="worker w: the driver has no checkpoints on part"):
            call()


def test_eight_cards_are_cut_into_as_many_partitions_as_each_takes(driver):
    session = driver.open(described({**CUT, "count": 8}))
    uuids = [info.uuid for info in session.discover()]
    made = [session.create_partition(uuid, "1g.10gb").uuid for uuid in uuids for _ in range(7)]
    assert len(set(made)) == 56
    assert {one.uuid for one in session.partitions()} == set(made)


def test_a_load_is_played_in_parts_of_the_card(driver):
    """As in the fidelity ``model``, a percentage is of the card: a third of it is 7/9 of three sevenths."""
    session = driver.open()
    annotations = {names.SIMULATED_LOAD: f"constant,compute={100 / 3:.3f}%,vram=2Gi"}
    process = driver.start(cut(session, "w", "3g.40gb", 0, annotations=annotations))
    assert "MIG 3g.40gb" in process.stdout.readline()
    time.sleep(1)
    row = metered(session, 2)["w"]
    assert row.compute_gflops / 312_000 == pytest.approx(1 / 3, rel=0.15)
    assert row.vram_bytes == pytest.approx(2 * GIB, abs=64 << 20)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", (312_000, 312_000)),
        ("NVIDIA A100-SXM4-80GB MIG 7g.80gb", (312_000, 312_000)),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", (312_000 // 7, 312_000)),
        ("some other card", (USUAL_GFLOPS, USUAL_GFLOPS)),
    ],
)
def test_rates_follow_from_the_name_of_a_device(name, expected):
    assert rates(name) == expected
