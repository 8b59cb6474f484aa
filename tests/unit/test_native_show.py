"""The tables of `tensorfusion smi`: 80 columns, whatever they hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tensorfusion_native")

from tensorfusion_native.show import COLUMNS, DeviceRow, Seen, WorkerRow, to_text

GIB = 1 << 30
TEXT = st.text("abc-/ ", min_size=1, max_size=60)
AMOUNT = st.integers(0, 1 << 44)


def device(**changed):
    fields = {
        "uuid": "GPU-00000000-0000-0000-0000-000000000000", "index": 0, "name": "A100_SXM_80G",
        "simulated": True, "memory_bytes": 80 * GIB, "used_bytes": 3 * GIB,
        "utilization_ratio": 0.31, "temperature_celsius": 41.0, "power_watts": 250.0,
    }  # fmt: skip
    return DeviceRow(**(fields | changed))


def worker(**changed):
    fields = {
        "worker": "0123456789abcdef", "uuid": device().uuid, "processes": 1, "limit_ratio": 0.3,
        "limit_bytes": 4 * GIB, "compute_ratio": 0.29, "used_bytes": 3 * GIB, "peak_bytes": 3 * GIB,
        "launches": 1, "throttled_seconds": 12.34, "throttled_ratio": 0.7, "denied": 2,
        "spilled_bytes": GIB, "wanted_bytes": 0, "waits": 5, "evict_requests": 0,
        "command": "default/small",
    }  # fmt: skip
    return WorkerRow(**(fields | changed))


def test_the_table_says_who_uses_what_and_what_spilled():
    lines = to_text(Seen([device()], [worker(), worker(spilled_bytes=0, limit_bytes=0)]))

    assert [" ".join(line.split()) for line in lines] == [
        "GPU NAME USE MEMORY TEMP POWER",
        "0 A100_SXM_80G (simulated) 31% 3Gi / 80Gi 41 C 250 W",
        "",
        "WORKER GPU USE LIMIT MEMORY LIMIT SPILLED HELD DENIED COMMAND",
        "012345678… 0 29% 30% 3Gi 4Gi 1Gi 70% 2 default/small",
        "012345678… 0 29% 30% 3Gi none 0 70% 2 default/small",
    ]


def test_the_wide_form_cuts_nothing():
    name, command = "A" * 70, "c" * 90
    text = "\n".join(to_text(Seen([device(name=name)], [worker(command=command)]), wide=True))

    for whole in (name, command, device().uuid, worker().worker, "12.3 s (70%)", "WAITS"):
        assert whole in text


@given(
    st.lists(st.builds(device, name=TEXT, used_bytes=AMOUNT, memory_bytes=AMOUNT), max_size=4),
    st.lists(
        st.builds(
            worker,
            worker=TEXT,
            command=TEXT,
            used_bytes=AMOUNT,
            limit_bytes=AMOUNT,
            spilled_bytes=AMOUNT,
            denied=AMOUNT,
        ),
        max_size=4,
    ),
)
def test_no_line_is_longer_than_a_terminal(devices, workers):
    assert all(len(line) <= COLUMNS for line in to_text(Seen(devices, workers)))


def test_sixty_four_workers_are_a_line_each():
    rows = [worker(worker=f"worker-{n:016}", command=f"ns/{'long-' * n}") for n in range(64)]
    lines = to_text(Seen([device(index=n) for n in range(8)], rows))

    assert len(lines) == 1 + 8 + 1 + 1 + 64
    assert max(map(len, lines)) <= COLUMNS
    assert all(line.startswith("worker-00") for line in lines[-64:])
