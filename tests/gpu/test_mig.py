"""MIG on this machine's first GPU, where it is in that mode and not cut: what is cut is given back."""

import pytest

from tensorfusion.clock import SystemClock
from tensorfusion.errors import BackendError
from tensorfusion.model.hardware import geometry_of
from tensorfusion.model.partitions import Cut, legal_starts
from tensorfusion.spi.backend import Enforcement, NodeContext, Share, WorkerSpec
from tensorfusion_nvidia.backend import NvidiaBackend


@pytest.fixture
def target(open_target):
    return open_target(clock="wall")


@pytest.fixture
def session(target, pynvml, tmp_path):
    """A session with a card to cut; a real one is left in the mode that it has, a simulated one is put into it."""
    pynvml.nvmlInit()
    if target.place.machine is not None:
        pynvml.nvmlDeviceSetMigMode(pynvml.nvmlDeviceGetHandleByIndex(0), 1)
    context = NodeContext(node="here", state_dir=tmp_path, clock=SystemClock())
    session = NvidiaBackend(pynvml).open(context)
    if not session.discover()[0].partitioned:
        pytest.skip("the GPU is not in MIG mode; `nvidia-smi -i 0 -mig 1` turns it on")
    if session.partitions():
        pytest.skip("the GPU has partitions, which are not ours to remove")
    yield session
    for one in session.partitions():
        session.remove_partition(one.uuid)
    session.close()


def test_a_program_has_its_partition_and_nothing_else(session, target):
    card = session.discover()[0]
    geometry = geometry_of(card.model, card.full_model)
    smallest = min(geometry.templates, key=lambda template: template.vram_bytes)
    made = session.create_partition(card.uuid, smallest.id)
    spec = WorkerSpec(
        worker="w", namespace="ns", name="w", workload="w", devices=(card.uuid,),
        share=Share(0, 0, made.compute_gflops, made.vram_bytes),
        isolation="partitioned", partitions=(made.uuid,),
    )  # fmt: skip
    prepared = session.prepare(spec)
    seen = target.run("init(); say(bytes=total(), sms=attribute(MULTIPROCESSORS))", prepared.env)
    session.release("w")

    assert prepared.enforcement is Enforcement.DRIVER
    assert 0.8 * made.vram_bytes <= seen["bytes"] <= made.vram_bytes
    assert 0 < seen["sms"] <= card.multiprocessors // smallest.total_slices * smallest.slices


def test_the_card_is_cut_where_the_catalogue_says(session):
    card = session.discover()[0]
    geometry = geometry_of(card.model, card.full_model)
    for template in geometry.templates:
        for start in range(geometry.slots):
            try:
                made = session.create_partition(card.uuid, template.id, start)
            except BackendError:
                assert start not in legal_starts(geometry, (), template.id)
                continue
            assert (made.template, made.start) == (template.id, start)
            assert start in legal_starts(geometry, (), template.id)
            for other in geometry.templates:
                beside = legal_starts(geometry, (Cut(template.id, start),), other.id)
                if beside:
                    second = session.create_partition(card.uuid, other.id, beside[-1])
                    session.remove_partition(second.uuid)
            session.remove_partition(made.uuid)
