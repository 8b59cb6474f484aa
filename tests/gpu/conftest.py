"""Every test of a driver program runs on this machine's GPU, and on a simulated one to keep the programs right."""

import importlib.util
import sys
from ctypes import CDLL

import pytest
from gpu.target import Target, real_library, simulated_place

from tensorfusion_native.libraries import VIEW, built, libraries
from tensorfusion_native.management import Management
from tensorfusion_native.place import real_place
from tensorfusion_native.workers import Workers

ONE_AT_A_TIME = pytest.mark.xdist_group("gpu")
"""There is one GPU to measure on, however many processes run tests."""
DEVICES = ["simulated", pytest.param("real", marks=pytest.mark.gpu)]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(ONE_AT_A_TIME)


def opener(open_, tmp_path):
    if not built():
        pytest.skip("the native part is not built")
    opened = []

    def tracked(**options):
        workers = Workers(tmp_path / "workers")
        opened.append(Target(open_(**options), libraries(), workers))
        return opened[-1]

    yield tracked
    for target in opened:
        target.close()


@pytest.fixture
def open_real(tmp_path):
    """Open this machine's first GPU."""
    library, why = real_library()
    if library is None:
        pytest.skip(f"no NVIDIA GPU on this machine: {why}")
    yield from opener(lambda **_: real_place(Management(library), 0), tmp_path)


@pytest.fixture
def open_simulated(tmp_path):
    """Open a simulated GPU, in virtual time unless told otherwise."""

    def place(clock="virtual", processes=1):
        return simulated_place(tmp_path, libraries(), clock, processes)

    yield from opener(place, tmp_path)


@pytest.fixture(params=DEVICES)
def open_target(request):
    """Open one or the other; a real one has no say over its clock and who takes part."""
    return request.getfixturevalue(f"open_{request.param}")


@pytest.fixture
def target(open_target):
    return open_target()


@pytest.fixture
def pynvml(target, monkeypatch):
    """A copy of nvidia-ml-py that is bound to the very management library of the target."""
    spec = importlib.util.find_spec("pynvml")
    bound = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pynvml", bound)  # it looks itself up there
    spec.loader.exec_module(bound)
    machine = target.place.machine
    bound.nvmlLib = CDLL(str(real_library()[0] if machine is None else machine.folder / VIEW))
    return bound
