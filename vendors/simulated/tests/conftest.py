"""A simulated node on a fake clock."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tensorfusion import names
from tensorfusion.spi.backend import NodeContext, Share, WorkerSpec
from tensorfusion.testing.clock import FakeClock
from tensorfusion_simulated.description import CardGroup
from tensorfusion_simulated.session import SimulatedSession

GIB = 1 << 30


@dataclass
class SimulatedNode:
    """A node whose sessions share a folder, as before and after a restart."""

    folder: Path
    clock: FakeClock = field(default_factory=FakeClock)
    name: str = "node"

    def open(self, *models: str, **group) -> SimulatedSession:
        context = NodeContext(node=self.name, state_dir=self.folder, clock=self.clock)
        groups = [CardGroup(model=model, **group) for model in models or ("A100_SXM_80G",)]
        return SimulatedSession(context, groups)

    def spec(self, session, worker="w", load="constant,compute=100%", cards=1, **changes):
        infos = session.discover()[:cards]
        share = changes.pop("share", None) or Share(30_000, 8 * GIB, 60_000, 16 * GIB)
        values = {
            "worker": worker,
            "namespace": "ns",
            "name": worker,
            "workload": "wl",
            "devices": tuple(info.uuid for info in infos),
            "share": share,
            "annotations": {names.SIMULATED_LOAD: load} if load else {},
        }
        return WorkerSpec(**{**values, **changes})

    def run(self, session, seconds=10.0):
        """Let time pass and read every worker, by name."""
        session.usage()
        self.clock.advance(seconds)
        return {row.worker: row for row in session.usage()}


@pytest.fixture
def node(tmp_path):
    """A node in ``<data>/nodes/node``, where the control plane would keep it."""
    folder = tmp_path / "nodes" / "node"
    folder.mkdir(parents=True)
    return SimulatedNode(folder)
