"""A process that is stopped while it holds the lock of its worker's ledger holds nobody up."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from native.machine import CONTEXT, MIB
from native.offsets import LEDGER
from rig.program import wait

STOPPER = """
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>
pthread_mutex_t *target;
int pthread_mutex_trylock(pthread_mutex_t *mutex) {
  static const struct timespec past;
  int result = pthread_mutex_timedlock(mutex, &past);
  if (!result && mutex == target) {
    target = NULL;
    kill(getpid(), SIGSTOP);
  }
  return result == ETIMEDOUT ? EBUSY : result;
}
"""
"""Preloaded before the limiter: stops the process at the instant at which it has taken the lock."""
HOLD = """
init()
start = next(int(line.split("-")[0], 16) for line in open("/proc/self/maps") if line.rstrip().endswith("/ledger"))
def hold():
    C.c_void_p.in_dll(C.CDLL({library!r}), "target").value = start + {lock}
    return alloc(1 << 20)[0]
say(ready=1)
for line in sys.stdin: exec(line)
"""
TAKE = """
init(); say(ready=1)
for line in sys.stdin: exec(line)
"""


def told(process):
    return json.loads(process.stdout.readline())


def ask(process, code):
    process.stdin.write(code + "\n")
    process.stdin.flush()


def state_of(pid):
    """The letter of a process's state (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def worker(machine):
    machine.mode = "wall"
    return machine.worker(vram=8 << 30)


@pytest.fixture
def holder(machine, worker, tmp_path):
    """A process of the worker that stops inside, once it is asked to."""
    source, library = tmp_path / "stopper.c", tmp_path / "stopper.so"
    source.write_text(STOPPER)
    command = ["cc", "-shared", "-fPIC", "-o", library, source, "-lpthread"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    environment = worker.environment()
    environment["LD_PRELOAD"] = f"{library}:{environment['LD_PRELOAD']}"
    code = HOLD.format(library=str(library), lock=LEDGER["lock"])
    process = machine.python(code, **environment)
    assert told(process) == {"ready": 1}
    return process


def stop_inside(holder):
    ask(holder, "say(code=hold())")
    wait(lambda: state_of(holder.pid) == "T")


def test_the_others_of_its_worker_go_on_and_it_stays_stopped(worker, holder):
    others = [worker.start(TAKE) for _ in range(3)]
    assert [told(other) for other in others] == [{"ready": 1}] * 3
    for _ in range(5):
        stop_inside(holder)
        for other in others:
            ask(other, "code, address = alloc(1 << 20); free(address); say(code=code)")
        assert [told(other) for other in others] == [{"code": 0}] * 3
        wait(lambda: state_of(holder.pid) == "T")
        os.kill(holder.pid, signal.SIGCONT)
        assert told(holder) == {"code": 0}
    assert worker.region.use(0).used_bytes == 4 * CONTEXT + 5 * MIB


def test_a_process_that_comes_meanwhile_is_held_to_the_limits(worker, holder):
    stop_inside(holder)
    seen = worker.run("init(); say(code=alloc(64 << 30)[0], total=info()[1])")
    assert seen == {"code": 2, "total": 8 << 30}
    wait(lambda: state_of(holder.pid) == "T")


def test_who_was_let_go_on_and_is_continued_stops_no_more(worker, holder):
    other = worker.start(TAKE)
    assert told(other) == {"ready": 1}
    stop_inside(holder)
    ask(other, "say(code=alloc(1 << 20)[0])")
    assert told(other) == {"code": 0}
    wait(lambda: state_of(holder.pid) == "T")
    os.kill(holder.pid, signal.SIGCONT)
    assert told(holder) == {"code": 0}

    ask(holder, "say(codes=[alloc(4096)[0] for _ in range(100)])")
    assert told(holder) == {"codes": [0] * 100}


def test_one_that_is_killed_while_it_is_stopped_inside_leaves_a_ledger_that_adds_up(worker, holder):
    stop_inside(holder)
    holder.kill()
    holder.wait(30)
    seen = worker.run("init(); assert alloc(64 << 30)[0] == 2; say(ledger=info()[1] - info()[0])")
    assert seen == {"ledger": CONTEXT}
